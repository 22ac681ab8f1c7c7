"""Outcomes on their way to the learner: one thread writes, and takes whatever has come meanwhile as one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import grpc

from nhm_sched_plugin.agent.interceptors import Refusal
from nhm_sched_plugin.agent.learner import Learner, Recorded
from nhm_sched_plugin.background import Pool
from nhm_sched_plugin.errors import LedgerError
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.types import Experience

__all__ = ["Outcomes"]

_MOST_WAITING: Final = 10_000
_NOT_WRITTEN: Final = "the outcome could not be written; the agent's log says why. Send it again later"
_Waiting = tuple[Experience, "asyncio.Future[Recorded]"]


class Outcomes:
    """Lives on one event loop. `record` comes back when the outcome is safe."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._learner: Learner | None = None
        self._ready = asyncio.Event()
        self._waiting: list[_Waiting] = []
        self._writer: asyncio.Task[None] | None = None
        self._thread = Pool(1, "nhm-sched-ledger", wait_in_line=True)

    def use(self, learner: Learner | None) -> None:
        """From now on outcomes go there; those that came before have waited for it. None: there is nobody."""
        self._learner = learner
        self._ready.set()

    async def record(self, experience: Experience) -> Recorded:
        """Raises `Refusal`: UNAVAILABLE when it could not be written, RESOURCE_EXHAUSTED when too many wait for that.

        The caller may send it again later.
        """
        if len(self._waiting) >= _MOST_WAITING:
            details = "too many outcomes wait for the agent's disk; try again later"
            raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, details, decision_id=experience.decision_id)
        await self._ready.wait()
        future: asyncio.Future[Recorded] = asyncio.get_running_loop().create_future()
        self._waiting.append((experience, future))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())
        return await future

    async def close(self) -> None:
        """Wait until what has come is written."""
        writer = self._writer
        if writer is not None:
            await writer
        self._thread.close()

    async def _write(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                answers = await asyncio.wrap_future(self._thread.submit(self._recorded, [one for one, _ in batch]))
                for (_, future), answer in zip(batch, answers, strict=True):
                    if future.done():  # the caller has gone; its outcome counts all the same
                        continue
                    if isinstance(answer, Refusal):
                        future.set_exception(answer)
                    else:
                        future.set_result(answer)
        finally:
            self._writer = None

    def _recorded(self, batch: Sequence[Experience]) -> list[Recorded | Refusal]:
        """Together, or one by one where that fails: one outcome must not cost the others theirs."""
        if self._learner is None:
            return [_refusal(one, "the agent has no policy that could learn") for one in batch]
        try:
            return list(self._learner.record(batch))
        except LedgerError as error:  # the disk, which refuses all alike
            self._faults.report("learner", error)
            return [_refusal(one, _NOT_WRITTEN) for one in batch]
        except Exception as error:  # noqa: BLE001 - something about one of them
            if len(batch) == 1:
                self._faults.report("learner", error)
                return [_refusal(batch[0], _NOT_WRITTEN)]
        return [answer for one in batch for answer in self._recorded([one])]


def _refusal(experience: Experience, details: str) -> Refusal:
    return Refusal(grpc.StatusCode.UNAVAILABLE, details, decision_id=experience.decision_id)
