"""Bearer tokens and TLS certificates from files, read again when the files change: both rotate without a restart.

What the `/metrics` listener, the optimizer agent and its clients have in common. `section` is the part of the
configuration that names the files (`metrics`, `agent`, `optimizer`), so that every message names the key to look at.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import ssl
import threading
import time
from pathlib import Path
from typing import Final, NamedTuple

from nhm_sched_plugin.errors import ConfigError

__all__ = [
    "ADMIN",
    "READ",
    "WRITE",
    "Certificate",
    "Pem",
    "PemFiles",
    "TokenError",
    "Tokens",
    "Watched",
    "token_lines",
]

log = logging.getLogger(__name__)

READ: Final = "read"
WRITE: Final = "write"
ADMIN: Final = "admin"
"""Includes the other two."""
_SCOPES: Final = frozenset((READ, WRITE, ADMIN))
_DEFAULT_SCOPES: Final = frozenset((READ, WRITE))

_YOUNG_NS: Final = 100_000_000
"""A second change of a file younger than this may leave no trace: the clock of a file system ticks in milliseconds."""
_RETRY_S: Final = 1.0
"""How soon files that could not be used are read again when nothing says that they changed."""


class Watched:
    """Tells whether files have changed since the last look (renamed over, mounted anew or rewritten)."""

    def __init__(self, *paths: Path) -> None:
        self.paths = paths
        self._names = [os.fspath(path) for path in paths]  # `stat` takes half the time of that of a Path
        self._seen: object = None

    def changed(self) -> bool:
        """Raises `OSError` when a file is not there."""
        now = self.signature()
        changed, self._seen = now != self._seen, now
        return changed

    def signature(self) -> object:
        """What changes with the files. Raises `OSError` when one is not there."""
        found = [(info.st_mtime_ns, info.st_ino, info.st_size) for info in map(os.stat, self._names)]
        now = time.time_ns()
        young = any(abs(now - written) < _YOUNG_NS for written, _, _ in found)
        return found, now // _YOUNG_NS if young else 0

    def forget(self) -> None:
        self._seen = None


class TokenError(Exception):
    """An `Authorization` header is not good enough; `cause` is fit for a metric's label."""

    def __init__(self, cause: str) -> None:
        self.cause = cause
        super().__init__(cause)


def token_lines(content: bytes) -> list[tuple[int, str, str]]:
    """Number, token and scopes (as written) of each line of a token file that is neither empty nor a `#` comment."""
    found = []
    for number, line in enumerate(content.decode("latin-1").splitlines(), 1):
        token, *rest = line.split(maxsplit=1) or ["#"]
        if not token.startswith("#"):
            found.append((number, token, rest[0].partition("#")[0].strip() if rest else ""))
    return found


class Tokens:
    """The accepted bearer tokens: `TOKEN [scope,scope]` a line, so that an old and a new one can be valid together.

    Kept as digests under a key drawn for this object: how long a look-up takes tells nothing about a token, however
    many there are, and no token stays in memory.
    """

    def __init__(self, path: Path, section: str, look_every_s: float = 0.0) -> None:
        """Raises `ConfigError` when the file cannot be read, holds no token or names an unknown scope.

        `look_every_s`: how long a token that was good is taken without another look at the file. A token that is not
        known is looked for at once.
        """
        self._file = Watched(path)
        self._named = f"{section}.token_file = {str(path)!r}"
        self._look_every_s, self._looked_at = look_every_s, 0.0
        self._secret = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._accepted: dict[bytes, frozenset[str]] = {}
        try:
            problems = self._read()
        except OSError as error:
            problem = f"cannot be read ({error.strerror}); create it or unset the key"
            raise ConfigError([f"{self._named}: {problem}"]) from None
        if problems:
            raise ConfigError(problems)
        if not self._accepted:
            raise ConfigError([f"{self._named}: is empty; write the token into it"])

    def scopes(self, header: str) -> frozenset[str]:
        """What the sender of this `Authorization` header may do. Raises `TokenError`."""
        scheme, _, given = header.partition(" ")
        if scheme.lower() != "bearer":
            raise TokenError("no_token")
        digest = self._digest(given.strip())
        found = self._accepted.get(digest)
        if found is None or time.monotonic() >= self._looked_at + self._look_every_s:
            self._look()
            found = self._accepted.get(digest)
        if found is None:
            raise TokenError("wrong_token")
        return found

    def refusal(self, header: str) -> str | None:
        """Why this `Authorization` header is not good enough for anything, or None when it is."""
        try:
            self.scopes(header)
        except TokenError as error:
            return error.cause
        return None

    def _look(self) -> None:
        try:
            problems = self._read()
        except OSError as error:
            log.debug("%s: cannot be read (%s): nobody is let in", self._named, error.strerror)
            raise TokenError("token_file_unreadable") from None
        for problem in problems:
            log.warning("%s; the line is not used", problem)
        self._looked_at = time.monotonic()

    def _digest(self, token: str) -> bytes:
        return hashlib.blake2b(token.encode("utf-8", "surrogatepass"), key=self._secret, digest_size=32).digest()

    def _read(self) -> list[str]:
        """Take over what is in the file if it has changed; what is wrong with it, without ever quoting a token."""
        with self._lock:
            try:
                if not self._file.changed():
                    return []
                content = self._file.paths[0].read_bytes()
            except OSError:
                self._accepted = {}  # a file that cannot be read lets nobody in
                self._file.forget()
                raise
            accepted: dict[bytes, frozenset[str]] = {}
            problems = []
            for number, token, written in token_lines(content):
                scopes = frozenset(name.strip() for name in written.split(",")) if written else _DEFAULT_SCOPES
                if scopes <= _SCOPES:
                    digest = self._digest(token)
                    accepted[digest] = accepted.get(digest, frozenset()) | scopes
                else:
                    problems.append(
                        f"{self._named}: line {number} names an unknown scope after the token; expected "
                        "read, write or admin, separated by commas"
                    )
            self._accepted = accepted
            return problems


