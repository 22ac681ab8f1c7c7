"""How one record is written down: a small self-describing frame around a msgpack body.

    magic (4 bytes) | kind (1) | body length (4) | created, Unix seconds (8) | crc32 (4) | body

The checksum covers kind, length, stamp and body. The magic lets `scan` find whole records in a file whose structure is
lost. msgpack rather than JSON because a forecast may hold NaN, which JSON turns into null, and null is no float.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Iterator
from typing import Final, Literal

import msgspec

from nhm_sched_plugin.types import Decision, Experience, RewardedOutcome

__all__ = [
    "HEADER_BYTES",
    "Kind",
    "Record",
    "check",
    "decode",
    "decode_experience",
    "describe",
    "encode",
    "kind_of",
    "record_id",
    "scan",
]

Record = Decision | RewardedOutcome
"""What a spool holds, on its way to the database. An outbox holds experiences, on their way to an agent."""
Kind = Literal["decision", "outcome", "experience"]

_MAGIC: Final = b"NHM\x01"
_HEADER: Final = struct.Struct("<4sBIdI")
HEADER_BYTES: Final = _HEADER.size
_CODES: Final[dict[Kind, int]] = {"decision": 1, "outcome": 2, "experience": 3}
_KINDS: Final[dict[int, Kind]] = {code: kind for kind, code in _CODES.items()}
_LARGEST: Final = 64 * 1024 * 1024

_encoder = msgspec.msgpack.Encoder()
_decisions: Final = msgspec.msgpack.Decoder(Decision)
_outcomes: Final = msgspec.msgpack.Decoder(RewardedOutcome)
_experiences: Final = msgspec.msgpack.Decoder(Experience)


def kind_of(record: Record | Experience) -> Kind:
    """The table a record belongs to. Raises `TypeError` for anything that is no record."""
    if isinstance(record, Decision):
        return "decision"
    if isinstance(record, RewardedOutcome):
        return "outcome"
    if isinstance(record, Experience):
        return "experience"
    raise TypeError(f"a {type(record).__name__} is no record: expected Decision, RewardedOutcome or Experience")


def record_id(record: Record | Experience) -> str:
    """The decision's id: a decision is recorded once, and so is what came of it."""
    return record.outcome.decision_id if isinstance(record, RewardedOutcome) else record.decision_id


def _crc(code: int, created: float, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(struct.pack("<BdI", code, created, len(body))))


def encode(record: Record | Experience, created: float) -> bytes:
    """The frame of a record. Raises `TypeError`, `ValueError` or `OverflowError` when it cannot be written down."""
    code = _CODES[kind_of(record)]
    body = _encoder.encode(record)
    return _HEADER.pack(_MAGIC, code, len(body), created, _crc(code, created, body)) + body


def check(frame: bytes) -> tuple[Kind, float, bytes]:
    """Kind, created stamp and body of a whole and undamaged frame. Raises `ValueError` that says what is wrong."""
    if len(frame) < _HEADER.size:
        raise ValueError(f"cut off after {len(frame)} bytes")
    magic, code, length, created, crc = _HEADER.unpack_from(frame)
    if magic != _MAGIC or code not in _KINDS:
        raise ValueError("not a record")
    body = frame[_HEADER.size :]
    if len(body) != length:
        raise ValueError(f"{len(body)} of {length} bytes are there")
    if _crc(code, created, body) != crc:
        raise ValueError("the checksum does not match")
    return _KINDS[code], created, body


def decode(frame: bytes) -> tuple[Record, float]:
    """The record and its created stamp. Unknown fields (of a newer version) are skipped, missing ones get defaults.

    Raises `ValueError` (`msgspec.ValidationError` is one) that says what is wrong.
    """
    kind, created, body = check(frame)
    try:
        if kind == "decision":
            return _decisions.decode(body), created
        if kind == "outcome":
            return _outcomes.decode(body), created
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None
    raise ValueError(f"{kind}: does not belong here")


def decode_experience(frame: bytes) -> Experience:
    """As `decode`, for what an outbox holds."""
    kind, _, body = check(frame)
    if kind != "experience":
        raise ValueError(f"{kind}: does not belong here")
    try:
        return _experiences.decode(body)
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None


def describe(frame: bytes) -> tuple[str, str]:
    """Kind and record id as far as they can be read; empty texts where not."""
    try:
        kind, _, _ = check(frame)
        return kind, record_id(decode_experience(frame) if kind == "experience" else decode(frame)[0])
    except ValueError:
        return "", ""


def scan(blob: bytes | mmap.mmap) -> Iterator[bytes]:
    """Every whole, undamaged frame in a blob of bytes, wherever it stands."""
    at = blob.find(_MAGIC)
    while at >= 0:
        end = at + 1
        if at + _HEADER.size <= len(blob):
            length = _HEADER.unpack_from(blob, at)[2]
            if length <= _LARGEST:
                frame = blob[at : at + _HEADER.size + length]
                try:
                    check(frame)
                except ValueError:
                    pass
                else:
                    yield frame
                    end = at + len(frame)
        at = blob.find(_MAGIC, end)
