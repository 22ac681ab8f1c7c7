"""What the optimizer agent takes of a caller, in numbers: far above what any host has to say.

Plain numbers, without the messages that they are about: hosts and commands read them where protobuf is not installed.
"""

from __future__ import annotations

from typing import Any, Final

from nhm_sched_plugin.types import STATE_FIELDS

__all__ = [
    "LONGEST_HORIZON_MINUTES",
    "MOST_ENTRIES",
    "MOST_NAME",
    "MOST_NUMBER",
    "MOST_TEXT",
    "STATE_LIMITS",
    "is_name",
]

LONGEST_HORIZON_MINUTES: Final = 10_080
MOST_NAME: Final = 256
"""Characters of a name: a task type, a decision id, a parameter."""
MOST_TEXT: Final = 2000
"""Characters of a sentence."""
MOST_ENTRIES: Final = 64
"""Entries of a map."""
MOST_NUMBER: Final = 1e15
"""Of a count, and of a feature either way from 0."""
_SHARES: Final = ("sla_compliance_rate", "resource_cpu_avg", "resource_memory_avg")
STATE_LIMITS: Final = {field: 1.0 if field in _SHARES else MOST_NUMBER for field in STATE_FIELDS}
"""The largest number that a field of the state may hold; the smallest is 0."""


def is_name(text: Any) -> bool:
    """Whether a message can hold it as a name: short, and text that UTF-8 can write. Never raises."""
    if not isinstance(text, str) or len(text) > MOST_NAME:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True
