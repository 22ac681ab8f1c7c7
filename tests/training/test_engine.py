"""Fan-out over processes and over a Dask cluster; workers that die."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nhm_sched_plugin.errors import TrainingError
from nhm_sched_plugin.settings import ProphetSettings, load_settings
from nhm_sched_plugin.training import engine as module
from nhm_sched_plugin.training import train
from nhm_sched_plugin.training.engine import engine
from nhm_sched_plugin.training.fitting import SliceTask, lost_slice


def load(count: int = 120, level: float = 40.0, seed: int = 1) -> pd.Series:
    index = pd.date_range("2025-01-06", periods=count, freq="h", tz="UTC")
    shape = 1 + 0.6 * np.sin((index.hour - 8) / 24 * 2 * np.pi)
    return pd.Series(np.random.default_rng(seed).poisson(level * shape), index=index, dtype=float)


def tasks(*keys: str) -> list[SliceTask]:
    about: dict[str, Any] = {"horizons": (60,), "country": None, "config": ProphetSettings()}
    return [SliceTask(key=key, series=load(30), max_mape=25.0, now=0.0, **about) for key in keys]


def deadly() -> Any:
    """A function of its own scope travels by value: workers cannot import test modules."""

    def work(task: Any) -> Any:
        import os
        import signal

        from nhm_sched_plugin.training.fitting import Fitted

        if task.key.startswith("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        return Fitted(key=task.key, samples=len(task.series))

    return work


class Workers:
    """Worker processes that somebody starts again when they die, as Kubernetes would."""

    def __init__(self, scheduler: str, number: int) -> None:
        self._command = [sys.executable, "-m", "distributed.cli.dask_worker", scheduler]
        self._command += ["--no-nanny", "--no-dashboard", "--nthreads", "1"]
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._keep) for _ in range(number)]
        for thread in self._threads:
            thread.start()

    def _keep(self) -> None:
        while not self._stopping.is_set():
            process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while process.poll() is None and not self._stopping.wait(0.1):
                pass
            process.kill()
            process.wait()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def scheduler() -> Iterator[str]:
    """A cluster without workers."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=0, dashboard_address=None, silence_logs=50) as made:
        yield made.scheduler_address


@pytest.fixture
def cluster(scheduler: str) -> Iterator[str]:
    workers = Workers(scheduler, 2)
    yield scheduler
    workers.stop()


def test_a_killed_worker_takes_one_slice_with_it() -> None:
    wanted = tasks("a", "killed 1", "b", "c", "d", "e", "f", "killed 2", "g")
    with engine(jobs=2) as pool:
        answers = {answer.key: answer for answer in pool.run(deadly(), wanted, lost_slice)}
    assert set(answers) == {task.key for task in wanted}
    for key, answer in answers.items():
        assert (answer.samples == 30) == (not key.startswith("killed"))
        assert ("its worker process died" in answer.error) == key.startswith("killed")


def test_a_killed_worker_of_a_cluster_likewise(cluster: str) -> None:
    wanted = tasks("a", "killed", "b", "c")
    with engine("dask", scheduler=cluster) as pool:
        answers = {answer.key: answer for answer in pool.run(deadly(), wanted, lost_slice)}
    assert {key for key, answer in answers.items() if answer.error} == {"killed"}
    assert set(answers) == {"a", "killed", "b", "c"}


def test_a_cluster_that_has_lost_its_workers_is_not_waited_for_for_ever(
    scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_DASK_LOOK_S", 0.2)
    workers = Workers(scheduler, 1)
    try:
        with engine("dask", scheduler=scheduler) as pool:
            answers = pool.run(deadly(), tasks("a", "b", "c", "d"), lost_slice)
            next(answers)
            workers.stop()
            monkeypatch.setattr(module, "_DASK_WORKERS_S", 1.0)
            with pytest.raises(TrainingError, match="has had no workers for 1 s"):
                list(pool.run(deadly(), tasks("e"), lost_slice))
    finally:
        workers.stop()


def test_a_cluster_gives_what_this_process_gives(cluster: str, tmp_path: Path) -> None:
    series = {"": load(), "a": load(level=20, seed=2), "b": load(level=20, seed=3), "broken": -load()}
    reports = []
    for name, about in {"here": {"jobs": 1}, "there": {"engine": "dask", "scheduler": cluster}}.items():
        settings = load_settings({"data_dir": str(tmp_path / name), "metrics": {"enabled": False}})
        report = train(settings, series=series, horizons=(60,), clock=lambda: 1.75e9, **about)
        reports.append([(row.name, row.method, row.mape, row.status, row.version) for row in report.rows])
        assert {row.slice for row in report.failed} == {"broken"}
    assert reports[0] == reports[1]


def test_wrong_engines_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*arguments: Any, **about: Any) -> None:
        with engine(*arguments, **about):
            pass

    with pytest.raises(TrainingError, match="'ray' is unknown; known: loky, dask"):
        opened("ray")
    with pytest.raises(TrainingError, match="--engine dask"):
        opened("loky", scheduler="tcp://127.0.0.1:1")
    with pytest.raises(TrainingError, match="--scheduler tcp://HOST:8786"):
        opened("dask")
    monkeypatch.setattr(module, "_DASK_TIMEOUT_S", 0.3)
    with pytest.raises(TrainingError, match=r"127\.0\.0\.1:1 does not answer"):
        opened("dask", scheduler="tcp://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(TrainingError, match=r"nhm-sched-plugin\[training,dask\]"):
        opened("dask", scheduler="tcp://127.0.0.1:1")


def test_workers_import_neither_registry_nor_plots() -> None:
    def work(task: Any) -> Any:
        import sys

        from nhm_sched_plugin.training.fitting import fit_slice

        fitted = fit_slice(task)
        fitted.shortlist = [name for name in ("mlflow", "alembic", "sqlalchemy", "matplotlib") if sys.modules.get(name)]
        return fitted

    (task,) = tasks("a")
    task.series = load(1100)
    with engine(jobs=2) as pool:
        (answer,) = pool.run(work, [task], lost_slice)
    assert answer.error == ""
    assert answer.shortlist == []
    assert answer.peak_mib < 400


def test_what_prophet_hides_is_found_again() -> None:
    from nhm_sched_plugin.training.fitting import _without_drawing

    known = set(sys.modules)
    with _without_drawing():
        pass
    assert known == set(sys.modules)
