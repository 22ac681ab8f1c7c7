"""Where records go: the on-disk spool in the host, ClickHouse behind it, and the way between the two.

Only the spool and the caches are light enough for a host; the rest pulls in the database client and is imported when
used.
`drain(...)` and `ingest(...)` live in the modules of the same name.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from nhm_sched_plugin.store.client import open_store
    from nhm_sched_plugin.store.repository import Store
    from nhm_sched_plugin.store.schema import init
    from nhm_sched_plugin.store.spool import Batch, Spool, SpoolSink

__all__ = ["Batch", "Spool", "SpoolSink", "Store", "init", "open_store"]

_HOMES: Final = {
    "Batch": "spool",
    "Spool": "spool",
    "SpoolSink": "spool",
    "Store": "repository",
    "init": "schema",
    "open_store": "client",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
