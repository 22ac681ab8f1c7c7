"""What happens on the hot path, counted off it: noted in one append, put into the metrics before anybody reads them."""

from __future__ import annotations

import threading
from collections import Counter, deque
from typing import Final

import msgspec

from nhm_sched_plugin.forks import renew_after_fork
from nhm_sched_plugin.observe.metrics import Metrics

__all__ = ["ALL_TASK_TYPES", "Counts", "Noted", "Tally"]

ALL_TASK_TYPES: Final = "all"
"""Label of what concerns every task type together."""


class Noted(msgspec.Struct, frozen=True, gc=False):
    """The label values of one decision."""

    action: str
    source: str
    arm: str
    latency_s: float
    horizon_minutes: int
    forecast: str
    """`served` or `unavailable`."""
    unavailable: str | None = None
    """Why the optimizer had no say; None: it had."""
    recommended: str | None = None
    """The recommended action, if there was one."""
    status: str = ""
    """`accepted`, `rejected` or `shadow`: what became of the recommendation."""


class Tally:
    """Thread-safe. `settle` runs before every reading of the registry, and should run now and then besides."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._noted: deque[Noted] = deque()
        self.note = self._noted.append
        self._lock = threading.Lock()
        metrics.before_reading(self.settle)
        renew_after_fork(self)

    def after_fork(self) -> None:
        """What was noted before is the parent's to count."""
        self._lock = threading.Lock()
        self._noted.clear()

    def settle(self) -> None:
        """Put everything noted so far into the metrics."""
        with self._lock:
            noted = [self._noted.popleft() for _ in range(len(self._noted))]
        counts: Counter[tuple[str, ...]] = Counter()
        latency = self._metrics.child("latency")
        for one in noted:
            latency.observe(one.latency_s)
            counts["decisions", one.action, one.source, one.arm] += 1
            counts["predictions", str(one.horizon_minutes), ALL_TASK_TYPES, one.forecast] += 1
            if one.unavailable is not None:
                counts["unavailable", one.unavailable] += 1
            if one.recommended is not None:
                counts["optimizations", one.recommended, one.status] += 1
        for (attribute, *labels), count in counts.items():
            self._metrics.child(attribute, *labels).inc(count)


class Counts:
    """Of counters and histograms by their row and labels. Thread-safe; `settle` as of `Tally`.

    `count(("rpc_handled", *labels))` counts one.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._counted: deque[tuple[str, ...]] = deque()
        self._observed: dict[tuple[tuple[str, ...], tuple[str, ...]], deque[float]] = {}
        self.count = self._counted.append
        self._lock = threading.Lock()
        metrics.before_reading(self.settle)

    def show(self, *keys: tuple[str, ...]) -> None:
        """From now on, also while there is nothing to count."""
        for attribute, *labels in keys:
            self._metrics.child(attribute, *labels)

    def observed(self, histogram: tuple[str, ...], counter: tuple[str, ...]) -> deque[float]:
        """What is appended is put into the histogram, and counted in the counter; both are shown from now on.

        The same one for the same pair, however often it is asked for.
        """
        self.show(histogram, counter)
        return self._observed.setdefault((histogram, counter), deque())

    def settle(self) -> None:
        """Put everything noted so far into the metrics."""
        child = self._metrics.child
        with self._lock:
            counted = Counter(self._counted.popleft() for _ in range(len(self._counted)))
            for (histogram, counter), values in list(self._observed.items()):
                if number := len(values):  # more may come meanwhile
                    observe = child(*histogram).observe
                    counted[counter] += number
                    for _ in range(number):
                        observe(values.popleft())
        for (attribute, *labels), number in counted.items():
            child(attribute, *labels).inc(number)
