"""Variations of a trace to calibrate on: more of the same, and bursts that its own history may not have shown.

A planner fitted to one history alone fits its volume and its luck. `overlaid` is a busier organisation of the same
kind; `with_flash_crowds` adds what breaks SLAs in practice - a sudden crowd many times the usual peak (Jung,
Krishnamurthy, Rabinovich 2002, "Flash crowds and denial of service attacks", WWW '02: a steep ramp, a plateau of
minutes, a decay).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from nhm_sched_plugin.twin.traces import Trace

__all__ = ["overlaid", "with_flash_crowds"]

_DAY: Final = 86_400.0
_STEP_S: Final = 15.0
_PER_DAY: Final = 0.25
"""Flash crowds a day."""
_PEAK: Final = (1.0, 4.0)
"""Their height, times the mean of the busiest thousandth of the minutes."""
_RAMP_S: Final = (120.0, 300.0)
_PLATEAU_S: Final = (300.0, 1200.0)


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
    minutes = np.bincount(((trace.arrivals - trace.start) // 60).astype(np.int64))
    peak = float(np.sort(minutes)[-max(1, len(minutes) // 1000) :].mean())
    arrivals, durations = [trace.arrivals], [trace.durations]
    for _ in range(max(1, round(_PER_DAY * (trace.end - trace.start) / _DAY))):
        ramp, plateau = draw.uniform(*_RAMP_S), draw.uniform(*_PLATEAU_S)
        rate = peak * draw.uniform(*_PEAK) / 60.0
        steps = np.arange(0.0, plateau + 2 * ramp, _STEP_S)
        height = np.clip(np.minimum(steps / ramp, (plateau + 2 * ramp - steps) / ramp), 0.0, 1.0)
        counts = draw.poisson(rate * height * _STEP_S)
        at = np.repeat(steps, counts) + draw.uniform(0.0, _STEP_S, counts.sum())
        at += draw.uniform(trace.start, max(trace.start, trace.end - steps[-1] - _STEP_S))
        arrivals.append(at)
        durations.append(draw.choice(trace.durations, len(at)))
    at = np.concatenate(arrivals)
    inside = at < trace.end
    return Trace(at[inside], np.concatenate(durations)[inside], name=trace.name, start=trace.start, end=trace.end)
