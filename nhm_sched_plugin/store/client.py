"""Reaching ClickHouse: the embedded engine or a server, through one client.

    chdb:///absolute/path                 embedded, the default: `<data_dir>/clickhouse`
    clickhouse://user@host:8123/database  a server over HTTP
    http://..., https://...               the same, with or without TLS

The embedded engine belongs to one process at a time, and a process that has opened it must not fork.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

import msgspec

from nhm_sched_plugin.errors import StoreError
from nhm_sched_plugin.settings import ClickHouseSettings, Settings

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

    from nhm_sched_plugin.store.repository import Store

__all__ = ["Target", "connect", "open_store", "target"]

_NATIVE: Final = (9000, 9440)
_CONNECT_S: Final = 5
_QUERY_S: Final = 120


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where the records are. `path` for the embedded engine, else host and port. The password shows nowhere."""

    database: str
    path: Path | None = None
    host: str = ""
    port: int = 0
    user: str = "default"
    secure: bool = False

    def __str__(self) -> str:
        if self.path is not None:
            return f"chdb://{self.path}"
        return f"{'https' if self.secure else 'http'}://{self.user}@{self.host}:{self.port}"


def target(settings: Settings) -> Target:
    """Which database the settings mean. Raises `StoreError` for a DSN or port that cannot work, naming the key."""
    return _resolve(settings)[0]


def _resolve(settings: Settings) -> tuple[Target, str]:
    chosen = settings.ml.clickhouse
    if chosen.dsn is not None:
        return _from_dsn(chosen.dsn.get_secret_value(), chosen)
    if chosen.host is None:
        return Target(database=chosen.database, path=settings.clickhouse_path), ""
    _refuse_native(chosen.port, "ml.clickhouse.port")
    place = Target(
        database=chosen.database,
        host=chosen.host,
        port=chosen.port,
        user=chosen.user,
        secure=chosen.secure or chosen.port in (443, 8443),
    )
    return place, _password(chosen)


def _from_dsn(dsn: str, chosen: ClickHouseSettings) -> tuple[Target, str]:
    try:
        parts = urlsplit(dsn)
        port = parts.port
    except ValueError:
        raise StoreError("ml.clickhouse.dsn: not a valid URL (the port must be a number from 1 to 65535)") from None
    scheme = parts.scheme.lower()
    if scheme == "chdb":
        path = unquote(parts.netloc + parts.path)
        if not path.startswith("/"):
            raise StoreError(f"ml.clickhouse.dsn: chdb needs an absolute path, as in chdb:///var/lib/x, not {path!r}")
        return Target(database=chosen.database, path=Path("/" + path.lstrip("/"))), ""
    if scheme not in ("clickhouse", "clickhouses", "http", "https"):
        raise StoreError(
            f"ml.clickhouse.dsn: unknown scheme {scheme or '(none)'!r}; use chdb:///path, clickhouse://, http:// or https://"
        )
    if not parts.hostname:
        raise StoreError("ml.clickhouse.dsn: names no host")
    secure = scheme in ("https", "clickhouses") or port in (443, 8443) or chosen.secure
    port = port or (8443 if secure else 8123)
    _refuse_native(port, "ml.clickhouse.dsn")
    database = unquote(parts.path.strip("/")) or chosen.database
    if not database.isidentifier() or not database.isascii():
        raise StoreError(f"ml.clickhouse.dsn: {database!r} is no database name (letters, digits, underscore)")
    password = unquote(parts.password) if parts.password is not None else _password(chosen)
    user = unquote(parts.username) if parts.username else chosen.user
    return Target(database=database, host=parts.hostname, port=port, user=user, secure=secure), password


def _refuse_native(port: int, key: str) -> None:
    if port in _NATIVE:
        raise StoreError(
            f"{key} = {port}: that is ClickHouse's native port, and this client speaks HTTP: "
            "use 8123 (HTTP) or 8443 (HTTPS)"
        )


def _password(chosen: ClickHouseSettings) -> str:
    if chosen.password is not None:
        return chosen.password.get_secret_value()
    if chosen.password_file is None:
        return ""
    try:
        return chosen.password_file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise StoreError(
            f"ml.clickhouse.password_file = {chosen.password_file}: cannot be read ({error.strerror or error})"
        ) from None


def connect(settings: Settings) -> Client:
    """An open client; statements name their database themselves, since it may not exist yet.

    Raises `StoreError` that names the place and what to do; it never holds the password.
    """
    place, password = _resolve(settings)
    if place.path is not None:
        return _open_embedded(place)
    import clickhouse_connect
    from clickhouse_connect.driver.exceptions import Error

    try:
        return clickhouse_connect.get_client(
            host=place.host,
            port=place.port,
            username=place.user,
            password=password,
            secure=place.secure,
            connect_timeout=_CONNECT_S,
            send_receive_timeout=_QUERY_S,
            autogenerate_session_id=False,  # so that threads may share the client
        )
    except (Error, OSError) as error:
        reason = _first_line(error, password)
        if "AUTHENTICATION_FAILED" in reason or "Code: 516" in reason:
            raise StoreError(
                f"ClickHouse at {place} refuses user {place.user!r}: check ml.clickhouse.user and the password"
            ) from None
        raise StoreError(f"ClickHouse at {place} cannot be reached: {reason}") from None


def _open_embedded(place: Target) -> Client:
    try:
        import chdb  # noqa: F401 - only to tell a missing extra from a failing engine
        import clickhouse_connect
    except ImportError as error:
        raise StoreError(
            f"the embedded database needs the extra `store` (pip install 'nhm-sched-plugin[store]'): {error}"
        ) from None
    from clickhouse_connect.driver.exceptions import Error

    assert place.path is not None  # noqa: S101 - for the type checker
    try:
        place.path.parent.mkdir(parents=True, exist_ok=True)
        return clickhouse_connect.get_client(interface="chdb", path=str(place.path))
    except OSError as error:
        raise StoreError(f"{place.path.parent} cannot be made: {error.strerror or error}") from None
    except Error as error:
        text = _first_line(error, "")
        if "already initialized with path" in text:
            raise StoreError(
                f"this process has another embedded database open, so it cannot open {place.path}: close that one first"
            ) from None
        if "filesystem_error" in text:
            raise StoreError(f"embedded database {place.path} cannot be opened: {text}") from None
        if "Error initializing EmbeddedServer" in text:
            raise StoreError(
                f"another process has the embedded database {place.path} open (or its files are damaged); "
                "stop that process, or use a ClickHouse server (ml.clickhouse.dsn) to work side by side"
            ) from None
        raise StoreError(f"embedded database {place.path} cannot be opened: {text}") from None


def _first_line(error: BaseException, secret: str) -> str:
    text = " ".join(str(error).split())[:500] or type(error).__name__
    return text.replace(secret, "(hidden)") if secret else text


@contextlib.contextmanager
def open_store(
    settings: Settings, *, observer: Callable[[str, bool, float], None] | None = None, migrate: bool = True
) -> Iterator[Store]:
    """A `Store` on the configured database, closed afterwards.

    Args:
        settings: where and as whom.
        observer: called as (name of the statement, success, seconds) after every statement.
        migrate: bring the schema up to date first; False opens it as it is.

    Raises `StoreError`.
    """
    from nhm_sched_plugin.store.repository import Store
    from nhm_sched_plugin.store.schema import init

    place = target(settings)
    client: Any = connect(settings)
    try:
        store = Store(client, place.database, observer=observer)
        if migrate:
            init(store, settings.ml.clickhouse.retention_days.by_table(), settings.ml.clickhouse.cluster)
        yield store
    finally:
        client.close()
