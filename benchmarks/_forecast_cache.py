"""Forecasts kept on disk, so that a benchmark of hours can be interrupted, extended and repeated.

One file per series and method: `FOLDER/SERIES/METHOD.npz`, a row per origin. A row is good as long as the series, the
hours ahead and the method's number are the same; what else the benchmark did or how many origins it had is no matter,
since a rival learns anew at each origin.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from nhm_sched_plugin.forecasting.intervals import LEVELS
from nhm_sched_plugin.forecasting.scores import Forecasts

__all__ = ["Shelf", "key_of"]


def key_of(known: pd.Series, *about: object) -> str:
    """What the rows of a file depend on."""
    digest = hashlib.sha256(known.to_numpy(dtype=float).tobytes())
    digest.update(repr((str(known.index[0]), *about)).encode())
    return digest.hexdigest()[:16]


@dataclass
class Shelf:
    """The rows of one series and method, by origin."""

    path: Path
    key: str
    steps: int
    rows: dict[int, tuple[np.ndarray, np.ndarray, float, float]] = field(default_factory=dict)
    """Mean, quantiles (NaN where the method has none), seconds of the fit and of the forecast."""

    @classmethod
    def open(cls, folder: Path, series: str, method: str, key: str, steps: int) -> Shelf:
        """What is there already; nothing where the file is another's, damaged or missing."""
        shelf = cls(folder / series / f"{method}.npz", key, steps)
        try:
            with np.load(shelf.path, allow_pickle=False) as kept:
                if str(kept["key"]) == key:
                    columns = (kept[name] for name in ("origins", "mean", "quantiles", "fit", "ask"))
                    shelf.rows = {int(o): (m, q, float(f), float(a)) for o, m, q, f, a in zip(*columns, strict=True)}
        except (OSError, KeyError, ValueError):
            pass
        return shelf

    def missing(self, origins: np.ndarray) -> list[int]:
        return [int(origin) for origin in origins if int(origin) not in self.rows]

    def add(self, origins: list[int], forecasts: Forecasts) -> None:
        """Take rows in and write the file anew, as a whole or not at all."""
        nothing = np.full((len(origins), self.steps, len(LEVELS)), np.nan)
        quantiles = nothing if forecasts.quantiles is None else forecasts.quantiles
        for origin, mean, row in zip(origins, forecasts.mean, quantiles, strict=True):
            self.rows[origin] = (mean, row, forecasts.fit_seconds, forecasts.predict_seconds)
        order = sorted(self.rows)
        columns = [np.array(column) for column in zip(*(self.rows[origin] for origin in order), strict=True)]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(f".{os.getpid()}.tmp.npz")
        names = ("mean", "quantiles", "fit", "ask")
        np.savez_compressed(fresh, key=self.key, origins=np.array(order), **dict(zip(names, columns, strict=True)))
        fresh.replace(self.path)

    def forecasts(self, origins: np.ndarray) -> Forecasts:
        """Rows of these origins. Raises KeyError for one that is missing."""
        mean, quantiles, fit, ask = (np.array(part) for part in zip(*(self.rows[int(o)] for o in origins), strict=True))
        return Forecasts(mean, None if np.isnan(quantiles).all() else quantiles, float(fit.mean()), float(ask.mean()))
