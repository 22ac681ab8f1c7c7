"""ClickHouse's HTTP interface, as much of it as a client needs, in front of the embedded engine.

    python http_front.py PATH PORT_FILE [PORT]

It writes its port to PORT_FILE
A real server on a real socket for tests: the stock HTTP client cannot tell the difference.
"""

from __future__ import annotations

import gzip
import os
import re
import socket
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import chdb
import lz4.frame

ENGINE_LOCK = threading.Lock()
FORMAT = re.compile(rb"\bFORMAT\s+(\w+)\s*;?\s*$", re.IGNORECASE)
INSERT = re.compile(rb"^\s*(INSERT\s+INTO\s+.*?)\s+FORMAT\s+(Native|ArrowStream)\s*?\n", re.IGNORECASE | re.DOTALL)
UNPACK: dict[str, Any] = {
    "": bytes,
    "gzip": gzip.decompress,
    "lz4": lz4.frame.decompress,
}


class Front(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    engine: Any
    drop_file: Path
    deny_file: Path

    def do_POST(self) -> None:
        query = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(iter(self.chunk, b""))
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        params = {key[6:]: value for key, value in query.items() if key.startswith("param_")}
        try:
            body = UNPACK[self.headers.get("Content-Encoding", "")](body)
            if "query" in query:
                body = query["query"].encode() + (b"\n" + body if body else b"")
            if INSERT.match(body) and self.deny_file.exists():
                raise RuntimeError(self.deny_file.read_text())
            answer, form = self.run(
                body, params, query.get("insert_deduplication_token", ""), query.get("mutations_sync", "0")
            )
            if INSERT.match(body) and self.drop_file.exists():
                self.drop_file.unlink()
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)  # done, but the caller never hears of it
                return
        except RuntimeError as error:
            code = re.search(r"Code: (\d+)", str(error))
            self.answer(500, str(error).encode(), {"X-ClickHouse-Exception-Code": code.group(1) if code else "1"})
        else:
            self.answer(200, answer, {"X-ClickHouse-Format": form} if answer else {})

    def do_GET(self) -> None:
        if urlsplit(self.path).path == "/ping":
            self.answer(200, b"Ok.\n", {})
        else:
            self.do_POST()

    def chunk(self) -> bytes:
        size = int(self.rfile.readline().strip() or b"0", 16)
        data = self.rfile.read(size)
        self.rfile.readline()
        return data

    def run(self, body: bytes, params: dict[str, str], token: str, wait: str) -> tuple[bytes, str]:
        insert = INSERT.match(body)
        with ENGINE_LOCK:
            self.engine.query(f"SET mutations_sync = {int(wait)}", "TabSeparated")
            if insert:
                with tempfile.NamedTemporaryFile(suffix=".native") as file:
                    file.write(body[insert.end() :])
                    file.flush()
                    once = f"SETTINGS insert_deduplication_token = '{token}', max_partitions_per_insert_block = 0"
                    into, form = insert.group(1).decode(), insert.group(2).decode()
                    sql = f"{into} FROM INFILE '{file.name}' {once} FORMAT {form}"
                    self.engine.query(sql, "TabSeparated")
                return b"", "TabSeparated"
            found = FORMAT.search(body)
            form = found.group(1).decode() if found else "TabSeparated"
            result = self.engine.query(body.decode(), form, params=params)
            return bytes(result.bytes() or b""), form

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def main(path: str, port_file: str, port: str = "0") -> None:
    Front.engine = chdb.connect(path)
    Front.drop_file, Front.deny_file = Path(f"{port_file}.drop"), Path(f"{port_file}.deny")
    server = ThreadingHTTPServer(("127.0.0.1", int(port)), Front)
    temporary = Path(f"{port_file}.new")
    temporary.write_text(str(server.server_address[1]))
    os.replace(temporary, port_file)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
