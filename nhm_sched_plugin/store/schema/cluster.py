"""The same statements for a cluster: on all of its servers, with replicated tables.

`ml.clickhouse.cluster` names the cluster. One shard with any number of replicas: what belongs to one decision has to be
in one place to be replaced and joined. The macro `{replica}` has to be defined on each server, as usual.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["on_cluster", "replicated"]

_OBJECT: Final = re.compile(
    r"^(\s*(?:CREATE DATABASE IF NOT EXISTS|CREATE TABLE IF NOT EXISTS|CREATE OR REPLACE VIEW|ALTER TABLE)\s+[\w.]+)"
)
_ENGINE: Final = re.compile(r"\bENGINE = (\w*MergeTree)(?:\((\w*)\))?")
_PLACE: Final = "'/clickhouse/tables/{uuid}/{shard}', '{replica}'"


def on_cluster(statement: str, cluster: str | None) -> str:
    """A statement of the schema as it is for a cluster; as it was without one."""
    if cluster is None:
        return statement
    changed, found = _OBJECT.subn(rf"\1 ON CLUSTER '{cluster}'", statement)
    if not found:
        raise ValueError(f"no statement of the schema: {statement[:60]!r}")
    return _ENGINE.sub(_replicated, changed)


def _replicated(found: re.Match[str]) -> str:
    arguments = ", ".join(part for part in (_PLACE, found.group(2)) if part)
    return f"ENGINE = {replicated(found.group(1))}({arguments})"


def replicated(engine: str) -> str:
    """Name of the engine that keeps the same table on several servers."""
    return f"Replicated{engine}"