class Certificate:
    """A server's TLS context for Python's own sockets; takes over a renewed certificate for new connections."""

    def __init__(self, cert: Path, key: Path) -> None:
        """Raises `OSError` when the pair cannot be used."""
        self._files = Watched(cert, key)
        self._lock = threading.Lock()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._load()

    def _load(self) -> None:
        if self._files.changed():
            cert, key = self._files.paths
            self._context.load_cert_chain(cert, key, password=_no_password)

    def context(self) -> ssl.SSLContext:
        with self._lock:
            try:
                self._load()
            except OSError:  # SSLError is one: a half-written pair, and the next connection tries again
                self._files.forget()
                log.debug("the certificate on disk is not usable; the old one stays", exc_info=True)
            return self._context


class Pem(NamedTuple):
    """The contents of the files, as gRPC takes them; None for a file that is not configured."""

    cert: bytes | None
    key: bytes | None
    ca: bytes | None


class PemFiles:
    """A certificate chain with its key, and the authorities to trust, as one checked set of bytes.

    A set is taken over as a whole and only if it can be used: while a renewal is half written the old one stays.
    Without locks, so that a forked child can go on with it.
    """

    def __init__(self, named: str, cert: Path | None, key: Path | None, ca: Path | None) -> None:
        """`named`: the settings that hold the paths, for messages."""
        self._cert, self._key, self._ca = cert, key, ca
        self._named = named
        self._files = Watched(*(path for path in (cert, key, ca) if path is not None))
        self._usable: tuple[object, Pem] | None = None
        self._failed: tuple[object, float] = (None, 0.0)

    def current(self) -> Pem:
        """The newest usable set; costs a look at the files' dates. Raises `ConfigError` as long as there was none."""
        signature = self._signature()
        usable, (failed, retry_at) = self._usable, self._failed
        if usable is not None and (usable[0] == signature or (failed == signature and time.monotonic() < retry_at)):
            return usable[1]
        try:
            pem = self._read()
        except OSError as error:
            problem = getattr(error, "strerror", None) or error
            if usable is None:
                raise ConfigError(
                    [f"{self._named}: cannot be used ({problem}); give PEM files, the key without a password"]
                ) from None
            if failed != signature:
                log.warning("%s: what is on disk now cannot be used (%s); the old one stays", self._named, problem)
            self._failed = signature, time.monotonic() + _RETRY_S
            return usable[1]
        if usable is not None and usable[1] == pem:
            pem = usable[1]
        elif usable is not None:
            log.info("%s: a new certificate is in use", self._named)
        self._usable = signature, pem
        return pem

    def _signature(self) -> object:
        try:
            return self._files.signature()
        except OSError:
            return "missing"

    def _read(self) -> Pem:
        for _ in range(3):
            before = self._files.signature()
            pem = Pem(*(None if path is None else path.read_bytes() for path in (self._cert, self._key, self._ca)))
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            if self._cert is not None:
                context.load_cert_chain(self._cert, self._key, password=_no_password)
            if self._ca is not None:
                context.load_verify_locations(self._ca)
            if before == self._files.signature():  # what was checked is what was read
                return pem
        raise OSError("they change while they are read")


def _no_password() -> str:
    """Instead of OpenSSL's question on the terminal."""
    raise OSError("the key has a password")
