"""Load on one method from a process of its own: `python -m benchmarks._grpc_load '{"target": ..., "method": ...}'`.

Bytes go out and come back as they are, so that the client costs the same whatever the server does. With a `rate`, calls
start on schedule (open loop) and a late start counts into the latency; without, each of `clients` calls again as soon
as it is answered (closed loop). Prints JSON: calls, seconds, errors by code and latencies in microseconds.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from collections import Counter
from typing import Any

import grpc

SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}


async def run(task: dict[str, Any]) -> dict[str, Any]:
    payloads = [base64.b64decode(text) for text in task["payloads"]]
    latencies: list[float] = []
    errors: Counter[str] = Counter()
    async with grpc.aio.insecure_channel(task["target"]) as channel:
        call = channel.unary_unary(task["method"])
        await asyncio.wait_for(channel.channel_ready(), 60)

        async def one(number: int, began: float) -> None:
            try:
                await call(payloads[number % len(payloads)], timeout=30)
            except grpc.aio.AioRpcError as error:
                errors[error.code().name] += 1
            latencies.append(time.perf_counter() - began)

        for number in range(task.get("warm", 200)):
            await one(number, time.perf_counter())
        latencies.clear()
        errors.clear()
        started = time.perf_counter()
        await (_open_loop(one, task, started) if task.get("rate") else _closed_loop(one, task, started))
        seconds = time.perf_counter() - started
    latencies.sort()
    at = {name: latencies[int(share * (len(latencies) - 1))] * 1e6 for name, share in SHARES.items()}
    return {"calls": len(latencies), "seconds": seconds, "errors": dict(errors), **at}


async def _closed_loop(one: Any, task: dict[str, Any], started: float) -> None:
    end, most = started + task.get("seconds", 1e9), task.get("calls", 10**12)
    taken = iter(range(most))

    async def client() -> None:
        while time.perf_counter() < end and (number := next(taken, None)) is not None:
            await one(number, time.perf_counter())

    await asyncio.gather(*(client() for _ in range(task.get("clients", 1))))


async def _open_loop(one: Any, task: dict[str, Any], started: float) -> None:
    gap, running = 1 / task["rate"], set()
    for number in range(int(task["seconds"] * task["rate"])):
        due = started + number * gap
        if (early := due - time.perf_counter()) > 0:
            await asyncio.sleep(early)
        running.add(asyncio.ensure_future(one(number, due)))
        if number % 100 == 0:
            running = {job for job in running if not job.done()}
    await asyncio.gather(*running)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(json.loads(sys.argv[1] if sys.argv[1] != "-" else sys.stdin.read())))))
