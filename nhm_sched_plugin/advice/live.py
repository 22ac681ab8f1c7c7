"""Feeds the arrivals of this host to the forecast that it serves, once a minute of its clock, in the background."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from nhm_sched_plugin.forecasting.live import LiveForecast, SliceLive
from nhm_sched_plugin.forks import renew_after_fork

if TYPE_CHECKING:
    from nhm_sched_plugin.advice.arrivals import ArrivalCounter
    from nhm_sched_plugin.forecasting.table import SnapshotForecaster
    from nhm_sched_plugin.settings import Settings

__all__ = ["LiveFeed"]


class LiveFeed:
    """Compares what came with what the table said, and has the forecaster serve the table corrected by that.

    Thread-safe. `ml.forecasting.live: off` makes it do nothing.
    """

    def __init__(
        self, settings: Settings, forecaster: SnapshotForecaster, arrivals: ArrivalCounter, clock: Callable[[], float]
    ) -> None:
        mode = settings.ml.forecasting.live
        self._forecaster, self._arrivals, self._clock = forecaster, arrivals, clock
        self._on = mode != "off"
        self._live = LiveForecast(settings.retrain_path, sees_all=mode == "whole")
        self._lock = threading.Lock()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """A child has its own share of the tickets; what it learned of them before says nothing."""
        self._lock = threading.Lock()
        self._live.forget()

    def follow(self) -> None:
        """Bring the served forecast up to date, if a minute has passed or the table is a new one.

        Raises OSError when a request for a retrain cannot be written; everything else is done by then.
        """
        table = self._forecaster.table
        if not self._on or table is None:
            return
        now = self._clock()
        with self._lock:
            if self._live.due(now, table):
                corrections = self._live.update(now, table, *self._arrivals.hours(now))
                self._forecaster.correct(table, corrections, self._live.describe())
                self._live.ask_for_retrain(now)

    @property
    def slices(self) -> Mapping[str, SliceLive]:
        """What is known of each followed slice, by its key."""
        with self._lock:
            return self._live.slices
