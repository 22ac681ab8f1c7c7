"""Fan-out over worker processes, here (loky) or on a Dask cluster. A worker that dies takes nothing else with it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from nhm_sched_plugin.errors import TrainingError

__all__ = ["ENGINES", "Engine", "Task", "engine"]

ENGINES: Final = ("loky", "dask")
_DASK_TIMEOUT_S: Final = 10.0
_DASK_WORKERS_S: Final = 60.0
"""How long a cluster may be without any."""
_DASK_LOOK_S: Final = 5.0
_WATCH_S: Final = 2.0


class Task(Protocol):
    """A piece of work; `key` says which, also in its answer."""

    @property
    def key(self) -> str: ...


_T = TypeVar("_T", bound=Task)
_R = TypeVar("_R", bound=Task)
_Make = Callable[[], Any]


class Engine:
    """Does tasks in parallel: in this process, or in what `parallel` makes. Made by `engine`."""

    def __init__(self, parallel: _Make | None = None) -> None:
        self._parallel = parallel

    def run(self, work: Callable[[_T], _R], tasks: Sequence[_T], lost: Callable[[_T, str], _R]) -> Iterator[_R]:
        """Answers as they get ready. `work` must not raise; where its process dies, `lost(task, why)` answers.

        joblib stops everything when a worker dies (out of memory, a crash in a library). So what was under way is done
        again, one task at a time: the one that kills its worker once more is the lost one, and the others go on.
        Raises `TrainingError` when no worker can be had.
        """
        if self._parallel is None:
            yield from map(work, tasks)
            return
        left = {task.key: task for task in tasks}
        while left:
            begun: list[str] = []
            try:
                for answer in self._answers(work, list(left.values()), begun):
                    del left[answer.key]
                    yield answer
            except Exception as error:  # noqa: BLE001 - loky's, dask's or pickle's: no answer will come from this pool
                suspects = [left[key] for key in begun if key in left]
                if not suspects:
                    raise TrainingError(f"no workers to train with: {_said(error)}") from None
                for task in suspects:
                    del left[task.key]
                    yield self._alone(work, task, lost)

    def _answers(self, work: Callable[[_T], _R], tasks: Sequence[_T], begun: list[str]) -> Iterator[_R]:
        from joblib import delayed

        assert self._parallel is not None  # noqa: S101 - the caller's promise

        def calls() -> Iterator[Any]:
            for task in tasks:
                begun.append(task.key)
                yield delayed(work)(task)

        yield from self._parallel()(calls())

    def _alone(self, work: Callable[[_T], _R], task: _T, lost: Callable[[_T, str], _R]) -> _R:
        try:
            return next(iter(self._answers(work, [task], [])))
        except Exception as error:  # noqa: BLE001 - as above, and now it is known whose fault it is
            return lost(task, _died(error))


class _Processes(Engine):
    """On processes of this machine, which do not outlive this one: a killed parent cannot send them home."""

    def _answers(self, work: Callable[[_T], _R], tasks: Sequence[_T], begun: list[str]) -> Iterator[_R]:
        return super()._answers(partial(_attended, os.getpid(), work), tasks, begun)


def _attended(parent: int, work: Callable[[_T], _R], task: _T) -> _R:
    """In a worker: do the task, and see to it that the worker ends when its parent does."""
    name = "nhm-sched-parent"
    if all(thread.name != name for thread in threading.enumerate()):
        threading.Thread(target=_end_with, args=(parent,), name=name, daemon=True).start()
    return work(task)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCH_S)
    os._exit(1)


class _Cluster(Engine):
    """On the workers of a Dask cluster. joblib's own backend for Dask waits for ever when a worker has died."""

    def __init__(self, client: Any, slots: int) -> None:
        super().__init__()
        self._client = client
        self._slots = slots

    def run(self, work: Callable[[_T], _R], tasks: Sequence[_T], lost: Callable[[_T, str], _R]) -> Iterator[_R]:
        """As above. Dask blames a task for the death of its worker after the fourth; what waited there with it, too."""
        suspects: list[_T] = []
        yield from self._some(work, tasks, self._slots, lambda task, _: suspects.append(task))
        yield from self._some(work, suspects, 1, lost)

    def _some(
        self, work: Callable[[_T], _R], tasks: Sequence[_T], slots: int, died: Callable[[_T, str], _R | None]
    ) -> Iterator[_R]:
        from distributed import wait

        waiting, under_way = iter(tasks), {}

        def send() -> None:
            task = next(waiting, None)
            if task is not None:
                under_way[self._client.submit(work, task, pure=False)] = task

        for _ in range(slots):
            send()
        while under_way:
            ready = self._patiently(partial(wait, list(under_way), return_when="FIRST_COMPLETED")).done
            for future in ready:
                task = under_way.pop(future)
                # Where the answer got lost with a worker it is made once more.
                error = self._patiently(future.exception)
                answer = self._patiently(future.result) if error is None else died(task, _died(error))
                send()
                if answer is not None:
                    yield answer

    def _patiently(self, asked: Callable[..., Any]) -> Any:
        """The answer, however long it takes while there are workers; Dask itself would wait for new ones for ever."""
        last_seen = time.monotonic()
        while True:
            try:
                with self._client.as_current():
                    return asked(timeout=_DASK_LOOK_S)
            except CancelledError:
                raise TrainingError("the Dask cluster is gone; the same command goes on from here") from None
            except TimeoutError:
                if self._client.ncores():
                    last_seen = time.monotonic()
                elif time.monotonic() - last_seen > _DASK_WORKERS_S:
                    raise TrainingError(
                        f"the Dask cluster has had no workers for {_DASK_WORKERS_S:.0f} s; start some, and the same"
                        " command goes on from here"
                    ) from None


