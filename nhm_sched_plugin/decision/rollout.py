"""Which units follow the policy: a stable hash puts each into one of 10,000 buckets.

The bucket depends on the salt and the unit alone, so a unit stays where it is (sticky) and raising the percentage
only adds units (monotone). BLAKE2b (RFC 7693) with a 128-bit digest: the same in every process and on every platform,
unlike Python's `hash`.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from nhm_sched_plugin.types import Arm, Reason, Ticket

if TYPE_CHECKING:
    from nhm_sched_plugin.settings import ExperimentSettings, RolloutSettings

__all__ = ["BUCKETS", "arm", "assign", "bucket", "unit_id"]

BUCKETS: Final = 10_000
NO_TASK_TYPE: Final = "(no task type)"
_TREATED: Final = (Arm.TREATMENT, None)


def bucket(salt: str, unit: str) -> int:
    """The bucket of a unit, in [0, 10000): BLAKE2b-128 of `salt:unit`, big-endian, modulo 10,000."""
    digest = blake2b(f"{salt}:{unit}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return int.from_bytes(digest, "big") % BUCKETS


def unit_id(unit: str, ticket: Ticket | None, now: float, block_minutes: int) -> str:
    """What is assigned to an arm as a whole.

    `ticket`: the ticket's id. `task_type`: its task type; tickets without one form one unit. `switchback`: the block
    of `block_minutes` that `now` (Unix seconds) falls into, counted from 1970. A control tick (no ticket) acts on the
    whole pool, so it always goes by its switchback block.
    """
    if unit == "switchback" or ticket is None:
        return f"block:{int(now // (block_minutes * 60))}"
    if unit == "task_type":
        return ticket.task_type or NO_TASK_TYPE
    return ticket.ticket_id


def assign(percentage: int, in_bucket: int) -> bool:
    """Whether a bucket is inside a rollout of `percentage` (0 to 100): the first `percentage * 100` buckets are."""
    return in_bucket < percentage * (BUCKETS // 100)


def arm(
    rollout: RolloutSettings, experiment: ExperimentSettings, ticket: Ticket | None, now: float
) -> tuple[Arm, Reason | None]:
    """The arm of this decision, and the reason why the policy is not followed (None in the treatment arm).

    A running experiment takes its control group from the units inside the rollout, by a second hash (salt
    `<salt>:experiment`) that is independent of the first.
    """
    if rollout.percentage <= 0:
        return Arm.SHADOW, Reason.SHADOW
    unit = unit_id(rollout.unit, ticket, now, rollout.block_minutes)
    if rollout.percentage < 100 and not assign(rollout.percentage, bucket(rollout.salt, unit)):
        return Arm.CONTROL, Reason.NOT_IN_ROLLOUT
    if experiment.enabled:
        control_buckets = round(experiment.control_group_pct * BUCKETS)
        if bucket(f"{rollout.salt}:experiment", unit) < control_buckets:
            return Arm.CONTROL, Reason.CONTROL_GROUP
    return _TREATED
