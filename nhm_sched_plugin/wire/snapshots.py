"""The content of a policy snapshot: the Q-table's file and the planner's, which belong together, as one.

    {"format": "nhm-sched-policy-snapshot", "version": 1, "q_table": <the file's JSON>, "planner": <its JSON or null>}

Both stay byte for byte what they were, so each keeps its own digest. A forecast snapshot is the table's file as it is.
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from nhm_sched_plugin.errors import ModelError

__all__ = ["FORMAT", "VERSION", "etag", "pack_policy", "unpack_policy"]

FORMAT: Final = "nhm-sched-policy-snapshot"
VERSION: Final = 1
_NO_PLANNER: Final = b"null"


class _Packed(msgspec.Struct, kw_only=True):
    format: str = FORMAT
    version: int = VERSION
    q_table: msgspec.Raw
    planner: msgspec.Raw = msgspec.Raw(_NO_PLANNER)


def pack_policy(q_table: bytes, planner: bytes | None) -> bytes:
    """The snapshot's content, from the content of the two files; None where there is no planner's.

    Raises `ModelError` for files that hold no JSON.
    """
    try:
        parts = [
            msgspec.json.decode(raw, type=msgspec.Raw) for raw in (q_table, _NO_PLANNER if planner is None else planner)
        ]
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ModelError(f"the policy's files cannot be handed on: they hold no JSON ({error})") from None
    return msgspec.json.encode(_Packed(q_table=parts[0], planner=parts[1]))


def unpack_policy(content: bytes) -> tuple[bytes, bytes | None]:
    """The content of the Q-table's file and of the planner's. Raises `ModelError` for anything else.

    What is in the files is for their readers to check.
    """
    try:
        packed = msgspec.json.decode(content, type=_Packed)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ModelError(f"the policy snapshot cannot be read ({error})") from None
    if packed.format != FORMAT or packed.version != VERSION:
        told = f"{packed.format!r} version {packed.version}"
        raise ModelError(f"the policy snapshot is {told}; expected {FORMAT!r} version {VERSION}: upgrade the older end")
    planner = bytes(packed.planner)
    return bytes(packed.q_table), None if planner == _NO_PLANNER else planner


def etag(content: bytes) -> str:
    """Equal etags mean equal content: SHA-256, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
