"""Writes docs/configuration.md from the settings themselves: `python docs/make_configuration.py`."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from nhm_sched_plugin.settings import Settings

HEAD = """# Configuration

<!-- Written by `python docs/make_configuration.py`; change the docstrings in nhm_sched_plugin/settings*.py instead. -->

One YAML file, or a mapping that the orchestrator passes to `SchedulerHost.from_config`. Keys are written in snake_case
as here, or in camelCase as in Helm values (`decisionBudgetMs`); those of `optimizer` may also stand at the top level.
Everything has a default: an empty file is a valid configuration.

```yaml
data_dir: /var/lib/nhm-sched
optimizer:
  decision_budget_ms: 50
rollout:
  percentage: 20        # 0 is shadow mode
limits:
  min_workers: 4
  max_workers: 80
fallback:
  rule_book: conservative
```

Every key can be overridden by an environment variable with the prefix `NHM_SCHED_` and `__` between levels:
`NHM_SCHED_ROLLOUT__PERCENTAGE=20`. Lists are JSON (`NHM_SCHED_ML__FORECASTING__HORIZONS=[60,360]`); plugin names may be
plain text (`NHM_SCHED_HOOKS__DISABLED=one,another`). Secrets belong into the environment or into files, not into the
configuration; no message and no log shows them.

The whole tree is checked on load. An unknown key, a wrong type or a value out of range stops the start with an error
that names the key, the value and what is allowed:

    nhm-sched.yaml: optimizer.recommendationConfidenceThreshold = 1.7: Input should be less than or equal to 1
    (allowed: [0, 1]; default 0.7)

A running host takes over changes of the file within a few seconds, also through the symbolic links of a mounted
ConfigMap: the sections {hot}, and of `optimizer` {optimizer}.
The rest needs a restart; the log names what has changed of it. An invalid new file changes nothing and counts
(`nhm_sched_component_errors_total{{component="reload"}}`).
"""


def page() -> str:
    from nhm_sched_plugin.settings import HOT_OPTIMIZER, HOT_SECTIONS

    parts = [HEAD.format(hot=_listed(HOT_SECTIONS), optimizer=_listed(HOT_OPTIMIZER))]
    simple = {name: field for name, field in Settings.model_fields.items() if _section(field) is None}
    parts.append(_table("Top level", Settings, simple))
    parts += [part for name, field in Settings.model_fields.items() for part in _sections(name, _section(field))]
    return "\n".join(parts).rstrip() + "\n"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _section(field: Any) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _sections(path: str, model: type[BaseModel] | None) -> list[str]:
    if model is None:
        return []
    simple = {name: field for name, field in model.model_fields.items() if _section(field) is None}
    tables = [_table(f"`{path}`", model, simple)] if simple else []
    nested = [(f"{path}.{name}", _section(field)) for name, field in model.model_fields.items()]
    return tables + [part for name, section in nested for part in _sections(name, section)]


def _table(title: str, model: type[BaseModel], fields: dict[str, Any]) -> str:
    meanings, types = _source(model)
    about = (model.__doc__ or "").split("\n\n")[0].strip() if title != "Top level" else ""
    lines = [
        f"## {title}",
        "",
        *([about, ""] if about else []),
        "| key | type | default | range | meaning |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, field in fields.items():
        cells = (f"`{name}`", types[name], _default(field), _range(field), meanings[name])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _source(model: type[BaseModel]) -> tuple[dict[str, str], dict[str, str]]:
    """The docstring under each field and its type as written."""
    tree = next(
        node
        for node in ast.parse(inspect.getsource(sys.modules[model.__module__])).body
        if isinstance(node, ast.ClassDef) and node.name == model.__name__
    )
    meanings, types = {}, {}
    for node, following in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            types[node.target.id] = _type(node.annotation)
            text = following.value if isinstance(following, ast.Expr) else None
            meanings[node.target.id] = " ".join(str(getattr(text, "value", "")).split())
    return meanings, types


def _type(node: ast.expr) -> str:
    text = ast.unparse(node)
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Annotated" and isinstance(node.slice, ast.Tuple):
        return _type(node.slice.elts[0])
    if isinstance(node, ast.BinOp):
        return " or ".join([_type(node.left), "null" if ast.unparse(node.right) == "None" else _type(node.right)])
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "tuple" and isinstance(node.slice, ast.Tuple):
        return f"list of {_type(node.slice.elts[0])}"
    if text.startswith("Literal["):
        return " or ".join(f"`{value}`" for value in ast.literal_eval(f"({text[8:-1]},)"))
    words = {
        "Fraction": "number",
        "float": "number",
        "ExpandedPath": "path",
        "str": "text",
        "bool": "true or false",
        "SecretStr": "text (secret)",
        "RedisUrl": "text (secret)",
    }
    return words.get(text, "whole number" if text == "int" else text)


def _default(field: Any) -> str:
    value = field.default
    if value is PydanticUndefined:
        return ""
    if value is None:
        return "`null`"
    if isinstance(value, Path):
        home = Path.home()
        return f"`~/{value.relative_to(home)}`" if value.is_relative_to(home) else f"`{value}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _range(field: Any) -> str:
    ends = {type(item).__name__: item for item in field.metadata}
    low = f"[{ends['Ge'].ge:g}" if "Ge" in ends else f"({ends['Gt'].gt:g}" if "Gt" in ends else ""
    high = f"{ends['Le'].le:g}]" if "Le" in ends else f"{ends['Lt'].lt:g})" if "Lt" in ends else ""
    return f"{low or '(-inf'}, {high or 'inf)'}" if low or high else ""


if __name__ == "__main__":
    target = Path(__file__).with_name("configuration.md")
    target.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{target} written\n")
