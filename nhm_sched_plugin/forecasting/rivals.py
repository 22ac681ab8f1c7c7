"""Rivals from statsforecast, to compare with and for nothing else: the package itself never needs them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from nhm_sched_plugin.errors import ModelError
from nhm_sched_plugin.forecasting.evaluation import Answer, Ask, Method
from nhm_sched_plugin.forecasting.models.base import WEEK
from nhm_sched_plugin.forecasting.series import Floats

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["auto_arima", "known_values", "mstl", "seasonal_naive", "statsforecast_rivals"]

_DAY: Final = 24
_ORDER: Final = ("lo-95", "lo-80", "mean", "hi-80", "hi-95")
"""Of statsforecast's answers, as LEVELS go."""


def auto_arima(known: pd.Series[float], steps: int) -> Answer:
    """AutoARIMA, season 24, on the last three weeks.

    With its own approximation and orders up to 3 (1 seasonal): the full search takes 100 s a fit on eight weeks.
    """
    from statsforecast.models import AutoARIMA

    model = AutoARIMA(season_length=_DAY, approximation=True, max_p=3, max_q=3, max_P=1, max_Q=1)
    return _asked(model, known_values(known, 3 * WEEK), steps)


def mstl(known: pd.Series[float], steps: int) -> Answer:
    """MSTL, seasons 24 and 168 (24 alone below two weeks), on the last eight weeks."""
    from statsforecast.models import MSTL

    values = known_values(known, 8 * WEEK)
    return _asked(MSTL(season_length=[_DAY, WEEK] if len(values) >= 2 * WEEK else _DAY), values, steps)


def seasonal_naive(known: pd.Series[float], steps: int) -> Answer:
    """SeasonalNaive: the same hour a week ago (a day ago where there is no week), on the last eight weeks."""
    from statsforecast.models import SeasonalNaive

    values = known_values(known, 8 * WEEK)
    return _asked(SeasonalNaive(WEEK if len(values) > WEEK else _DAY), values, steps)


def statsforecast_rivals() -> list[Method]:
    """All of them, learning anew at every origin. Raises `ModelError` where statsforecast is not installed."""
    if importlib.util.find_spec("statsforecast") is None:
        raise ModelError(
            "--rivals needs statsforecast, which is not installed; run: pip install 'statsforecast>=2.1' "
            "(in an environment of its own: it may hold pandas at an older version)"
        )
    rivals = {"auto_arima": auto_arima, "mstl": mstl, "seasonal_naive_168": seasonal_naive}
    return [Method(name, _Refitted(ask), None) for name, ask in rivals.items()]


class _Refitted:
    """Learns when it is asked: a rival that is handed over once an origin."""

    def __init__(self, ask: Callable[[pd.Series[float], int], Answer]) -> None:
        self._ask = ask

    def __call__(self, known: pd.Series[float], /) -> Ask:
        return self._ask


def known_values(known: pd.Series[float], window: int) -> Floats:
    """The last `window` counts, every gap filled: most rivals take none."""
    values = known.iloc[-window:].interpolate(limit_direction="both")
    return np.nan_to_num(np.asarray(values, dtype=np.float64))


def _asked(model: Any, values: Floats, steps: int) -> Answer:
    answer = model.forecast(y=values, h=steps, level=[80, 95])
    rows = np.maximum(np.column_stack([answer[name] for name in _ORDER]), 0.0)
    return Answer(np.maximum(answer["mean"], 0.0), rows)
