"""One answer to "is this number known?" for everything that reads a state."""

from __future__ import annotations

from decimal import Decimal
from math import isfinite
from numbers import Real
from typing import Any

__all__ = ["known"]

_EXACT = 1 << 53


def known(value: Any) -> float | None:
    """`value` as a finite float; None for None, NaN, infinities, booleans, text and whatever else is no number.

    Real numbers of other libraries (NumPy scalars, fractions, decimals of a database) count as numbers. Never raises.
    """
    if type(value) is float:  # the usual cases, by the cheapest tests
        return value if isfinite(value) else None
    if type(value) is int and -_EXACT <= value <= _EXACT:
        return float(value)
    if value is None or isinstance(value, bool) or not isinstance(value, Real | Decimal):
        return None
    try:
        number = float(value)
    except (OverflowError, ValueError, TypeError):
        return None
    return number if isfinite(number) else None
