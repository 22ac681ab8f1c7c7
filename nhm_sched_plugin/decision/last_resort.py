"""The last resort, in code: what is left when the rule book itself cannot answer."""

from __future__ import annotations

from typing import Final

from nhm_sched_plugin.types import Action, Recommendation

__all__ = ["LAST_RESORT"]

LAST_RESORT: Final = Recommendation(
    action=Action.NO_ACTION,
    confidence=1.0,
    justification="No rule book could be asked; everything stays as it is.",
    source="last_resort",
)
"""Keep things as they are. Needs no file, no library and no state, so nothing can break it."""
