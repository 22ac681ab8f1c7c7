"""The demo from end to end, on a slice of the year: one airport, the last weeks."""

from __future__ import annotations

import contextlib
import datetime as dt
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest

from nhm_sched_plugin.demo import loop
from nhm_sched_plugin.demo.flights import flights, with_durations
from nhm_sched_plugin.errors import NhmSchedError
from nhm_sched_plugin.observe.report_data import ReportData
from nhm_sched_plugin.observe.story import chapters, facts
from nhm_sched_plugin.settings import load_settings
from nhm_sched_plugin.store.client import open_store

DAYS = 4
TICK_MIN = 2
"""Half as many control ticks as the demo has."""


class Told(NamedTuple):
    output: Path
    history: pd.DataFrame
    data: ReportData
    steps: list[str]
    trained_until: list[pd.Timestamp]
    """The last hour of every series that was trained on."""


@pytest.fixture(scope="module")
def year() -> pd.DataFrame:
    return flights()


@pytest.fixture(scope="module")
def told(year: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Told:
    from nhm_sched_plugin.training import pipeline

    output = tmp_path_factory.mktemp("demo") / "demo-output"
    start = year["timestamp"].max() - dt.timedelta(
        days=7, hours=20
    )  # less than 100 hours to train on, so that it is quick
    history = year[(year["task_type"] == "LGA") & (year["timestamp"] >= start)].reset_index(drop=True)
    titles: list[str] = []
    ends: list[pd.Timestamp] = []
    train = pipeline.train

    def watched(settings: Any, *, series: dict[str, pd.Series[Any]], **options: Any) -> Any:
        ends.extend(counts.index.max() for counts in series.values())
        return train(settings, series=series, **options)

    @contextlib.contextmanager
    def step(title: str) -> Iterator[loop.Progress]:
        titles.append(title)
        yield lambda done, total=None: None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "train", watched)
        patch.setattr(loop, "TICK_S", 60.0 * TICK_MIN)
        patch.setenv("NHM_SCHED_ROLLOUT__PERCENTAGE", "77")  # must not change what the demo shows
        patch.delenv("NHM_SCHED_DATA_DIR", raising=False)
        data = loop.run(output, step, days=DAYS, pretrain=300, history=history)
    return Told(output, history, data, titles, ends)


def test_every_step_is_told(told: Told) -> None:
    assert [title.split()[0] for title in told.steps] == [
        "Read",
        "Ingest",
        "Train",
        "Pre-train",
        "Run",
        "Run",
        "Deliver",
        "Write",
    ]
    assert [policy.name for policy in told.data.policies] == ["plugin", "rules", "static"]
    for policy in told.data.policies:
        assert policy.sla_pct is not None
        assert policy.reward_mean is not None
        assert 50 < policy.sla_pct <= 100
        assert DAYS * 24 - 3 <= len(policy.timeline) <= DAYS * 24, "until the last departure of the year"
    assert {error.horizon_minutes for error in told.data.horizon_errors} == {60, 360, 1440}
    assert all(error.wape_pct is not None and error.wape_pct < 60 for error in told.data.horizon_errors)
    begun = (told.data.tickets or 0) - sum(hour.actual or 0 for hour in told.data.load)
    assert 0 <= begun < 10, "only the last hour, which is cut off, is not shown"


