"""Everything this package raises on purpose.

    NhmSchedError
    ├── ConfigError        a setting is unknown, of the wrong type or out of range
    ├── RuleBookError      a rule book cannot be used: file, line and rule
    ├── ModelError         a saved forecaster, table or Q-table cannot be read
    ├── StoreError         the records database cannot be reached or upgraded
    ├── SpoolError         the on-disk spool cannot be used
    │   └── SpoolFullError   it has reached its limit
    ├── LedgerError        the agent's ledger of outcomes cannot be used
    ├── IngestError        a history file cannot be read as asked
    ├── RegistryError      a model name, version or alias does not fit
    ├── TrainingError      a training cannot be run as asked
    ├── HookError          a plugin or drop-in file is not usable
    └── AgentUnavailableError  the optimizer agent gives no usable answer, or none in time

None of them ever reaches the orchestrator through `decide()`, `applied()` or `finished()`.
"""

from __future__ import annotations

__all__ = [
    "AgentUnavailableError",
    "ConfigError",
    "HookError",
    "IngestError",
    "LedgerError",
    "ModelError",
    "NhmSchedError",
    "RegistryError",
    "RuleBookError",
    "SpoolError",
    "SpoolFullError",
    "StoreError",
    "TrainingError",
]


class NhmSchedError(Exception):
    """Base of every error raised here; its text is fit for a user to read."""


class ConfigError(NhmSchedError):
    """A setting cannot be used. `problems` holds one line per wrong key: key, value, what is allowed."""

    def __init__(self, problems: list[str], source: str = "configuration") -> None:
        self.problems = problems
        self.source = source
        super().__init__(f"{source}: " + "; ".join(problems))


class RuleBookError(NhmSchedError):
    """A rule book cannot be used. Carries `file`, `line` (1-based) and `rule` where known."""

    def __init__(self, message: str, *, file: str, line: int | None = None, rule: str | None = None) -> None:
        self.file, self.line, self.rule = file, line, rule
        where = file if line is None else f"{file}:{line}"
        super().__init__(f"{where}: rule {rule!r}: {message}" if rule else f"{where}: {message}")


class ModelError(NhmSchedError):
    """A saved model, forecast table or Q-table is unreadable, of another version or fails its digest."""


class StoreError(NhmSchedError):
    """The records database cannot be reached, opened or migrated."""


class SpoolError(NhmSchedError):
    """The on-disk spool cannot be opened or written."""


class SpoolFullError(SpoolError):
    """The on-disk spool has reached `recording.spool_max_mb`; nothing was written."""


class LedgerError(NhmSchedError):
    """The agent's ledger of outcomes cannot be opened or written; nothing of the call was recorded, so try it again."""


class IngestError(NhmSchedError):
    """A history file lacks a column, has an unknown format or holds nothing usable."""


class RegistryError(NhmSchedError):
    """A registered model, version or alias is missing, or a promotion criterion is not met."""


class TrainingError(NhmSchedError):
    """A training cannot be run as asked: no such engine, no workers, a missing extra."""


class HookError(NhmSchedError):
    """A plugin or drop-in file cannot be loaded or breaks a hook's contract."""


class AgentUnavailableError(NhmSchedError):
    """The optimizer agent gave no usable answer.

    `reason` is the gRPC status (`UNAVAILABLE`, `DEADLINE_EXCEEDED`, ...), or `breaker_open` (no address is being asked
    for now), `starting`, `no_time` (nothing left of the budget), `garbage` (an answer that makes no sense),
    `credentials` or `forked`; `details` is the message without it.
    """

    def __init__(self, reason: str, message: str) -> None:
        self.reason, self.details = reason, message
        super().__init__(f"the optimizer agent is not available ({reason}): {message}")
