"""Classes of tickets: each with its own SLA and priority."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nhm_sched_plugin.twin.labels import Labels
    from nhm_sched_plugin.twin.traces import Trace

__all__ = ["TicketClass", "by_risk_band", "classified"]

_MOST: Final = 255


@dataclass(frozen=True)
class TicketClass:
    """Tickets that share an SLA and a priority. Raises `ValueError` for a wait or weight out of range."""

    name: str
    sla_wait_s: float | None = None
    """A ticket is in time when it starts within this; None: the pool's."""
    weight: float = 1.0
    """Priority gained per second of waiting, > 0; only ratios matter, and equal weights are first come first served."""
    task_type: str | None = None
    """Only tickets of this type; None: of any."""
    risk_band: str | None = None
    """Only tickets in this band; None: in any."""

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ValueError(
                f"class {self.name!r}: weight is {self.weight}; it must be above 0, or its tickets would starve"
            )
        if self.sla_wait_s is not None and not 0 <= self.sla_wait_s < math.inf:
            raise ValueError(f"class {self.name!r}: sla_wait_s is {self.sla_wait_s}; it must be 0 or more")


def by_risk_band(trace: Trace) -> tuple[TicketClass, ...]:
    """A class for each risk band of the trace, of equal weight and with the pool's SLA, and one for tickets without."""
    bands = sorted({band for band in trace.bands.words if band is not None})
    return *(TicketClass(band, risk_band=band) for band in bands), TicketClass("other")


def classified(trace: Trace, classes: Sequence[TicketClass]) -> NDArray[np.uint8]:
    """The class of each ticket: the first that it fits. Raises `ValueError` for tickets that fit none, and for two
    classes of one name."""
    names = [kind.name for kind in classes]
    if len(set(names)) < len(names) or len(names) > _MOST:
        raise ValueError(f"classes need different names, and there may be {_MOST}; these are: {', '.join(names)}")
    found = np.full(len(trace), _MOST, np.uint8)
    for at, kind in enumerate(classes):
        fits = (found == _MOST) & _are(trace.kinds, kind.task_type) & _are(trace.bands, kind.risk_band)
        found[fits] = at
    missing = np.flatnonzero(found == _MOST)
    if len(missing):
        task_type, risk_band = (column.at(int(missing[0])) for column in (trace.kinds, trace.bands))
        raise ValueError(
            f"{len(missing)} tickets fit no class, such as one of task type {task_type!r} and risk band {risk_band!r}; "
            "add a class without either at the end"
        )
    return found


def _are(column: Labels, word: str | None) -> NDArray[np.bool] | bool:
    if word is None:
        return True
    return column.codes == column.words.index(word) if len(column) and word in column.words else False
