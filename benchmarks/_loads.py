"""The loads that policies are measured on: two real traces made heavier, from a folder of the user's, and made ones.

* `bpi13`: the ticket events of Volvo IT (BPI Challenge 2013, `bpi13_volvo_incidents.csv`), 2012-04-16 to 05-12, six
  times: each event and five copies moved by up to a minute; service times lognormal, mean 300 s, sigma 0.8. The first
  12 days train.
* `nasa`: the batch jobs of NASA's iPSC/860 in 1993 (`NASA-iPSC-1993-3.1-cln.swf`, Parallel Workloads Archive), 35 days
  from day 14 on, fifteen times in the same way; its own run times, at least 1 s and at most 7,200 s. The first 21 days
  train.

The copies' moves and the service times are drawn anew for each seed.
"""

from __future__ import annotations

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


class Case(NamedTuple):
    """A load with a start-up time."""

    name: str
    load: Load
    startup_s: float
    bursty: bool


def cases(folder: Path | None) -> dict[str, Case]:
    """Every load at the start-up times that it is measured with, by a name such as `nasa/600`; those of `folder` only
    where one is given. Raises `SystemExit` for a folder without the two files."""
    real = [] if folder is None else [bpi13(folder), nasa(folder)]
    found = [Case(f"{made.name}/120", made, 120.0, made.name != "smooth") for made in (LOADS["smooth"], *real)]
    found += [Case(f"{made.name}/600", made, 600.0, True) for made in real]
    for made in list(LOADS.values())[1:]:
        found += [Case(f"{made.name}/{startup:g}", made, startup, True) for startup in (120.0, 600.0)]
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


def _copies(trace: Trace, times: int, draw: np.random.Generator) -> np.ndarray:
    once = np.asarray(trace.arrivals)
    moved = [once + draw.uniform(-JITTER_S, JITTER_S, len(once)) for _ in range(times - 1)]
    return np.clip(np.concatenate([once, *moved]), trace.start, trace.end - 1e-3)


def _trace(name: str, period: Trace, arrivals: np.ndarray, durations: np.ndarray) -> Trace:
    return Trace(arrivals.tolist(), durations.tolist(), name=name, start=period.start, end=period.end)
