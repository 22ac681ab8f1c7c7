"""How many workers the pool will need when one ordered now can start: a calibrated model of the next minutes.

The hourly forecast knows the day; bursts live in minutes. So the calibrated planner looks at what is in the system now
(busy workers plus waiting tickets, L) and at the tickets of the last 15 s to one hour:

    need = L (1 + w1) + w0 + w2 sqrt(L)                             what is there, with room for chance
           + sum over windows w of beta_w (n_w - w L / S)           the trend: arrivals beyond those that sustain L
           + sum over windows w of gamma_w sqrt(n_w)                room that grows with the traffic
           + delta_60 surge_60 + delta_120 surge_120                flash crowds: more than chance explains
           + rho max(0, a - L)                                      the rise that the hourly forecast expects
    and at least
           min(L, n_3600 S / 3600) + kappa c                        the crowd that came at this time on other days

S is the mean service time, a the forecast's offered load at the lead time in Erlangs, c the crowd ahead in tickets in
five minutes (`policy.crowds`), which need kappa workers each - not kappa S: of a crowd the short ones end first, so the
measured S falls when it begins. In a steady state n_w = w L / S
(Little's law), so every trend term is 0 there whatever its coefficient: the model is right at any volume, also at one
it was never fitted on. The square roots are those of square-root staffing (Halfin & Whitt 1981); surge_w is what
exceeds the expected arrivals by three standard deviations of counts with the load's own index of dispersion (Cox &
Lewis 1966). The coefficients are fitted in the twin (`twin/calibrate.py`) to the least cost of workers and lateness.

`needed` and its helpers are plain arithmetic on numbers, so that the twin compiles the very same code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from nhm_sched_plugin.errors import ModelError
from nhm_sched_plugin.files import read_file, replace_file
from nhm_sched_plugin.policy.crowds import AHEAD

__all__ = ["ARRIVED", "COEFFICIENTS", "WINDOWS_S", "DemandModel", "expected", "needed"]

WINDOWS_S: Final = (15.0, 60.0, 120.0, 300.0, 900.0, 3600.0)
"""Seconds over which arrivals are counted, in the order of `needed`'s arguments."""
ARRIVED: Final = {
    "arrivals_15s": 15.0,
    "arrivals_60s": 60.0,
    "arrivals_120s": 120.0,
    "arrivals_300s": 300.0,
    "arrivals_900s": 900.0,
    "arrivals_last_hour": 3600.0,
}
"""The state's features that hold those counts."""
COEFFICIENTS: Final = (
    "constant",
    "in_system",
    "root_in_system",
    "trend_15s",
    "trend_60s",
    "trend_120s",
    "trend_300s",
    "trend_900s",
    "root_60s",
    "root_300s",
    "root_900s",
    "root_3600s",
    "surge_60s",
    "surge_120s",
    "rise",
    "crowd",
)
"""Names of the coefficients, in order. Of `in_system`, `rise` and `crowd` only the size counts: they never lower the
need."""
VERSION: Final = 2
"""Of the file. Version 1 knew no crowds and had one coefficient less."""
_SURPRISE: Final = 3.0
_MOST: Final = 1e12
"""Tickets. A count beyond it, or below 0, is no measurement."""


def expected(in_system: float, last_hour: float, window_s: float, service_s: float) -> float:
    """Tickets that are no surprise in a window: what sustains the load, or the last hour's pace, and one."""
    return max(window_s / service_s * in_system, last_hour * window_s / 3600.0) + 1.0


