"""Whatever a caller can send: random and boundary messages to every RPC of a running agent.

    python -m benchmarks.agent_fuzz [--messages 100000] [--seed 1] [--json]

Messages are random fields of the right type with the edges of every range among them, valid messages with bytes
flipped, cut off or doubled, and plain random bytes. The agent must answer each with OK, INVALID_ARGUMENT or
RESOURCE_EXHAUSTED - never UNKNOWN, INTERNAL or UNAVAILABLE -, must not grow, and must still be the same process
afterwards. Exits 1 otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import FieldDescriptor

from benchmarks._agent import RECOMMEND, agent, load, recommendations, resident_mb, tables
from nhm_sched_plugin.pb import optimizer_agent_pb2 as pb
from nhm_sched_plugin.types import Action

ALLOWED = {"OK", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"}
GROWTH_MB = 30.0
"""Of a process that has answered some tens of thousands of calls already: what its memory may still move."""
RPCS = {
    "GetLoadForecast": pb.ForecastRequest,
    "GetSchedulingRecommendation": pb.StateRequest,
    "RecordActionOutcome": pb.OutcomeRequest,
    "GetPolicySnapshot": pb.SnapshotRequest,
    "GetForecastSnapshot": pb.SnapshotRequest,
}
DOUBLES = (
    0.0,
    -0.0,
    1.0,
    0.5,
    1.4,
    -1.0,
    1e-300,
    1e15,
    1e16,
    1e308,
    float("inf"),
    float("-inf"),
    float("nan"),
    10.0,
    60000.0,
)
INTEGERS = (0, 1, -1, 59, 60, 61, 360, 1440, 10_080, 10_081, 2**31 - 1, -(2**31))
TEXTS = (
    "",
    "processing",
    "medium",
    "|",
    "%7C",
    "\x00",
    "é" * 200,
    "a" * 256,
    "a" * 257,
    "x" * 10_000,
    "💥",
    "../../x",
    "' OR 1=1",
)
ABOUT_AT_ONCE = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=100_000, help="for each RPC")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tables(Path(folder))
        with agent(Path(folder)) as (address, process):
            load(address, RECOMMEND, recommendations(1000), calls=20_000, clients=32)  # its memory has settled
            before = resident_mb(process.pid)
            found = {rpc: dict(asyncio.run(fuzz(address, rpc, arguments.messages, arguments.seed))) for rpc in RPCS}
            alive, after = process.poll() is None, resident_mb(process.pid)
    wrong = {rpc: codes.keys() - ALLOWED for rpc, codes in found.items() if codes.keys() - ALLOWED}
    result = {"answers": found, "MiB before": before, "MiB after": after, "same process": alive}
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        for rpc, codes in found.items():
            print(f"{rpc:30}" + "  ".join(f"{code} {number:,}" for code, number in sorted(codes.items())))
        print(f"memory {before:.0f} -> {after:.0f} MiB; the process {'is the same' if alive else 'DIED'}")
    if wrong or not alive or after - before > GROWTH_MB:
        print(f"FAILED: {wrong or 'it grew or died'}", file=sys.stderr)
        sys.exit(1)


async def fuzz(address: str, rpc: str, messages: int, seed: int) -> Counter[str]:
    """How often each status code came back."""
    draw, kind = random.Random(f"{seed} {rpc}"), RPCS[rpc]
    codes: Counter[str] = Counter()
    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(address, options) as channel:
        call = channel.unary_unary(f"/OptimizerAgent/{rpc}")

        async def one(raw: bytes) -> None:
            try:
                await call(raw, timeout=60)
                codes["OK"] += 1
            except grpc.aio.AioRpcError as error:
                codes[error.code().name] += 1

        for begin in range(0, messages, ABOUT_AT_ONCE):
            await asyncio.gather(*(one(message(kind, draw)) for _ in range(min(ABOUT_AT_ONCE, messages - begin))))
    return codes


def message(kind: Any, draw: random.Random) -> bytes:
    """Bytes to send: half of them a message that protobuf can read."""
    if draw.random() < 0.05:
        return draw.randbytes(draw.randrange(0, 200))
    raw = filled(kind, draw).SerializeToString()
    if draw.random() < 0.6 or not raw:
        return bytes(raw)
    spoilt = bytearray(raw)
    for _ in range(draw.randrange(1, 4)):
        spoilt[draw.randrange(len(spoilt))] = draw.randrange(256)
    cut = draw.randrange(len(spoilt)) if draw.random() < 0.3 else len(spoilt)
    return bytes(spoilt[:cut]) * (2 if draw.random() < 0.1 else 1)


def filled(kind: Any, draw: random.Random) -> Any:
    """A message with some of its fields set to random or extreme values."""
    made = kind()
    for field in kind.DESCRIPTOR.fields:
        if draw.random() < 0.4:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            _fill_map(getattr(made, field.name), field, draw)
        elif field.message_type is not None:
            getattr(made, field.name).CopyFrom(filled(getattr(pb, field.message_type.name), draw))
        else:
            setattr(made, field.name, _value(field, draw))
    return made


def _fill_map(entries: Any, field: FieldDescriptor, draw: random.Random) -> None:
    of = field.message_type.fields_by_name["value"]
    for number in range(draw.choice((0, 1, 3, 64, 65, 300))):
        entries[f"{_text(draw)[:50]}{number}"] = _value(of, draw)


def _value(field: FieldDescriptor, draw: random.Random) -> Any:
    if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        return draw.choice(DOUBLES) if draw.random() < 0.5 else draw.uniform(0, 1)
    if field.type == FieldDescriptor.TYPE_STRING:
        return draw.choice(tuple(Action)) if field.name == "action" and draw.random() < 0.7 else _text(draw)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return draw.random() < 0.5
    return draw.choice(INTEGERS)


def _text(draw: random.Random) -> str:
    if draw.random() < 0.7:
        return draw.choice(TEXTS)
    return "".join(chr(draw.randrange(1, 0xD7FF)) for _ in range(draw.randrange(1, 30)))


if __name__ == "__main__":
    main()
