"""Loads made for replays, harder than they look, that need no data: `nhm-sched replay --load NAME`.

Each draws its tickets anew for every seed: arrivals are Poisson within a minute, at a rate that follows a day's curve
and then is disturbed. What is disturbed in the replayed part was seen in the training part too, at other times, except
in `regime`. Service times are lognormal (sigma 0.8, mean 300 s) where nothing else is said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, NamedTuple

from nhm_sched_plugin.twin.classes import TicketClass
from nhm_sched_plugin.twin.traces import SERVICE_MEAN_S, SERVICE_SIGMA, Trace, TraceError

__all__ = ["LOADS", "Load", "load"]

_DAY: Final = 86_400.0
_MINUTES: Final = 1440
_START: Final = 19_723 * _DAY
"""2024-01-01, a Monday."""


class Load(NamedTuple):
    """Tickets for any seed."""

    name: str
    about: str
    make: Callable[[int], Trace]
    """The trace for a seed; must be importable by its name where several processes work."""
    cut: float | None = None
    """Unix seconds at which the training part ends; None: a share of the time does."""
    drawn: bool = True
    """Whether seeds differ."""
    classes: tuple[TicketClass, ...] = ()
    """Of tickets with SLAs of their own, of equal priority where they say nothing else."""

    def parts(self, seed: int, train_fraction: float = 0.7) -> tuple[Trace, Trace]:
        """The training part and the rest, for a seed. Raises `TraceError` for a fraction outside (0, 1)."""
        trace = self.make(seed)
        if self.cut is None:
            return trace.split(train_fraction)
        return trace.slice(trace.start, self.cut), trace.slice(self.cut, trace.end)

    @classmethod
    def fixed(cls, trace: Trace) -> Load:
        """The same tickets for every seed."""
        return cls(trace.name, "", partial(_same, trace), drawn=False)


def _same(trace: Trace, seed: int) -> Trace:
    return trace


def load(name: str) -> Load:
    """A load of `LOADS`. Raises `TraceError` for another name."""
    if name not in LOADS:
        raise TraceError(f"no load {name!r}; known: {', '.join(LOADS)}")
    return LOADS[name]


def _day_curve(days: int, per_minute: float, swing: float, peak_hour: float = 14.0) -> Any:
    """Tickets per minute, for every minute: a sine around `per_minute`, up and down by the share `swing`."""
    import numpy as np

    minutes = np.arange(days * _MINUTES)
    return per_minute * (1 + swing * np.cos(2 * math.pi * (minutes / _MINUTES - peak_hour / 24)))


def _arrivals(rate: Any, draw: Any) -> Any:
    import numpy as np

    counts = draw.poisson(rate)
    return np.sort(_START + np.repeat(60.0 * np.arange(len(rate)), counts) + draw.uniform(0, 60, counts.sum()))


def _lognormal(count: int, draw: Any, mean_s: float = SERVICE_MEAN_S) -> Any:
    return draw.lognormal(math.log(mean_s) - SERVICE_SIGMA**2 / 2, SERVICE_SIGMA, count)


def _trace(name: str, days: int, arrivals: Any, durations: Any, kinds: list[str] | None = None) -> Trace:
    end = _START + days * _DAY
    inside = arrivals < end
    if kinds is not None:
        kinds = [kind for kind, kept in zip(kinds, inside.tolist(), strict=True) if kept]
    return Trace(
        arrivals[inside].tolist(),
        durations[inside].tolist(),
        task_types=kinds or (),
        name=name,
        start=_START,
        end=end,
    )


def _smooth(seed: int) -> Trace:
    import numpy as np

    draw = np.random.default_rng(seed)
    arrivals = _arrivals(_day_curve(6, 20.0, 0.6), draw)
    return _trace("smooth", 6, arrivals, draw.exponential(SERVICE_MEAN_S, len(arrivals)))


def _flash(seed: int) -> Trace:
    """Two crowds a day on average: four to ten times the usual rate within two minutes, gone within an hour."""
    import numpy as np

    draw = np.random.default_rng(seed)
    days = 10
    rate = _day_curve(days, 4.0, 0.5)
    for begins in draw.integers(0, days * _MINUTES, 2 * days):
        age = np.arange(min(180, days * _MINUTES - begins))
        crowd = np.minimum(age / 2, 1.0) * np.exp(-np.maximum(age - 2, 0) / draw.uniform(5, 20))
        rate[begins : begins + len(age)] += 4.0 * draw.uniform(3, 9) * crowd
    arrivals = _arrivals(rate, draw)
    return _trace("flash", days, arrivals, _lognormal(len(arrivals), draw))


def _regime(seed: int) -> Trace:
    """Nothing of it was seen before: on the first replayed day the level doubles; 36 hours later it halves and the
    day's peak comes eight hours later."""
    import numpy as np

    draw = np.random.default_rng(seed)
    days, trained = 14, 10
    rate, later = _day_curve(days, 6.0, 0.5), _day_curve(days, 6.0, 0.5, peak_hour=22.0)
    up = trained * _MINUTES + int(draw.integers(6 * 60, 18 * 60))
    down = up + 36 * 60
    rate[up:down] *= draw.uniform(1.8, 2.6)
    rate[down:] = later[down:] * draw.uniform(0.4, 0.6)
    arrivals = _arrivals(rate, draw)
    return _trace("regime", days, arrivals, _lognormal(len(arrivals), draw))


