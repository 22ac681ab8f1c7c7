"""Failures inside the plugin: counted every time, logged once per cause, never raised into the host."""

from __future__ import annotations

import logging
import re
import threading
from typing import Final

from nhm_sched_plugin.forks import renew_after_fork
from nhm_sched_plugin.observe.metrics import Metrics

__all__ = ["Faults"]

logger = logging.getLogger("nhm_sched_plugin")

_REMEMBERED: Final = 1000
_NUMBER: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|0x[0-9a-f]+|\d+(\.\d+)?")


class Faults:
    """Where every swallowed exception goes. `component` is a metric label: keep it to a handful of names."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._seen: dict[tuple[str, str], int] = {}
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        self._lock = threading.Lock()

    def report(self, component: str, error: BaseException | str) -> None:
        """Count a failure of a component; the first of its cause is logged as a warning, repeats for debugging only."""
        self._metrics.child("component_errors", component).inc()
        self.log(component, error)

    def hook(self, hook_name: str, plugin_name: str, error: BaseException) -> None:
        """Count a failure of somebody's hook under its own metric."""
        self._metrics.child("hook_errors", hook_name, plugin_name).inc()
        self.log(f"hook {hook_name} of {plugin_name}", error)

    def log(self, what: str, error: BaseException | str) -> None:
        cause = error if isinstance(error, str) else _described(error)
        # Durations, counters, addresses and query ids differ from time to time; the cause is the same.
        key = what, _NUMBER.sub("#", cause)
        with self._lock:
            if len(self._seen) >= _REMEMBERED:
                self._seen.clear()
            count = self._seen[key] = self._seen.get(key, 0) + 1
        trace = error if isinstance(error, BaseException) else None
        if count == 1:
            logger.warning("%s failed: %s (repeats are counted, not logged)", what, cause, exc_info=trace)
        else:
            logger.debug("%s failed again (%d times): %s", what, count, cause)


def _described(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - somebody's exception whose own text fails
        return type(error).__name__