def test_every_decision_is_recorded_once_with_its_phase_and_arm(told: Told) -> None:
    """A decision per ticket and per control tick, each with an outcome unless the replay ended before it."""
    with open_store(load_settings(told.output / loop.CONFIG_FILE)) as store:
        total, distinct, ticks, finished = store.rows(
            "SELECT count(), uniqExact(decision_id), countIf(ticket_id IS NULL), countIf(status IS NOT NULL) "
            "FROM neural_hive.scheduling_decisions",
            name="test",
        )[0]
        phases = store.rows(
            "SELECT rollout_percentage, groupUniqArray(arm), min(decided_at) FROM neural_hive.scheduling_decisions "
            "GROUP BY rollout_percentage ORDER BY rollout_percentage",
            name="test",
        )
        forecasts = store.rows("SELECT count(), uniqExact(horizon_minutes) FROM neural_hive.forecasts", name="test")[0]
    assert total == distinct == told.data.decisions == ticks + (told.data.tickets or 0)
    assert (DAYS * 1440 - 180) / TICK_MIN <= ticks <= DAYS * 1440 / TICK_MIN + 1
    assert total - 300 < finished <= total
    assert forecasts[0] > 0
    assert forecasts[1] == 3
    assert [row[0] for row in phases] == [0, 20, 50, 100]
    assert [row[2] for row in phases] == sorted(row[2] for row in phases)
    arms = {row[0]: set(row[1]) for row in phases}
    assert arms[0] == {"shadow"}
    assert arms[50] == {"control", "treatment"}
    assert "treatment" in arms[100]
    assert {count.arm for count in told.data.decision_counts} == {"shadow", "control", "treatment"}
    assert {count.phase for count in told.data.decision_counts} == {name for _, name in loop.STAGES}


def test_training_saw_nothing_of_what_is_replayed(told: Told) -> None:
    split = told.history["timestamp"].max().ceil("D") - dt.timedelta(days=DAYS)
    assert len(told.trained_until) == 2, "all flights together, and the airport"
    assert all(end < split for end in told.trained_until)
    assert told.data.tickets == int((told.history["timestamp"] >= split).sum())


def test_the_report_stands_alone_and_the_next_commands_work(told: Told) -> None:
    page = (told.output / "report.html").read_text(encoding="utf-8")
    assert told.data.report_path == str(told.output / "report.html")
    assert "<svg" in page or "data:image" in page
    assert not re.search(r"(src|href)=[\"'](?!data:|#)", page), "nothing is fetched from elsewhere"
    command = told.data.next_commands[0][0]
    assert command in page
    found = re.search(r"explain (\S+) -c (\S+)$", command)
    assert found is not None
    with open_store(load_settings(found[2])) as store:
        decision = store.decision(found[1])
    assert decision is not None
    text = " ".join(chapter.text for chapter in chapters(facts(decision)))
    assert "tickets" in text
    assert "2013" in text


def test_an_earlier_state_is_made_anew_but_nothing_else_is_touched(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.delenv("NHM_SCHED_DATA_DIR", raising=False)
    precious = tmp_path / "state" / "precious.txt"
    precious.parent.mkdir()
    precious.write_text("mine", encoding="utf-8")
    with pytest.raises(NhmSchedError, match="no demo has made; choose another folder with --output"):
        loop.run(tmp_path, lambda title: contextlib.nullcontext(lambda done, total=None: None))
    assert precious.read_text(encoding="utf-8") == "mine"

    earlier = tmp_path / "output" / "state"
    earlier.mkdir(parents=True)
    (earlier / loop.MARKER).touch()
    assert loop._state(tmp_path / "output") == earlier.resolve()
    monkeypatch.setenv("NHM_SCHED_DATA_DIR", str(tmp_path / "named"))
    assert loop._state(tmp_path / "output") == tmp_path / "named"
    monkeypatch.setenv("NHM_SCHED_DATA_DIR", str(precious.parent))
    assert loop._state(tmp_path / "output") == earlier.resolve(), "not into the user's own records"


def test_the_flights_are_tickets(year: pd.DataFrame) -> None:
    assert len(year) == 336_776
    assert set(year["task_type"]) == {"EWR", "JFK", "LGA"}
    assert set(year["risk_band"]) == {"short", "medium", "long"}
    assert year["timestamp"].is_monotonic_increasing
    assert not year["ticket_id"].duplicated().any()
    first = year.iloc[0]
    assert first["ticket_id"] == "UA1545-20130101T0515-EWR"
    assert first["timestamp"] == pd.Timestamp("2013-01-01 05:15", tz="UTC")
    cancelled = year["status"] == "cancelled"
    assert 0.02 < cancelled.mean() < 0.04
    assert (year.loc[cancelled, "sla_met"] == 0).all()
    assert with_durations(year)["actual_duration_ms"].notna().all()
