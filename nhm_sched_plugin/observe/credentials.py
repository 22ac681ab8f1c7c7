"""Bearer tokens and TLS certificates from files, read again when the files change: both rotate without a restart."""

from __future__ import annotations

import hmac
import logging
import os
import ssl
import threading
from pathlib import Path

from nhm_sched_plugin.errors import ConfigError

__all__ = ["Certificate", "Tokens", "Watched"]

log = logging.getLogger(__name__)


class Watched:
    """Tells whether files have changed since the last look (renamed over, mounted anew or rewritten)."""

    def __init__(self, *paths: Path) -> None:
        self.paths = paths
        self._seen: object = None

    def changed(self) -> bool:
        """Raises `OSError` when a file is not there."""
        now = [(info.st_mtime_ns, info.st_ino, info.st_size) for info in map(os.stat, self.paths)]
        changed, self._seen = now != self._seen, now
        return changed

    def forget(self) -> None:
        self._seen = None


class Tokens:
    """The accepted bearer tokens: one a line, so that an old and a new one can be valid while scrapers change over."""

    def __init__(self, path: Path) -> None:
        self._file = Watched(path)
        self._lock = threading.Lock()
        self._accepted: list[bytes] = []
        try:
            self._read()
        except OSError as error:
            problem = f"cannot be read ({error.strerror}); create it or unset the key"
            raise ConfigError([f"metrics.token_file = {str(path)!r}: {problem}"]) from None
        if not self._accepted:
            raise ConfigError([f"metrics.token_file = {str(path)!r}: is empty; write the token into it"])

    def _read(self) -> list[bytes]:
        with self._lock:
            if self._file.changed():
                self._accepted = []  # a file that cannot be read lets nobody in
                try:
                    content = self._file.paths[0].read_bytes()
                except OSError:
                    self._file.forget()
                    raise
                self._accepted = [line.strip() for line in content.splitlines() if line.strip()]
            return self._accepted

    def refusal(self, header: str) -> str | None:
        """Why this `Authorization` header is not good enough, or None when it is."""
        scheme, _, given = header.partition(" ")
        if scheme.lower() != "bearer":
            return "no_token"
        try:
            accepted = self._read()
        except OSError:
            return "token_file_unreadable"
        offered = given.strip().encode("latin-1", "replace")
        # No short cut: every token is compared in full, so that the time taken tells nothing.
        return None if sum([hmac.compare_digest(offered, token) for token in accepted]) else "wrong_token"


class Certificate:
    """The server's TLS context; takes over a renewed certificate for new connections."""

    def __init__(self, cert: Path, key: Path) -> None:
        self._files = Watched(cert, key)
        self._lock = threading.Lock()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._load()

    def _load(self) -> None:
        if self._files.changed():
            cert, key = self._files.paths
            self._context.load_cert_chain(cert, key)

    def context(self) -> ssl.SSLContext:
        with self._lock:
            try:
                self._load()
            except OSError:  # SSLError is one: a half-written pair, and the next connection tries again
                self._files.forget()
                log.debug("metrics listener: the certificate on disk is not usable; the old one stays", exc_info=True)
            return self._context
