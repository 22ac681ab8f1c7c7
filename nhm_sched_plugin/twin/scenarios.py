"""Variations of a trace to calibrate on: more of the same, and bursts that its own history may not have shown.

A planner fitted to one history alone fits its volume and its luck. `overlaid` is a busier organisation of the same
kind; `with_flash_crowds` adds what breaks SLAs in practice - a sudden crowd many times the usual peak (Jung,
Krishnamurthy, Rabinovich 2002, "Flash crowds and denial of service attacks", WWW '02: a steep ramp, a plateau of
minutes, a decay); with `with_daily_crowds` such crowds come back at about the same time of the day.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from nhm_sched_plugin.twin.traces import Trace

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["overlaid", "with_daily_crowds", "with_flash_crowds"]

_DAY: Final = 86_400.0
_STEP_S: Final = 15.0
_PER_DAY: Final = 0.25
"""Flash crowds a day."""
_PEAK: Final = (1.0, 4.0)
"""Their height, times the mean of the busiest thousandth of the minutes."""
_RAMP_S: Final = (120.0, 300.0)
_PLATEAU_S: Final = (300.0, 1200.0)
_RUN_EVERY_DAYS: Final = 12.0
_RUN_DAYS: Final = (5, 10)
_MISSED: Final = 0.2
_UNLIKE: Final = 0.4
"""Standard deviation of the logarithm of a height."""
_UNPUNCTUAL_S: Final = 240.0
"""Standard deviation of the time."""


def overlaid(trace: Trace, copies: int, shift_days: int = 2) -> Trace:
    """The trace with itself moved by whole days (round and round) on top, so that `copies` are there in all.

    Hours of the day stay what they are; weekdays mix. A trace of less than three days is doubled by half its length.
    """
    length = trace.end - trace.start
    shift = shift_days * _DAY if length > shift_days * _DAY else length / 2
    arrivals = [trace.start + (trace.arrivals - trace.start + copy * shift) % length for copy in range(copies)]
    return Trace(
        np.concatenate(arrivals), np.tile(trace.durations, copies), name=trace.name, start=trace.start, end=trace.end
    )


def with_flash_crowds(trace: Trace, seed: int) -> Trace:
    """The trace with a flash crowd every four days on average (at least one), of tickets like its own."""
    draw = np.random.default_rng(seed)
    peak = _peak(trace)
    crowds = []
    for _ in range(max(1, round(_PER_DAY * (trace.end - trace.start) / _DAY))):
        ramp, plateau = draw.uniform(*_RAMP_S), draw.uniform(*_PLATEAU_S)
        at = _crowd(draw, peak * draw.uniform(*_PEAK) / 60.0, ramp, plateau)
        at += draw.uniform(trace.start, max(trace.start, trace.end - plateau - 2 * ramp - _STEP_S))
        crowds.append(at)
    return _with(trace, crowds, draw)


def with_daily_crowds(trace: Trace, seed: int) -> Trace:
    """The trace with crowds that come back: a run of days on end with one at about the same time, as a nightly job or
    the start of a shift makes it; one run begins every twelve days (at least one).

    On a day in five it does not come. Heights differ from day to day, times by a few minutes.
    """
    draw = np.random.default_rng([seed, 1])
    peak, days = _peak(trace), (trace.end - trace.start) / _DAY
    crowds = []
    for _ in range(max(1, round(days / _RUN_EVERY_DAYS))):
        first, time = int(draw.uniform(0.0, 0.4 * days)), draw.uniform(0.0, _DAY)
        rate = peak * draw.uniform(*_PEAK) / 60.0
        ramp, plateau = draw.uniform(*_RAMP_S), draw.uniform(*_PLATEAU_S)
        for day in range(first, min(math.ceil(days), first + int(draw.integers(*_RUN_DAYS)))):
            if draw.random() < _MISSED:
                continue
            at = _crowd(draw, rate * draw.lognormal(0.0, _UNLIKE), ramp, plateau)
            crowds.append(at + trace.start + day * _DAY + time + draw.normal(0.0, _UNPUNCTUAL_S))
    return _with(trace, crowds, draw)


def _peak(trace: Trace) -> float:
    """Tickets in a minute: the mean of the busiest thousandth of the minutes."""
    minutes = np.bincount(((trace.arrivals - trace.start) // 60).astype(np.int64))
    return float(np.sort(minutes)[-max(1, len(minutes) // 1000) :].mean())


def _crowd(draw: np.random.Generator, rate: float, ramp_s: float, plateau_s: float) -> NDArray[np.float64]:
    """Seconds from its start at which a crowd's tickets come, `rate` of them a second at its height."""
    length = plateau_s + 2 * ramp_s
    steps = np.arange(0.0, length, _STEP_S)
    height = np.clip(np.minimum(steps / ramp_s, (length - steps) / ramp_s), 0.0, 1.0)
    counts = draw.poisson(rate * height * _STEP_S)
    at: NDArray[np.float64] = np.repeat(steps, counts) + draw.uniform(0.0, _STEP_S, counts.sum())
    return at


def _with(trace: Trace, crowds: list[NDArray[np.float64]], draw: np.random.Generator) -> Trace:
    """The trace and the crowds, as far as they are inside its time; their tickets are like its own."""
    durations = [trace.durations, *(draw.choice(trace.durations, len(crowd)) for crowd in crowds)]
    at = np.concatenate([trace.arrivals, *crowds])
    inside = (at >= trace.start) & (at < trace.end)
    inside[: len(trace)] = True
    return Trace(at[inside], np.concatenate(durations)[inside], name=trace.name, start=trace.start, end=trace.end)
