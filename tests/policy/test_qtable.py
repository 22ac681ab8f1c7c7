from __future__ import annotations

import hashlib
import json
import math
import random
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from nhm_sched_plugin.errors import ModelError
from nhm_sched_plugin.files import set_aside
from nhm_sched_plugin.policy.arms import ARMS
from nhm_sched_plugin.policy.qtable import Cell, Mark, QTable, Saving, reset
from nhm_sched_plugin.policy.state_key import KEYS


def filled(updates: int = 200) -> QTable:
    table, draw = QTable(), random.Random(3)
    for _ in range(updates):
        arm = draw.choice(["NO_ACTION", "INCREASE_WORKER_POOL+"])
        table.update(f"u{draw.randrange(3)}-b0-s1-t1", arm, draw.gauss(0, 1), 0.01)
    return table


def test_update_rule_and_spread() -> None:
    table = QTable()
    assert table.update("s", "a", 0.5, 0.01) == pytest.approx(0.005)
    assert table.update("s", "a", 1.0, 0.01) == pytest.approx(0.005 + 0.01 * (1.0 - 0.005))
    targets = [0.5, 1.0, *(random.Random(1).gauss(0, 1) for _ in range(50))]
    for target in targets[2:]:
        table.update("s", "a", target, 0.01)
    cell = table.cell("s", "a")
    assert cell is not None
    assert cell.visits == len(targets) == table.updates
    assert cell.mean == pytest.approx(statistics.fmean(targets))
    assert cell.m2 / (cell.visits - 1) == pytest.approx(statistics.variance(targets))


def test_best_is_over_tried_arms_and_zero_where_nothing_was() -> None:
    table = QTable()
    assert table.best("s") == 0
    table.update("s", "a", -1.0, 0.1)
    assert table.best("s") == pytest.approx(-0.1)
    table.update("s", "b", 1.0, 0.1)
    assert table.best("s") == pytest.approx(0.1)


