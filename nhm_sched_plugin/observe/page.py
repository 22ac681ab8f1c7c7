"""One HTML file, complete in itself: rendered from a template, replaced as a whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from nhm_sched_plugin.files import replace_file

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
    path = path.expanduser().absolute()
    page = templates.get_template(template).render(**context)
    replace_file(path, page.encode(), durable=False, mode=0o644)  # a report is there to be shown
    return path


def _unbroken(value: Any) -> Any:
    """A number and its percent sign stay on one line."""
    return value.replace(" %", "\u00a0%") if type(value) is str else value
