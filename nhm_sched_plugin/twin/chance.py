"""Random numbers inside a simulation, compiled.

G. Steele, D. Lea, C. Flood (2014), "Fast splittable pseudorandom number generators": SplitMix64. Its state is one
number, so that a simulation can be copied, and it gives the same numbers with every version of every library.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from nhm_sched_plugin.twin.compiled import inner

__all__ = ["uniform"]

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX_1: Final = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2: Final = np.uint64(0x94D049BB133111EB)
_30, _27, _31, _11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)


@inner
def uniform(random: Any, stream: int) -> float:
    """In (0, 1]."""
    random[stream] += _GOLDEN
    mixed = random[stream]
    mixed = (mixed ^ (mixed >> _30)) * _MIX_1
    mixed = (mixed ^ (mixed >> _27)) * _MIX_2
    mixed = mixed ^ (mixed >> _31)
    return (float(mixed >> _11) + 1.0) * 2.0**-53
