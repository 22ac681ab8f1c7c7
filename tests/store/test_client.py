# ruff: noqa: E501 - the messages are matched in one piece
from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nhm_sched_plugin.errors import StoreError
from nhm_sched_plugin.settings import Settings, load_settings
from nhm_sched_plugin.store.client import connect, open_store, target


def with_clickhouse(tmp_path: Path, **keys: Any) -> Settings:
    return load_settings({"data_dir": str(tmp_path), "ml": {"clickhouse": keys}})


def test_the_embedded_engine_under_data_dir_is_the_default(tmp_path: Path) -> None:
    place = target(with_clickhouse(tmp_path))
    assert (place.path, place.database) == (tmp_path / "clickhouse", "neural_hive")
    assert str(place) == f"chdb://{tmp_path}/clickhouse"


@pytest.mark.parametrize(
    ("dsn", "expected"),
    [
        ("chdb:///var/lib/x", "chdb:///var/lib/x"),
        ("chdb:////var/lib/x%20y", "chdb:///var/lib/x y"),
        ("clickhouse://me:pw@db.example/logs", "http://me@db.example:8123"),
        ("clickhouse://db.example:8443", "https://default@db.example:8443"),
        ("http://db.example", "http://default@db.example:8123"),
        ("https://me@db.example", "https://me@db.example:8443"),
    ],
)
def test_dsns(tmp_path: Path, dsn: str, expected: str) -> None:
    place = target(with_clickhouse(tmp_path, dsn=dsn))
    assert str(place) == expected
    assert place.database == ("logs" if dsn.endswith("/logs") else "neural_hive")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"host": "db", "port": 9000}, r"ml\.clickhouse\.port = 9000: that is ClickHouse's native port.*8123 \(HTTP\) or 8443"),
        ({"dsn": "clickhouse://u:secret@db:9000/x"}, r"ml\.clickhouse\.dsn = 9000: .*native port"),
        ({"dsn": "clickhouse://u:secret@db:9440"}, r"native port"),
        ({"dsn": "postgres://u:secret@db"}, r"unknown scheme 'postgres'; use chdb:///path"),
        ({"dsn": "http://u:secret@db:99999"}, r"not a valid URL"),
        ({"dsn": "http:///x"}, r"names no host"),
        ({"dsn": "chdb://"}, r"chdb needs an absolute path"),
        ({"dsn": "http://u:secret@db/a-b"}, r"'a-b' is no database name"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_named(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(StoreError, match=message) as caught:
        connect(with_clickhouse(tmp_path, **keys))
    assert "secret" not in str(caught.value)


def test_a_password_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"ml\.clickhouse\.password_file = .*absent: cannot be read"):
        connect(with_clickhouse(tmp_path, host="127.0.0.1", port=1, password_file=str(tmp_path / "absent")))


def test_a_server_that_is_down_is_named_without_the_password(tmp_path: Path) -> None:
    settings = with_clickhouse(tmp_path, dsn="http://me:hunter2@127.0.0.1:1")
    with pytest.raises(StoreError, match=r"ClickHouse at http://me@127\.0\.0\.1:1 cannot be reached") as caught:
        connect(settings)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None, "a chained error would print the password's URL"


@pytest.fixture
def refusing_server() -> Iterator[tuple[int, list[str]]]:
    """A real HTTP server that knows no user, as ClickHouse answers then."""
    seen: list[str] = []

    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(self.headers.get("Authorization", ""))
            body = b"Code: 516. DB::Exception: me: Authentication failed. (AUTHENTICATION_FAILED)"
            self.send_response(403)
            self.send_header("X-ClickHouse-Exception-Code", "516")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuse)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1], seen
    server.shutdown()
    server.server_close()


def test_a_wrong_password_is_said_to_be_one(tmp_path: Path, refusing_server: tuple[int, list[str]]) -> None:
    import base64

    port, seen = refusing_server
    secret = tmp_path / "password"
    secret.write_text("hunter2\n")
    with pytest.raises(StoreError, match=r"refuses user 'me': check ml\.clickhouse\.user") as caught:
        connect(with_clickhouse(tmp_path, host="127.0.0.1", port=port, user="me", password_file=str(secret)))
    assert "hunter2" not in str(caught.value)
    assert base64.b64decode(seen[0].removeprefix("Basic ")) == b"me:hunter2"


def test_another_path_in_this_process_and_another_process_on_this_path(
    embedded: Any, engine_settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match=r"this process has another embedded database open.*close that one first"):
        connect(with_clickhouse(tmp_path))
    code = (
        "import sys\nfrom nhm_sched_plugin.settings import load_settings\n"
        "from nhm_sched_plugin.store.client import open_store\nfrom nhm_sched_plugin.errors import StoreError\n"
        "try:\n    with open_store(load_settings({'data_dir': sys.argv[1]})): print('opened')\n"
        "except StoreError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(engine_settings.data_dir)], capture_output=True, text=True, timeout=120
    )
    assert "another process has the embedded database" in done.stdout, done.stderr
    assert "stop that process, or use a ClickHouse server" in done.stdout


def test_open_store_migrates_and_leaves_the_engine_to_others(embedded: Any, engine_settings: Settings) -> None:
    with open_store(engine_settings, migrate=False) as store:
        assert store.database == "neural_hive"
        assert store.counts() == {}
    with open_store(engine_settings) as store:
        assert store.counts()["execution_logs"] == 0
        store.command("DROP DATABASE neural_hive SYNC")
    assert embedded.command("SELECT 1") == 1