def test_survives_the_file_exactly(tmp_path: Path) -> None:
    table, path = filled(), tmp_path / "deep" / "q_table.json"
    table.save(path)
    again = QTable.load(path)
    assert again.rows == table.rows
    assert again.updates == 200
    assert [file.name for file in path.parent.iterdir()] == ["q_table.json"], "no temporary file stays behind"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda raw: raw[: len(raw) // 2], "not valid JSON"),
        (lambda raw: b"\x00" * 40, "not valid JSON"),
        (lambda raw: raw.replace(b'"updates":200', b'"updates":900'), "SHA-256 digest"),
        (lambda raw: raw.replace(b'"version":4', b'"version":9'), "version 9"),
        (lambda raw: b"[1, 2]", "not a Q-table"),
        (lambda raw: json.dumps({"format": "something"}).encode(), "not a Q-table"),
    ],
)
def test_unusable_files_name_the_file_and_the_fix(tmp_path: Path, damage, says: str) -> None:
    path = tmp_path / "q_table.json"
    path.write_bytes(damage(filled().dump()))
    with pytest.raises(ModelError, match=says) as caught:
        QTable.load(path)
    assert str(path) in str(caught.value)
    assert "move the file away" in str(caught.value)
    assert path.exists(), "loading never touches the file"


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "q_table.json"
    filled().save(path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        filled(300).save(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_set_aside_and_reset_overwrite_nothing(tmp_path: Path) -> None:
    path = tmp_path / "q_table.json"
    path.write_text("first")
    assert set_aside(path).name == "q_table.json.corrupt-1"
    path.write_text("second")
    assert set_aside(path).name == "q_table.json.corrupt-2"
    assert (tmp_path / "q_table.json.corrupt-1").read_text() == "first"
    assert reset(path) is None
    assert len(QTable.load(path)) == 0
    filled().save(path)
    kept = reset(path)
    assert kept is not None
    assert QTable.load(kept).updates == 200
    assert QTable.load(path).updates == 0


def of_version(version: int, cell: list[float], **more: Any) -> bytes:
    body = {"format": "nhm-sched-q-table", "version": version, "updates": 7, "states": {"s": {"a": cell}}, **more}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    return json.dumps({**body, "digest": digest}).encode()


def test_older_files_are_read_without_what_trials_saved(tmp_path: Path) -> None:
    path = tmp_path / "q_table.json"
    path.write_bytes(of_version(1, [0.25, 7, 0.5, 0.125]))
    table = QTable.load(path)
    assert table.cell("s", "a") == Cell(0.25, 7, 0.5, 0.125)
    table.save(path)
    assert json.loads(path.read_text())["version"] == 4
    assert QTable.load(path).rows == table.rows
    second = [0.25, 7, 0.5, 0.125, 40, 30, 0.1, 2.0, 50, 0.2, 3.0, 60, 0.3, 4.0]
    assert QTable.parse(of_version(2, second), "it").cell("s", "a") == Cell(
        0.25, 7, 0.5, 0.125, pairs=50, gain=0.2, gain_m2=3.0, live=60, live_mean=0.3, live_m2=4.0
    )


def test_a_squared_error_of_version_3_is_not_taken_for_odds() -> None:
    third = [0.25, 7, 0.5, 0.125, 40, 0.1, 5.0, 2.0, 50, 0.2, 3.0, 60, 0.3, 4.0]
    raw = of_version(3, third, overall={"plan:": [40, 0.1, 5.0, 2.0]})
    table = QTable.parse(raw, "it")
    assert table.cell("s", "a") == Cell(
        0.25, 7, 0.5, 0.125, pairs=50, gain=0.2, gain_m2=3.0, live=60, live_mean=0.3, live_m2=4.0
    )
    assert table.overall == {}


@pytest.mark.parametrize("version", [0, 5, "4", [4], None, True])
def test_a_version_that_is_not_known_is_named(version: Any) -> None:
    with pytest.raises(ModelError, match=re.escape(f"it: has version {version!r}; this program reads versions 1 to 4")):
        QTable.parse(of_version(version, [0.25, 7, 0.5, 0.125]), "it")


@pytest.mark.parametrize(
    "saving", [[-1, 0.1, 1.0, 0.1], [9, 0.1, 0.0, 0.1], [9, 0.1, 2.0, -0.1], [9, 0.1, 2.0, 1.1], [9, 0.1, 2.0]]
)
def test_trials_that_cannot_be_are_refused(saving: list[float]) -> None:
    """Nothing that is asked for a confidence later may stumble over them."""
    table = filled()
    table.overall["NO_ACTION"] = saving  # type: ignore[assignment]
    with pytest.raises(ModelError, match="it: holds a wrong entry"):
        QTable.parse(table.dump(), "it")


@pytest.mark.parametrize("place", [1, 3, 4, 7, 8, 10, 11, 13])
@pytest.mark.parametrize("number", [-1, -math.inf, math.inf, math.nan])
def test_counts_and_spreads_that_cannot_be_are_refused(place: int, number: float) -> None:
    cell = [0.25, 7, 0.5, 0.125, 40, 0.1, 5.0, 0.01, 50, 0.2, 3.0, 60, 0.3, 4.0]
    QTable.parse(of_version(4, cell), "it")
    cell[place] = number
    with pytest.raises(ModelError, match="it: holds a"):
        QTable.parse(of_version(4, cell), "it")


def test_trials_are_kept_and_forgotten() -> None:
    table = filled()
    before = {state: dict(row) for state, row in table.rows.items()}
    gains = [0.1, -0.2, 0.4]
    for gain in gains:
        table.tried("u0-b0-s1-t1", "NO_ACTION", gain)
    table.tried("new", "rules:NO_ACTION", 0.5)
    table.saved("u0-b0-s1-t1", "NO_ACTION", Saving(9, 0.2, 2.5, 0.75))
    table.overall["NO_ACTION"], table.gap = Saving(9, 0.2, 2.5, 0.75), 0.5
    cell = table.cell("u0-b0-s1-t1", "NO_ACTION")
    assert cell is not None
    assert (cell.trials, cell.over, cell.days, cell.odds, cell.pairs) == (9, 0.2, 2.5, 0.75, 3)
    assert cell.gain == pytest.approx(statistics.fmean(gains))
    assert cell.gain_m2 == pytest.approx(2 * statistics.variance(gains))
    assert table.best("new") == 0.0, "never visited: no value"
    assert table.pooled("rules:NO_ACTION", len) == 1
    assert table.copy().overall == table.overall
    table.forget_trials()
    assert table.rows == {**before, "new": {}}
    assert (table.overall, table.gap) == ({}, None)
    assert table.pooled("rules:NO_ACTION", len) == 0


@pytest.mark.parametrize("mark", [None, Mark("ledger-é", 12)])
def test_a_table_written_row_by_row_is_the_canonical_json_of_its_content(mark: Mark | None) -> None:
    draw = random.Random(4)
    table = QTable({}, mark=mark)
    for _ in range(500):
        table.update(draw.choice(KEYS), draw.choice(ARMS), draw.uniform(-1, 1), 0.1, draw.gauss(0, 1e-9))
        table.tried(draw.choice(KEYS), draw.choice(ARMS), draw.gauss(0, 1e9))
        saving = Saving(draw.randrange(99), draw.gauss(0, 1), draw.uniform(1, 9), draw.random())
        table.saved(draw.choice(KEYS), draw.choice(ARMS), saving)
        table.overall[draw.choice(ARMS)] = saving
    table.gap = 0.625
    for one in (table, table.copy(), QTable(mark=mark)):
        raw = one.dump()
        tree = json.loads(raw)
        assert raw == json.dumps(tree, sort_keys=True, separators=(",", ":")).encode() + b"\n"
        digest = tree.pop("digest")
        assert digest == hashlib.sha256(json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
        again = QTable.parse(raw, "it")
        assert (again.rows, again.updates, again.mark) == (one.rows, one.updates, one.mark)
        assert (again.overall, again.gap) == (one.overall, one.gap)
