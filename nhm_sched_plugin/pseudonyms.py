"""Values that are written down as keyed hashes only: `recording.hash_fields`.

The same value gives the same hash under the same key, so that a ticket's records still join with each other, and
nobody without the key can tell whose they are, or try out names. BLAKE2b in its keyed mode (RFC 7693), 128 bits.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final, TypeVar

import msgspec

from nhm_sched_plugin.errors import ConfigError
from nhm_sched_plugin.settings import RecordingSettings
from nhm_sched_plugin.types import Decision, RewardedOutcome

__all__ = ["Pseudonyms", "pseudonyms"]

_SHORTEST: Final = 16
_LONGEST: Final = 64  # of a BLAKE2b key; of a longer file the first bytes count
_Struct = TypeVar("_Struct", bound=msgspec.Struct)


class Pseudonyms:
    """Replaces the fields of a record. Thread-safe."""

    def __init__(self, fields: tuple[str, ...], key: bytes) -> None:
        self.fields = fields
        self._key = key[:_LONGEST]

    def of(self, value: str) -> str:
        """32 hexadecimal digits that stand for the value."""
        return blake2b(value.encode("utf-8", "surrogatepass"), digest_size=16, key=self._key).hexdigest()

    def __call__(self, record: Decision | RewardedOutcome) -> Decision | RewardedOutcome:
        """The record as it may be written down."""
        if isinstance(record, Decision):
            return self._replaced(record)
        return msgspec.structs.replace(record, outcome=self._replaced(record.outcome))

    def _replaced(self, values: _Struct) -> _Struct:
        found = {name: getattr(values, name, None) for name in self.fields}
        hidden = {name: self.of(str(value)) for name, value in found.items() if value is not None}
        return msgspec.structs.replace(values, **hidden) if hidden else values


def pseudonyms(settings: RecordingSettings) -> Pseudonyms | None:
    """What the settings ask for; None: nothing is hashed. Raises `ConfigError` for a key that cannot be used."""
    if not settings.hash_fields or settings.hash_key_file is None:
        return None
    place = f"recording.hash_key_file = {settings.hash_key_file}"
    try:
        key = settings.hash_key_file.read_bytes().strip(b"\r\n")
    except OSError as error:
        raise ConfigError([f"{place}: cannot be read ({error.strerror or error})"]) from None
    if len(key) < _SHORTEST:
        raise ConfigError(
            [f"{place}: holds {len(key)} bytes, at least {_SHORTEST} are needed; make one with: "
             "head -c 32 /dev/urandom > FILE"]
        )  # fmt: skip
    return Pseudonyms(settings.hash_fields, key)
