"""The state of a model version: read, checked against the digest in its tags, and cached by that digest.

So a cached state is as good as its tag says, whoever wrote it into the cache.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from nhm_sched_plugin.errors import ModelError
from nhm_sched_plugin.store.cache import Cache

if TYPE_CHECKING:
    from nhm_sched_plugin.training.versions import ModelVersion

__all__ = ["DIGEST_TAG", "read_state"]

_log = logging.getLogger(__name__)
DIGEST_TAG: Final = "sha256"


def read_state(found: ModelVersion, load: Callable[[], bytes], cache: Cache | None) -> dict[str, Any]:
    """The JSON state; `load` reads it from where it is kept. Raises `ModelError` if that fails or is damaged."""
    raw = _checked(found, load) if cache is None else _cached(found, load, cache)
    state: dict[str, Any] = json.loads(raw)
    return state


def _cached(found: ModelVersion, load: Callable[[], bytes], cache: Cache) -> bytes:
    digest = found.tags.get(DIGEST_TAG, "")
    raw = cache.fetch("model", digest, lambda: _checked(found, load))
    if hashlib.sha256(raw).hexdigest() != digest:
        _log.warning("%s version %s: its cached state does not match its digest", found.name, found.version)
        raw = _checked(found, load)
        cache.put("model", digest, raw)
    return raw


def _checked(found: ModelVersion, load: Callable[[], bytes]) -> bytes:
    try:
        raw = load()
    except Exception as error:  # noqa: BLE001 - files, network: whatever the artefacts live on
        raise ModelError(
            f"{found.name} version {found.version}: cannot read its state ({error}); train it anew"
        ) from None
    if hashlib.sha256(raw).hexdigest() != found.tags.get(DIGEST_TAG):
        raise ModelError(f"{found.name} version {found.version}: its state does not match its digest; train it anew")
    return raw
