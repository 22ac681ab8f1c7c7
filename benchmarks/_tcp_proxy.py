"""A network that breaks on command: `python -m benchmarks._tcp_proxy PORT TARGET_PORT`, then one mode a line on stdin.

Modes: `well` passes bytes on; `dead` refuses connections and cuts those there are; `hanging` takes bytes and is silent;
`garbage` answers with random bytes; `flapping` is well and dead in turn, a second each.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys

PERIOD_S = 1.0
_CHUNK = 65536


class Proxy:
    def __init__(self, port: int, target: int) -> None:
        self._port, self._target = port, target
        self._mode = "dead"
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def turn(self, mode: str) -> None:
        """From now on be like that; connections of the old mode end."""
        self._mode = mode
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        if mode != "dead":
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            if self._mode == "well":
                await self._forward(reader, writer)
            while data := await reader.read(_CHUNK):
                if self._mode == "garbage":
                    writer.write(random.randbytes(len(data)))
        writer.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers.add(back)
        await asyncio.gather(_pump(reader, back), _pump(there, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
    writer.close()


async def main(port: int, target: int) -> None:
    proxy, flapping = Proxy(port, target), None
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        if flapping is not None:
            flapping.cancel()
            flapping = None
        mode = line.decode().strip()
        if mode == "flapping":
            flapping = asyncio.ensure_future(_flap(proxy))
        else:
            await proxy.turn(mode)
        print(mode, flush=True)


async def _flap(proxy: Proxy) -> None:
    while True:
        for mode in ("well", "dead"):
            await proxy.turn(mode)
            await asyncio.sleep(PERIOD_S)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
