"""What happened, as the report and the summary tell it: read back from the database, so it is what was recorded."""

from __future__ import annotations

import datetime as dt
import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from nhm_sched_plugin.demo.foresight import HOUR_S, Foresight
from nhm_sched_plugin.observe.report_data import (
    DecisionCount,
    Example,
    HorizonError,
    HourLoad,
    Phase,
    PolicyResult,
    ReportData,
    RewardSample,
)
from nhm_sched_plugin.store import questions

if TYPE_CHECKING:
    from nhm_sched_plugin.store.repository import Store
    from nhm_sched_plugin.twin.traces import Trace

__all__ = ["tell"]

WEEK_S: Final = 7 * 24 * HOUR_S
PACKAGES: Final = ("nhm-sched-plugin", "prophet", "statsmodels", "chdb", "clickhouse-connect", "pandas", "numpy")


def tell(
    store: Store, past: Trace, coming: Trace, phases: Sequence[Phase], foresight: Foresight, results: list[PolicyResult]
) -> ReportData:
    """Everything the report shows, from the records and the runs."""
    actual = dict([*past.hourly(), *coming.hourly()])
    settings = foresight.settings
    counts = _counts(store, phases)
    sureness = questions.confidences(store)
    return ReportData(
        done=_course(counts, len(sureness), results),
        title="Predictive scheduling on the flights of 2013",
        subtitle=(
            f"{len(coming):,} departures from New York, {_day(coming.start)} to {_day(coming.end - 1)}: each a ticket"
            " that needs a worker for its time in the air"
        ),
        tickets=len(coming),
        decisions=sum(row.count for row in counts),
        load=_load(foresight, coming, actual),
        phases=list(phases),
        horizon_errors=[_error(foresight, horizon, actual) for horizon in foresight.horizons],
        policies=results,
        sla_wait_s=settings.planner.sla_wait_s,
        decision_counts=counts,
        rewards=[
            RewardSample(epoch=row.hour, arm=row.arm, reward=row.mean, weight=row.outcomes)
            for row in questions.hourly_rewards(store)
        ],
        confidences=sureness,
        confidence_threshold=settings.optimizer.recommendation_confidence_threshold,
        volume_threshold=settings.optimizer.forecast_volume_threshold,
        examples=_examples(store),
        environment={
            "Python": platform.python_version(),
            "machine": platform.machine(),
            **{name: version(name) for name in PACKAGES},
        },
    )


def _course(counts: Sequence[DecisionCount], asked: int, results: Sequence[PolicyResult]) -> list[str]:
    """Who decided, and what it came to, in sentences."""
    total = sum(row.count for row in counts)
    light = sum(row.count for row in counts if row.reason == "below_volume_threshold")
    followed = sum(row.count for row in counts if row.source == "policy")
    said = [f"Of {total:,} decisions the policy was asked in {asked:,} and followed in {followed:,}."]
    if light:
        said.append(f"In {light:,} the load ahead was light, so the rules decided without asking it.")
    pools = {result.name: [workers for _, _, workers, _ in result.timeline] for result in results}
    if followed and pools.get("plugin") == pools.get("rules"):
        said.append("That came to the same pool as the rules alone: where the policy was sure, it agreed with them.")
    return said


def _day(epoch: float) -> str:
    return f"{dt.datetime.fromtimestamp(epoch, dt.UTC):%-d %B %Y}"


def _moment(epoch: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(epoch, dt.UTC)


def _load(foresight: Foresight, coming: Trace, actual: dict[float, int]) -> list[HourLoad]:
    said = {one.hour: one for one in foresight.said[min(foresight.horizons)]}
    return [
        HourLoad(
            epoch=start,
            actual=actual.get(start),
            forecast=said[start].mean if start in said else None,
            low=said[start].quantile(0.1) if start in said else None,
            high=said[start].quantile(0.9) if start in said else None,
        )
        for start, _ in coming.hourly()
    ]


def _error(foresight: Foresight, horizon: int, actual: dict[float, int]) -> HorizonError:
    """Measured on the hours that came: what had been said, and "as a week before", against what was."""
    pairs = [(actual[one.hour], one) for one in foresight.said[horizon] if one.hour in actual]
    total = sum(count for count, _ in pairs)
    busy = [abs(count - one.mean) / count for count, one in pairs if count > 0]
    naive = sum(abs(count - actual.get(one.hour - WEEK_S, 0)) for count, one in pairs)
    return HorizonError(
        horizon_minutes=horizon,
        mape_pct=100 * statistics.fmean(busy) if busy else None,
        wape_pct=100 * sum(abs(count - one.mean) for count, one in pairs) / total if total else None,
        naive_wape_pct=100 * naive / total if total else None,
        method=pairs[-1][1].forecast.method if pairs else "",
        hours=len(pairs),
    )


def _counts(store: Store, phases: Sequence[Phase]) -> list[DecisionCount]:
    return [
        DecisionCount(
            action=row["action"],
            source=row["source"],
            arm=row["arm"],
            reason=row["reason"],
            count=row["decisions"],
            phase=phase.name,
        )
        for phase in phases
        for row in store.decision_summary(_moment(phase.start), _moment(phase.end))
    ]


def _examples(store: Store) -> list[Example]:
    """A decision that was followed, one that was refused, and one in shadow mode, each with an outcome."""
    titles = {
        "applied": "The policy was followed",
        "confidence_below_threshold": "The policy was not sure enough",
        "shadow": "Only watching",
    }
    found = {title: questions.telling_decision(store, reason) for reason, title in titles.items()}
    return [Example(decision=decision, title=title) for title, decision in found.items() if decision is not None]
