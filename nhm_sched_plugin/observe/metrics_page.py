"""The table in docs/metrics.md, made from `METRICS`.

To bring the page up to date: `python -m nhm_sched_plugin.observe.metrics_page docs/metrics.md`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from nhm_sched_plugin.observe.metrics import METRICS

__all__ = ["refresh", "table"]

BEGIN: Final = "<!-- table: made from METRICS by `python -m nhm_sched_plugin.observe.metrics_page docs/metrics.md` -->"
END: Final = "<!-- end of table -->"


def table() -> str:
    """The Markdown table: name, type, labels, meaning; in the order of `METRICS`."""
    lines = ["| Name | Type | Labels | Meaning |", "| --- | --- | --- | --- |"]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "–"
        lines.append(f"| `{metric.name}` | {metric.kind.__name__.lower()} | {labels} | {metric.help} |")
    return "\n".join(lines)


def refresh(page: str) -> str:
    """`page` with the table between its two markers replaced. Raises `ValueError` when a marker is missing."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks the marker {END if begin else BEGIN!r}")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(refresh(path.read_text(encoding="utf-8")), encoding="utf-8")
