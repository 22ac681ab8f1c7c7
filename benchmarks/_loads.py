"""The loads that policies are measured on: two real traces made heavier, from a folder of the user's, and made ones.

* `bpi13`: the ticket events of Volvo IT (BPI Challenge 2013, `bpi13_volvo_incidents.csv`), 2012-04-16 to 05-12, six
  times: each event and five copies moved by up to a minute; service times lognormal, mean 300 s, sigma 0.8. The first
  12 days train.
* `nasa`: the batch jobs of NASA's iPSC/860 in 1993 (`NASA-iPSC-1993-3.1-cln.swf`, Parallel Workloads Archive), 35 days
  from day 14 on, fifteen times in the same way; its own run times, at least 1 s and at most 7,200 s. The first 21 days
  train.

The copies' moves and the service times are drawn anew for each seed.

Counts in five minutes (`NAME_5min.csv`: timestamp, volume) are loads as well, which nothing here was tuned on: the last
14 days, scaled to 30 Erlangs, arrivals Poisson within five minutes, the service times of bpi13. The first 70 % train.
"""

from __future__ import annotations

import csv
import datetime as dt
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nhm_sched_plugin.twin.loads import LOADS, Load
from nhm_sched_plugin.twin.traces import SERVICE_MEAN_S, SERVICE_SIGMA, Trace, read_csv, read_swf

__all__ = ["Case", "cases", "chosen"]

BPI13, NASA = "bpi13_volvo_incidents.csv", "NASA-iPSC-1993-3.1-cln.swf"
DAY, JITTER_S = 86_400.0, 60.0
SERIES, SLOT_S, SERIES_DAYS, ERLANGS = "_5min.csv", 300.0, 14, 30.0


class Case(NamedTuple):
    """A load with a start-up time."""

    name: str
    load: Load
    startup_s: float
    bursty: bool


def cases(folder: Path | None, series: Path | None = None) -> dict[str, Case]:
    """Every load at the start-up times that it is measured with, by a name such as `nasa/600`; those of `folder` and of
    `series`, one with counts, only where they are given. Raises `SystemExit` for a folder without its files."""
    real = [] if folder is None else [bpi13(folder), nasa(folder)]
    found = [Case(f"{made.name}/120", made, 120.0, made.name != "smooth") for made in (LOADS["smooth"], *real)]
    found += [Case(f"{made.name}/600", made, 600.0, True) for made in real]
    for made in list(LOADS.values())[1:]:
        found += [Case(f"{made.name}/{startup:g}", made, startup, True) for startup in (120.0, 600.0)]
    for counted in [] if series is None else counts(series):
        found += [Case(f"{counted.name}/{startup:g}", counted, startup, True) for startup in (120.0, 600.0)]
    return {case.name: case for case in found}


def chosen(known: dict[str, Case], asked: str | None) -> list[Case]:
    """The cases that were asked for. Raises `SystemExit` for a name that is none."""
    if asked is None:
        return list(known.values())
    found: list[Case] = []
    for name in asked.split(","):
        named = [case for case in known.values() if name in (case.name, case.load.name)]
        if not named:
            raise SystemExit(f"error: no load {name!r}; known: {', '.join(known)} (the real ones need --data)")
        found += named
    return found


def bpi13(folder: Path) -> Load:
    start = dt.datetime(2012, 4, 16, tzinfo=dt.UTC).timestamp()
    return Load("bpi13", "BPI Challenge 2013 x6", partial(_bpi13, _there(folder / BPI13), start), start + 12 * DAY)


def nasa(folder: Path) -> Load:
    path = _there(folder / NASA)
    start = _nasa_jobs(path).start + 14 * DAY
    return Load("nasa", "NASA iPSC/860 x15", partial(_nasa, path, start), start + 21 * DAY)


def counts(folder: Path) -> list[Load]:
    """A load of every file with counts in the folder, in the order of their names."""
    found = sorted(folder.glob(f"*{SERIES}"))
    if not found:
        raise SystemExit(f"{folder}: no file *{SERIES}; --series names a folder that holds counts in five minutes")
    names = [path.name.removesuffix(SERIES) for path in found]
    return [
        Load(name, f"counts of {path.name}", partial(_counted, path)) for name, path in zip(names, found, strict=True)
    ]


def _there(path: Path) -> Path:
    if not path.exists():
        raise SystemExit(f"{path}: no such file; --data names the folder that holds {BPI13} and {NASA}")
    return path


@lru_cache
def _nasa_jobs(path: Path) -> Trace:
    return read_swf(path, max_duration_s=7200.0)


@lru_cache
def _bpi13_events(path: Path) -> Trace:
    return read_csv(path, mapping={"timestamp": "CompleteTimestamp"})


def _nasa(path: Path, start: float, seed: int) -> Trace:
    jobs = _nasa_jobs(path).slice(start, start + 35 * DAY)
    arrivals = _copies(jobs, 15, np.random.default_rng(seed))
    return _trace("nasa", jobs, arrivals, np.tile(np.asarray(jobs.durations), 15))


def _bpi13(path: Path, start: float, seed: int) -> Trace:
    events, draw = _bpi13_events(path).slice(start, start + 26 * DAY), np.random.default_rng(seed)
    arrivals = _copies(events, 6, draw)
    mu = np.log(SERVICE_MEAN_S) - SERVICE_SIGMA**2 / 2
    return _trace("bpi13", events, arrivals, draw.lognormal(mu, SERVICE_SIGMA, len(arrivals)))


def _counted(path: Path, seed: int) -> Trace:
    start, volumes = _volumes(path)
    draw = np.random.default_rng(seed)
    came = draw.poisson(volumes * (ERLANGS / SERVICE_MEAN_S * SLOT_S / volumes.mean()))
    slots = np.repeat(start + SLOT_S * np.arange(len(came)), came)
    arrivals = np.sort(slots + draw.uniform(0.0, SLOT_S, len(slots)))
    mu = np.log(SERVICE_MEAN_S) - SERVICE_SIGMA**2 / 2
    end = start + SLOT_S * len(came)
    durations = draw.lognormal(mu, SERVICE_SIGMA, len(arrivals))
    return Trace(arrivals.tolist(), durations.tolist(), name=path.name.removesuffix(SERIES), start=start, end=end)


@lru_cache
def _volumes(path: Path) -> tuple[float, np.ndarray]:
    """Start of the last days and tickets in each slot from there on; slots without a line have none."""
    with path.open(newline="") as file:
        rows = [
            (dt.datetime.fromisoformat(row["timestamp"]).replace(tzinfo=dt.UTC).timestamp(), float(row["volume"]))
            for row in csv.DictReader(file)
        ]
    end = int(rows[-1][0] // SLOT_S) + 1
    first = max(int(rows[0][0] // SLOT_S), end - int(SERIES_DAYS * DAY / SLOT_S))
    volumes = np.zeros(end - first)
    for moment, volume in rows:
        if moment // SLOT_S >= first:
            volumes[int(moment // SLOT_S) - first] += volume
    return first * SLOT_S, volumes


def _copies(trace: Trace, times: int, draw: np.random.Generator) -> np.ndarray:
    once = np.asarray(trace.arrivals)
    moved = [once + draw.uniform(-JITTER_S, JITTER_S, len(once)) for _ in range(times - 1)]
    return np.clip(np.concatenate([once, *moved]), trace.start, trace.end - 1e-3)


def _trace(name: str, period: Trace, arrivals: np.ndarray, durations: np.ndarray) -> Trace:
    return Trace(arrivals.tolist(), durations.tolist(), name=name, start=period.start, end=period.end)