def _died(error: BaseException) -> str:
    return f"its worker process died ({_said(error)})"


def _said(error: BaseException) -> str:
    """The first line: joblib's texts go on with advice to programmers."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


@contextmanager
def engine(name: str = "loky", jobs: int = 2, scheduler: str | None = None) -> Iterator[Engine]:
    """`loky`: `jobs` processes on this machine (1: in this process). `dask`: the workers of a cluster, all of them.

    Tasks travel a few at a time, so that neither side holds more than it works on.
    Raises `TrainingError` for an unknown engine, a missing extra or address, or a scheduler that does not answer.
    """
    if name not in ENGINES:
        raise TrainingError(f"engine {name!r} is unknown; known: {', '.join(ENGINES)}")
    if name == "dask":
        with _dask(scheduler) as made:
            yield made
        return
    if scheduler is not None:
        raise TrainingError(f"a scheduler ({scheduler}) is for the engine dask; add --engine dask")
    if jobs == 1:
        yield Engine()
        return
    from joblib import Parallel

    yield _Processes(
        lambda: Parallel(
            n_jobs=jobs, backend="loky", return_as="generator_unordered", pre_dispatch="2*n_jobs", batch_size=1
        )
    )


@contextmanager
def _dask(scheduler: str | None) -> Iterator[Engine]:
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise TrainingError(
            f"the engine dask needs {error.name}; run: pip install 'nhm-sched-plugin[training,dask]'"
        ) from None
    if not scheduler:
        raise TrainingError("the engine dask needs the address of its scheduler: --scheduler tcp://HOST:8786")
    try:
        client: Any = Client(scheduler, timeout=_DASK_TIMEOUT_S, set_as_default=False)  # type: ignore[no-untyped-call]
    except Exception as error:  # noqa: BLE001 - addresses, sockets, certificates: whatever keeps it from answering
        raise TrainingError(f"the Dask scheduler {scheduler} does not answer ({_said(error)})") from None
    with client:
        try:
            client.wait_for_workers(1, timeout=_DASK_WORKERS_S)
        except Exception as error:  # noqa: BLE001 - its own kind of timeout
            raise TrainingError(f"the Dask scheduler {scheduler} has no workers ({_said(error)})") from None
        yield _Cluster(client, 2 * sum(client.ncores().values()))
