from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import generate_latest

from nhm_sched_plugin.observe.metrics import METRICS, Metrics
from nhm_sched_plugin.observe.metrics_page import refresh, table

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_the_page_lists_every_metric_as_the_table_has_it() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert refresh(page) == page, "run: python -m nhm_sched_plugin.observe.metrics_page docs/metrics.md"
    assert table() in page


def test_every_row_names_type_and_labels() -> None:
    rows = table().splitlines()[2:]
    assert len(rows) == len(METRICS)
    for metric, row in zip(METRICS, rows, strict=True):
        assert f"`{metric.name}` | {metric.kind.__name__.lower()} |" in row
        assert all(f"`{label}`" in row for label in metric.labels)
        assert metric.help in row


def test_the_listed_names_are_those_that_are_exposed() -> None:
    metrics = Metrics()
    for metric in METRICS:
        metrics.child(metric.attribute, *("x" for _ in metric.labels))
    shown = generate_latest(metrics.registry).decode()
    for metric in METRICS:
        assert f"# TYPE {metric.name} {metric.kind.__name__.lower()}\n" in shown


def test_the_causes_of_refusals_are_those_in_the_code() -> None:
    """The page promises label values; they are in the listener and the credentials, spelled the same."""
    package = Path(__file__).parents[2] / "nhm_sched_plugin"
    code = (package / "observe" / "listener.py").read_text() + (package / "credentials.py").read_text()
    page = PAGE.read_text(encoding="utf-8")
    for cause in ("no_token", "wrong_token", "token_file_unreadable", "tls_handshake", "too_many_connections"):
        assert f"`{cause}`" in page
        assert f'"{cause}"' in code


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="marker"):
        refresh("# nothing here")