def _outage(seed: int) -> Trace:
    """Once in a day or so nothing arrives for one to three hours; then all of it does, within ten minutes."""
    import numpy as np

    draw = np.random.default_rng(seed)
    days = 10
    arrivals = _arrivals(_day_curve(days, 4.0, 0.5), draw)
    for day in range(days):
        begins = _START + day * _DAY + draw.uniform(0, _DAY - 4 * 3600)
        back = begins + draw.uniform(3600, 3 * 3600)
        held = (arrivals >= begins) & (arrivals < back)
        arrivals[held] = back + draw.uniform(0, 600, int(held.sum()))
    arrivals = np.sort(arrivals)
    return _trace("outage", days, arrivals, _lognormal(len(arrivals), draw))


def _two_types(seed: int) -> Trace:
    """`fast` tickets of a minute on a day's curve, and batches of `slow` ones of a quarter of an hour."""
    import numpy as np

    draw = np.random.default_rng(seed)
    days = 10
    fast = _arrivals(_day_curve(days, 10.0, 0.6), draw)
    batches = _arrivals(_day_curve(days, 1 / 30, 0.9, peak_hour=3.0), draw)
    sizes = draw.integers(5, 60, len(batches))
    slow = np.repeat(batches, sizes) + draw.uniform(0, 120, sizes.sum())
    kinds = ["fast"] * len(fast) + ["slow"] * len(slow)
    durations = np.concatenate([_lognormal(len(fast), draw, 60.0), _lognormal(len(slow), draw, 900.0)])
    return _trace("two-types", days, np.concatenate([fast, slow]), durations, kinds)


def _made(name: str, make: Callable[[int], Trace], trained_days: int, about: str, **more: Any) -> Load:
    return Load(name, about, make, cut=_START + trained_days * _DAY, **more)


LOADS: Final[Mapping[str, Load]] = {
    made.name: made
    for made in (
        _made("smooth", _smooth, 4, "a day's curve of 20 tickets a minute, exponential service: easy for everyone"),
        _made("flash", _flash, 7, "flash crowds: up to ten times the load within two minutes"),
        _made("regime", _regime, 10, "a regime change: the level doubles, halves, and the day shifts"),
        _made("outage", _outage, 7, "outages of the source, each with a catch-up burst"),
        _made(
            "two-types",
            _two_types,
            7,
            "fast tickets that may wait 30 s among batches of slow ones that may wait 300 s",
            classes=(
                TicketClass("fast", sla_wait_s=30.0, task_type="fast"),
                TicketClass("slow", sla_wait_s=300.0, task_type="slow"),
            ),
        ),
    )
}
"""The loads by name."""