def needed(
    in_system: float,
    n15: float,
    n60: float,
    n120: float,
    n300: float,
    n900: float,
    n3600: float,
    service_s: float,
    offered: float,
    crowd: float,
    dispersion: float,
    w: Any,
) -> float:
    """Workers needed at the lead time, not rounded; never fewer than are in the system now.

    `in_system` and `n15`... are counts, `service_s` seconds > 0, `offered` Erlangs at the lead time (NaN: no forecast),
    `crowd` tickets in five minutes beyond the usual ones (0: none), `dispersion` variance over mean of counts, `w` the
    `COEFFICIENTS` (any indexable).
    """
    pace = in_system / service_s
    over60 = n60 - 60.0 * pace - _SURPRISE * math.sqrt(dispersion * expected(in_system, n3600, 60.0, service_s))
    over120 = n120 - 120.0 * pace - _SURPRISE * math.sqrt(dispersion * expected(in_system, n3600, 120.0, service_s))
    need: float = in_system + w[0] + abs(w[1]) * in_system + w[2] * math.sqrt(in_system)
    need += w[3] * (n15 - 15.0 * pace) + w[4] * (n60 - 60.0 * pace) + w[5] * (n120 - 120.0 * pace)
    need += w[6] * (n300 - 300.0 * pace) + w[7] * (n900 - 900.0 * pace)
    need += w[8] * math.sqrt(n60) + w[9] * math.sqrt(n300) + w[10] * math.sqrt(n900) + w[11] * math.sqrt(n3600)
    need += w[12] * max(0.0, over60) + w[13] * max(0.0, over120)
    if offered > in_system:  # not for NaN
        need += abs(w[14]) * (offered - in_system)
    if crowd > 0.0:
        need = max(need, min(in_system, n3600 * service_s / 3600.0) + abs(w[15]) * crowd)
    return max(need, in_system)


class DemandModel(msgspec.Struct, frozen=True, kw_only=True):
    """The fitted coefficients, and what they were fitted for. Kept as JSON, written by `nhm-sched learn`."""

    coefficients: tuple[float, ...]
    dispersion: float
    """Variance over mean of the tickets in a minute, given the hour around it (>= 1)."""
    startup_s: float
    sla_wait_s: float
    late_cost: float
    """What a late ticket was taken to cost, in tickets' worth of work."""
    service_s: float
    """Mean service time of the tickets it was fitted on."""
    tickets: int
    """Tickets it was fitted on."""
    start: float
    """Unix seconds: the first of them came after it,"""
    end: float
    """and the last before this."""
    sla: float
    """Share in time on those tickets under this planner, in [0, 1]."""
    cost: float
    """Worker-seconds there, over those of the clairvoyant oracle."""
    crowds: tuple[tuple[int, float], ...] = ()
    """Of the last days of those tickets, see `Crowds.seen`: a host begins with them."""
    version: int = 1
    """`VERSION`, of the file that it was read from; without one it is of the first."""

    def needed(self, in_system: float, features: Mapping[str, float], service_s: float, offered: float | None) -> float:
        """See the module's `needed`. A count that `features` lacks, or that is no count, is that of a steady state."""
        n15, n60, n120, n300, n900, n3600 = [
            count if 0.0 <= (count := features.get(name, -1.0)) < _MOST else window / service_s * in_system
            for name, window in ARRIVED.items()
        ]
        level, crowd = math.nan if offered is None else offered, features.get(AHEAD, 0.0)
        if not crowd < _MOST:
            crowd = 0.0
        return needed(
            in_system, n15, n60, n120, n300, n900, n3600, service_s, level, crowd, self.dispersion, self.coefficients
        )

    def save(self, path: Path) -> None:
        """Write the file atomically and durably. Raises `ModelError` when it cannot be written."""
        try:
            replace_file(path, msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")
        except OSError as error:
            raise ModelError(f"{path}: cannot be written ({error.strerror or error})") from None

    @classmethod
    def load(cls, path: Path) -> DemandModel:
        """The model in the file. Raises `FileNotFoundError` when there is none, else `ModelError` with the fix."""
        return cls.parse(read_file(path), str(path))

    @classmethod
    def parse(cls, raw: bytes, name: str) -> DemandModel:
        """The model in `raw`. Raises `ModelError` that names `name` and the fix."""
        try:
            model = msgspec.json.decode(raw, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ModelError(f"{name}: is not a calibrated planner ({error}); run `nhm-sched learn` again") from None
        if model.version == 1 and len(model.coefficients) == len(COEFFICIENTS) - 1:
            model = msgspec.structs.replace(model, coefficients=(*model.coefficients, 0.0))
        numbers = (*model.coefficients, model.dispersion, model.startup_s, model.sla_wait_s, model.late_cost)
        if len(model.coefficients) != len(COEFFICIENTS) or not all(map(math.isfinite, numbers)):
            raise ModelError(
                f"{name}: holds {len(model.coefficients)} coefficients or a number that is not finite; expected"
                f" {len(COEFFICIENTS)} finite ones; run `nhm-sched learn` again"
            )
        if not (model.dispersion > 0 and model.startup_s >= 0 and model.sla_wait_s >= 0 and model.service_s >= 0):
            raise ModelError(f"{name}: holds a time or a dispersion below 0; run `nhm-sched learn` again")
        return model
