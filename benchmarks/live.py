"""What the live correction does to forecasts: on load as it is, and after level shifts and outages put into it.

    python -m benchmarks.live [--data FOLDER] [--series a,b] [--weeks 8] [--json]

FOLDER holds `NAME.csv` files with the columns timestamp and volume; without one it is the flights that left airports of
New York in 2013. Each series is fitted before its last weeks (a third of it at most). A table is made each day at the
hour of the first one, from the counts until then, as a nightly job does; `shift.LevelWatch` follows it hour by hour.
Errors are mean absolute ones of the hours ahead, as ratios to those of the same table without correction.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from nhm_sched_plugin.forecasting import LoadForecaster
from nhm_sched_plugin.forecasting.series import hours
from nhm_sched_plugin.forecasting.shift import DRIFT_LIMIT, Correction, Hour, LevelWatch, corrected

DAY, WEEK, AHEAD = 24, 168, 6
INJECTIONS = {"x2": 2.0, "x0.5": 0.5, "outage": 0.0}
OUTAGE_H = 6
EACH = 12
"""Injections of each kind a series."""


class Table(NamedTuple):
    """Two days of forecast."""

    origin: int
    mean: list[float]
    quantiles: list[list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of NAME.csv files (timestamp,volume); default: flights")
    parser.add_argument("--series", help="only these, separated by commas; default: all but *_5min")
    parser.add_argument("--weeks", type=int, default=8, help="at the end of each series; default: 8")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    results = {name: judge(known, options.weeks) for name, known in series(options.data, options.series)}
    print(json.dumps(results, indent=1) if options.json else text(results))


def series(folder: Path | None, only: str | None) -> Iterator[tuple[str, pd.Series[Any]]]:
    if folder is None:
        from nhm_sched_plugin.demo.flights import flights

        yield "flights", flights().set_index("timestamp").resample("h").size().astype(float)
        return
    for path in sorted(folder.glob("*.csv")):
        if path.stem in only.split(",") if only else not path.stem.endswith("_5min"):
            yield path.stem, hours(pd.read_csv(path, parse_dates=["timestamp"]).set_index("timestamp")["volume"])


def judge(known: pd.Series[Any], weeks: int) -> dict[str, Any]:
    """Every figure of one series."""
    counts = known.to_numpy(dtype=float)
    tables = made(known, len(counts) - min(len(counts) // 3, weeks * WEEK))
    watch, plain, better, kinds, drift = LevelWatch(), [], [], [], 0.0
    for table in tables:
        watch.restart(keep_drift=True)
        for step in range(DAY):
            by = followed(watch, table, step, counts[table.origin + step])
            kinds.append(by.kind)
            drift = max(drift, watch.drift)
            before, after = errors(counts, table, step, by)
            plain.append(before)
            better.append(after)
    ratio = np.nanmean(better, axis=0)[:, 0] / np.nanmean(plain, axis=0)[:, 0]
    alarms = sum(now not in ("none", then) for then, now in zip(["none", *kinds], kinds, strict=False))
    result: dict[str, Any] = {
        "hours": len(kinds),
        "as it is": {f"{lead} h": float(ratio[lead - 1]) for lead in (1, 3, 6)},
        "covers 80 %": [float(np.nanmean(np.array(rows)[:, :, 1]) * 100) for rows in (plain, better)],
        "alarms a week": alarms / len(kinds) * WEEK,
        "drift": drift / DRIFT_LIMIT,
    }
    return result | {name: injected(counts, tables, factor) for name, factor in INJECTIONS.items()}


def made(known: pd.Series[Any], start: int) -> list[Table]:
    fitted = LoadForecaster.fit(known.iloc[:start], country=None)
    tables = []
    for origin in range(start, len(known) - DAY, DAY):
        mean, quantiles = fitted.update(known.iloc[max(origin - 8 * WEEK, 0) : origin]).evaluate(2 * DAY)
        tables.append(Table(origin, mean.tolist(), quantiles.tolist()))
    return tables


def followed(watch: LevelWatch, table: Table, step: int, count: float) -> Correction:
    actual = None if math.isnan(count) else float(count)
    watch.observe(Hour(actual, table.mean[step], table.quantiles[step]))
    return watch.correction()


def errors(counts: np.ndarray, table: Table, step: int, by: Correction) -> tuple[list[Any], list[Any]]:
    """Absolute error, and whether the 80 % interval covers, of each hour ahead: without and with correction."""
    plain, better = [], []
    for lead in range(1, AHEAD + 1):
        at = table.origin + step + lead
        actual = counts[at] if at < len(counts) else math.nan
        mean, quantiles = table.mean[step + lead], table.quantiles[step + lead]
        for rows, centre, levels in ((plain, mean, quantiles), (better, *corrected(mean, quantiles, lead, by))):
            covered = math.nan if math.isnan(actual) else float(levels[1] - 1e-9 <= actual <= levels[3] + 1e-9)
            rows.append((abs(actual - centre), covered))
    return plain, better


def injected(counts: np.ndarray, tables: list[Table], factor: float) -> dict[str, float]:
    """A shift (or an outage of six hours) within a day: when it is noticed, and the errors of the six hours after.

    The table knows nothing of it. The errors are of the forecasts made one to six hours after its beginning.
    """
    noticed, half, plain, better = [], [], 0.0, 0.0
    draw = np.random.default_rng(7)
    last = len(tables) - 2
    days = np.unique(np.linspace(min(3, last), last, EACH).astype(int)) if last >= 1 else np.array([], dtype=int)
    for day in days:
        begins = int(draw.integers(2, DAY - 8))
        watch = LevelWatch()
        for table in tables[:day]:
            watch.restart(keep_drift=True)
            for step in range(DAY):
                followed(watch, table, step, counts[table.origin + step])
        table = tables[day]
        changed = counts.copy()
        at = table.origin + begins
        until = at + OUTAGE_H if factor == 0 else len(changed)
        changed[at:until] = np.round(changed[at:until] * factor)
        wanted = "outage" if factor == 0 else "shift_up" if factor > 1 else "shift_down"
        watch.restart(keep_drift=True)
        first: int | None = None
        moved: int | None = None
        for step in range(begins + AHEAD):
            by = followed(watch, table, step, changed[table.origin + step])
            age = step - begins + 1
            if age < 1:
                continue
            first = age if first is None and by.kind == wanted else first
            there = by.kind == wanted if factor == 0 else by.level * by.left(1) / math.log(factor) >= 0.5
            moved = age if moved is None and there else moved
            before, after = errors(changed, table, step, by)
            plain += float(np.nansum([error for error, _ in before]))
            better += float(np.nansum([error for error, _ in after]))
        noticed.append(first)
        half.append(moved)
    return {
        "noticed within 2 h, %": _soon(noticed),
        "half corrected within 2 h, %": _soon(half),
        "error": better / plain if plain else math.nan,
    }


def _soon(ages: list[int | None]) -> float:
    return float(np.mean([age is not None and age <= 2 for age in ages]) * 100) if ages else math.nan


def text(results: dict[str, Any]) -> str:
    titles = ("1 h", "3 h", "6 h", "80 % covers", "alarms/week", "drift")
    head = f"{'':16}{'hours':>7}" + "".join(f"{title:>13}" for title in titles)
    lines = [
        "As it is: error at 1, 3, 6 h with correction over error without it; then what it does",
        head,
        "-" * len(head),
    ]
    for name, row in results.items():
        ratio = "".join(f"{value:>13.2f}" for value in row["as it is"].values())
        covers = " -> ".join(f"{value:.0f}" for value in row["covers 80 %"])
        lines.append(f"{name:16}{row['hours']:>7}{ratio}{covers:>13}{row['alarms a week']:>13.2f}{row['drift']:>13.2f}")
    head = f"{'':16}" + "".join(f"{name:>10}: noticed  half  error" for name in INJECTIONS)
    lines += [
        "",
        "Put in: noticed and half corrected within two hours (%), error of the next six hours",
        head,
        "-" * len(head),
    ]
    for name, row in results.items():
        lines.append(f"{name:16}" + "".join(_injected_cells(row[kind]) for kind in INJECTIONS))
    every = list(results.values())
    medians = {f"error at {lead}": np.nanmedian([row["as it is"][lead] for row in every]) for lead in ("1 h", "6 h")}
    medians |= {kind: np.nanmedian([row[kind]["error"] for row in every]) for kind in INJECTIONS}
    lines.append("median: " + ", ".join(f"{what} {value:.2f}" for what, value in medians.items()))
    return "\n".join(lines)


def _injected_cells(row: dict[str, float]) -> str:
    noticed, half, error = row.values()
    return f"{noticed:>19.0f}{half:>6.0f}{error:>7.2f}"


if __name__ == "__main__":
    main()
