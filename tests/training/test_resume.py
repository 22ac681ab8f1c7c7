"""A training that was interrupted goes on from there, and nothing stale is ever used."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nhm_sched_plugin.errors import TrainingError
from nhm_sched_plugin.settings import Settings, load_settings
from nhm_sched_plugin.training import train
from nhm_sched_plugin.training.fitting import Fitted
from nhm_sched_plugin.training.journal import Journal, digest_of

SCRIPT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job, as these tests may be, ignores it
import numpy as np, pandas as pd
import msgspec
from nhm_sched_plugin.settings import load_settings
from nhm_sched_plugin.training import train

def main():
    index = pd.date_range("2025-01-06", periods=110, freq="h", tz="UTC")
    rng = np.random.default_rng(1)
    series = {f"t{i}": pd.Series(rng.poisson(40, 110).astype(float), index=index) for i in range(12)}
    settings = load_settings({"data_dir": sys.argv[1], "metrics": {"enabled": False}})
    def told(done, total, what):
        print("done", done, flush=True)
        if sys.argv[2] == "slowly":
            time.sleep(0.3)  # the parent is slow, so that it can be stopped half-way
    try:
        report = train(settings, series=series, horizons=(60,), jobs=2, progress=told)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.exit(1)
    print(msgspec.json.encode(report).decode(), flush=True)

if __name__ == "__main__":
    main()
"""


def load(count: int, level: float = 40.0, seed: int = 1) -> pd.Series:
    index = pd.date_range("2025-01-06", periods=count, freq="h", tz="UTC")
    return pd.Series(np.random.default_rng(seed).poisson(level, count), index=index, dtype=float)


def config(path: Path) -> Settings:
    return load_settings({"data_dir": str(path), "metrics": {"enabled": False}})


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_goes_on_from_there(tmp_path: Path, how: signal.Signals) -> None:
    script = tmp_path / "training.py"
    script.write_text(SCRIPT)
    data = tmp_path / "data"
    begun = subprocess.Popen(
        [sys.executable, str(script), str(data), "slowly"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert begun.stdout is not None
    for line in begun.stdout:
        if line.startswith("done 4"):
            # A terminal's ^C reaches every process; `kill -9` only the parent: its workers must see that it is gone.
            os.killpg(begun.pid, how) if how is signal.SIGINT else begun.kill()
            break
    said, errors = begun.communicate(timeout=60)
    assert begun.returncode == (1 if how is signal.SIGINT else -how)
    if how is signal.SIGINT:
        assert "interrupted" in said
        assert "Traceback" not in errors
    kept = list((data / "training" / "unfinished").glob("*.json"))
    assert 4 <= len(kept) < 12
    assert not (data / "snapshots" / "forecast.json").exists()
    again = subprocess.run(
        [sys.executable, str(script), str(data), "fast"], capture_output=True, text=True, check=False, timeout=120
    )
    assert again.returncode == 0, again.stderr
    report = json.loads(again.stdout.splitlines()[-1])
    assert report["resumed"] == len(kept)
    assert len(report["rows"]) == 12
    assert {row["version"] for row in report["rows"]} == {"1"}
    assert not (data / "training" / "unfinished").exists()


def test_only_the_same_question_gets_the_kept_answer(tmp_path: Path) -> None:
    settings = config(tmp_path)
    series = {"a": load(110), "b": load(110, seed=2), "broken": -load(110)}
    first = train(settings, series=series, horizons=(60,), jobs=1)
    assert first.resumed == 0
    assert len(first.failed) == 1  # so what did not fail is kept
    assert train(settings, series=series, horizons=(60,), jobs=1).resumed == 2
    changed = {**series, "b": load(110, seed=3)}
    assert train(settings, series=changed, horizons=(60,), jobs=1).resumed == 1
    assert train(settings, series=changed, horizons=(120,), jobs=1).resumed == 0
    assert train(settings, series=changed, horizons=(120,), jobs=1, fresh=True).resumed == 0
    # What this run did not use is gone, and after a good one everything is.
    assert len(list((tmp_path / "training" / "unfinished").glob("*"))) == 2
    train(settings, series={"a": load(110)}, horizons=(60,), jobs=1)
    assert not (tmp_path / "training" / "unfinished").exists()


def test_digests_tell_apart_what_differs() -> None:
    plain = load(50)
    digests = {
        digest_of(plain, {"x": 1}),
        digest_of(plain, {"x": 2}),
        digest_of(plain + 1, {"x": 1}),
        digest_of(plain.iloc[1:], {"x": 1}),
        digest_of(plain.tz_convert("America/Sao_Paulo"), {"x": 1}),
        digest_of(plain, {"x": 1}, [b"lent"]),
    }
    assert len(digests) == 6
    assert digest_of(plain.copy(), {"x": 1}) in digests


def test_half_a_file_is_no_answer(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run")
    journal.keep("d", Fitted(key="x", samples=3))
    found = journal.find("d", Fitted)
    assert found is not None
    assert (found.key, found.samples) == ("x", 3)
    (tmp_path / "run" / "d.json").write_bytes(b'{"key": "x", "sam')
    assert journal.find("d", Fitted) is None
    assert journal.find("other", Fitted) is None


def test_an_unusable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(TrainingError, match="run"):
        Journal(tmp_path / "run" / "x").keep("d", Fitted(key="x"))
