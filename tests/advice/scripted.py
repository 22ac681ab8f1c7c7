"""A real gRPC server that behaves as it is told: what a host may meet at the address of its agent.

In this process, or (for tests that fork or kill) as `python scripted.py FOLDER PORT`, where it writes the outcomes that
it has taken to FOLDER/outcomes.jsonl before it confirms them.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc

from nhm_sched_plugin import Action, Recommendation
from nhm_sched_plugin.forecasting.table import SnapshotForecaster
from nhm_sched_plugin.pb import optimizer_agent_pb2 as pb
from nhm_sched_plugin.wire.check import InvalidFieldError, check_outcome_request, check_state_request
from nhm_sched_plugin.wire.convert import forecast_response, recommendation_response
from nhm_sched_plugin.wire.snapshots import etag, pack_policy

MODES = ("healthy", "hang", "garbage", "nonsense", "bad_snapshot", "wrong_digest", "unavailable", "full", "no_tables")
ANSWER = Recommendation(action=Action.PREEMPTIVE_SCALING, parameters={"target_workers": 14}, confidence=0.8)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class ScriptedAgent:
    """Serves the tables under `folder`/snapshots. `mode` may change at any time.

    Calls are answered in the order in which they come with one thread only; longer messages than `most_bytes` are not.

    Attributes:
        asked: every call, by the RPC's name, in order.
        taken: the outcomes that were confirmed, in order.
        refuse: decision ids that it finds wrong.
        lose: how many of the next outcomes it takes without the answer's ever reaching the caller.
    """

    def __init__(
        self, folder: Path, port: int = 0, mode: str = "healthy", threads: int = 32, most_bytes: int = -1
    ) -> None:
        self.folder, self.mode, self._threads = folder, mode, threads
        self._options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", most_bytes)]
        self.asked: list[str] = []
        self.taken: list[pb.OutcomeRequest] = []
        self.refuse: set[str] = set()
        self.lose = 0
        self.on_taken: Callable[[Any], None] = lambda request: None
        self.port = port
        self._let_go = threading.Event()
        self._lock = threading.Lock()
        self._server: grpc.Server | None = None

    def start(self) -> ScriptedAgent:
        self._let_go.clear()
        pool = futures.ThreadPoolExecutor(self._threads)
        self._server = grpc.server(pool, options=self._options)
        self._server.add_generic_rpc_handlers((_Handlers(self._answer),))
        until = time.monotonic() + 20
        while True:  # the port of a server that has just stopped may not be free at once
            try:
                self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
                break
            except RuntimeError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)
        self._server.start()
        return self

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def stop(self) -> None:
        """At once, as when the process dies."""
        self._let_go.set()
        if self._server is not None:
            self._server.stop(None).wait(10)
            self._server = None

    def count(self, name: str) -> int:
        return self.asked.count(name)

    def _answer(self, name: str, raw: bytes, context: grpc.ServicerContext) -> bytes:
        self.asked.append(name)
        if self.mode == "hang":
            self._let_go.wait(60)
            context.abort(grpc.StatusCode.UNAVAILABLE, "going down")
        if self.mode == "unavailable":
            context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        if self.mode == "full":
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls")
        if self.mode == "garbage":
            return b"\xff\xfe\x00garbage"
        answer: bytes = getattr(self, name)(raw, context).SerializeToString()
        return answer

    def GetLoadForecast(self, raw: bytes, context: grpc.ServicerContext) -> Any:  # noqa: N802
        request = pb.ForecastRequest.FromString(raw)
        if self.mode == "nonsense":
            return pb.ForecastResponse(forecast_horizon_minutes=60, mean_volume=float("nan"), confidence=7)
        table = SnapshotForecaster(self.folder / "snapshots" / "forecast.json")
        found = table.forecast(request.horizon_minutes, time.time(), request.task_type or None)
        assert found is not None
        return forecast_response(found)

    def GetSchedulingRecommendation(self, raw: bytes, context: grpc.ServicerContext) -> Any:  # noqa: N802
        try:
            check_state_request(pb.StateRequest.FromString(raw))
        except InvalidFieldError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if self.mode == "nonsense":
            return pb.RecommendationResponse(action="DANCE", confidence=0.9)
        return recommendation_response(ANSWER, "from-the-agent-1", time.time())

    def RecordActionOutcome(self, raw: bytes, context: grpc.ServicerContext) -> Any:  # noqa: N802
        request = pb.OutcomeRequest.FromString(raw)
        try:
            check_outcome_request(request)
            if request.decision_id in self.refuse:
                raise InvalidFieldError("decision_id", "is not welcome")
        except InvalidFieldError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        with self._lock:
            self.taken.append(request)
            self.on_taken(request)
            if self.lose:
                self.lose -= 1
                context.abort(grpc.StatusCode.UNAVAILABLE, "the answer is lost")
            return pb.OutcomeResponse(accepted=True, updates=len(self.taken), q_value=0.5)

    def GetPolicySnapshot(self, raw: bytes, context: grpc.ServicerContext) -> Any:  # noqa: N802
        snapshots = self.folder / "snapshots"
        planner = snapshots / "planner.json"
        q_table = snapshots / "q_table.json"
        if not q_table.exists():
            return pb.SnapshotResponse()
        content = pack_policy(q_table.read_bytes(), planner.read_bytes() if planner.exists() else None)
        return self._snapshot(raw, content)

    def GetForecastSnapshot(self, raw: bytes, context: grpc.ServicerContext) -> Any:  # noqa: N802
        if self.mode == "no_tables":
            return pb.SnapshotResponse()
        return self._snapshot(raw, (self.folder / "snapshots" / "forecast.json").read_bytes())

    def _snapshot(self, raw: bytes, content: bytes) -> Any:
        if self.mode == "bad_snapshot":
            content = content[: len(content) // 2]
        tag = etag(content)
        if self.mode == "wrong_digest":
            content = content.replace(b"1", b"2", 1)
        elif pb.SnapshotRequest.FromString(raw).etag == tag:
            return pb.SnapshotResponse(version=1, etag=tag, not_modified=True)
        return pb.SnapshotResponse(version=1, etag=tag, content=content)


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, answer: Callable[[str, bytes, Any], bytes]) -> None:
        self._answer = answer

    def service(self, details: Any) -> Any:
        name = details.method.removeprefix("/OptimizerAgent/")
        return grpc.unary_unary_rpc_method_handler(lambda raw, context: self._answer(name, raw, context))


class AgentProcess:
    """The same in a process of its own, which can be killed."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.folder, self.port = folder, port or free_port()
        self.process: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> AgentProcess:
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(self.folder), str(self.port)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == "serving"
        return self

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None

    def taken(self) -> list[str]:
        """Decision ids in the order in which they were confirmed, repetitions included."""
        file = self.folder / "outcomes.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def main(folder: Path, port: int) -> None:
    agent = ScriptedAgent(folder, port, threads=1)
    with (folder / "outcomes.jsonl").open("a", buffering=1) as file:
        agent.on_taken = lambda request: print(json.dumps(request.decision_id), file=file, flush=True)
        agent.start()
        print("serving", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
