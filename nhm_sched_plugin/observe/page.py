"""One HTML file, complete in itself: rendered from a template, replaced as a whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, Final

__all__ = ["write_page"]

_TEMPLATES: Final = Path(__file__).parent / "templates"


def write_page(template: str, path: Path, **context: Any) -> Path:
    """Render a template of `observe/templates` to `path` (its folder is made) and return the absolute path.

    Raises `OSError` when it cannot be written. Needs jinja2 (the `report` extra).
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_unbroken,
    )
    return _replace(path, templates.get_template(template).render(**context))


def _unbroken(value: Any) -> Any:
    """A number and its percent sign stay on one line."""
    return value.replace(" %", "\u00a0%") if type(value) is str else value


def _replace(path: Path, page: str) -> Path:
    path = path.expanduser().absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    fresh = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as target:
            target.write(page)
        fresh.chmod(0o644)  # mkstemp gives 0600, but a report is there to be shown
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    return path
