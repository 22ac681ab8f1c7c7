from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from nhm_sched_plugin.errors import ModelError
from nhm_sched_plugin.files import file_lock, keep_beside, read_file, replace_file, set_aside, stamp


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path, done = tmp_path / "made" / "table.json", threading.Event()
    contents = [bytes([65 + number]) * 200_000 for number in range(2)]
    replace_file(path, contents[0])

    def write() -> None:
        for number in range(60):
            replace_file(path, contents[number % 2], durable=number % 10 == 0)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert read_file(path) in contents
    writer.join()
    assert [file.name for file in path.parent.iterdir()] == ["table.json"]


def test_what_cannot_be_written_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "inside").touch()
    with pytest.raises(OSError, match="folder"):
        replace_file(path, b"new")  # a folder is in the way
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def test_a_file_is_its_owners_unless_it_is_there_to_be_shown(tmp_path: Path) -> None:
    replace_file(tmp_path / "own", b"")
    replace_file(tmp_path / "shown", b"", mode=0o644)
    assert stat.S_IMODE((tmp_path / "own").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "shown").stat().st_mode) == 0o644


def test_a_missing_file_and_an_unreadable_one_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "none")
    with pytest.raises(ModelError, match=r"cannot be read .*; check its permissions"):
        read_file(tmp_path)
    assert stamp(tmp_path / "none") is None


def test_every_replacement_is_another_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for _ in range(5):
        before = stamp(path)
        replace_file(path, b"same", durable=False)
        assert stamp(path) != before


def test_what_is_kept_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"1", b"2"):
        replace_file(path, content)
        assert keep_beside(path, "superseded").read_bytes() == content
    assert path.read_bytes() == b"2"
    assert set_aside(path).name == "file.corrupt-1"
    assert not path.exists()


def test_one_writer_at_a_time_across_processes(tmp_path: Path) -> None:
    path = tmp_path / "counter"
    replace_file(path, b"0")

    def add() -> None:
        for _ in range(50):
            with file_lock(path):
                replace_file(path, str(int(read_file(path)) + 1).encode(), durable=False)

    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            try:
                add()
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert path.read_bytes() == b"150"
