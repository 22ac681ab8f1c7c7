from __future__ import annotations

import io
import json
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from typing import TextIO

import grpc
import pytest

from nhm_sched_plugin.agent.logs import AgentLog, refused
from nhm_sched_plugin.settings_agent import AgentSettings

DEADLINE_S = 30.0
METHOD = "/OptimizerAgent/GetLoadForecast"
log = logging.getLogger("nhm_sched_plugin.agent.test")


def written(log_format: str, *events: Callable[[], object]) -> list[str]:
    """The lines on stderr after these events."""
    out = io.StringIO()
    with AgentLog(AgentSettings(log_format=log_format), out):
        for event in events:
            event()
    return out.getvalue().splitlines()


def invalid(decision_id: str = "", method: str = METHOD, why: str = "horizon_minutes: -1 is not in [1, 10080]") -> None:
    refused(method, grpc.StatusCode.INVALID_ARGUMENT, "ipv4:10.0.0.7:4100", why, decision_id, "horizon_minutes")


def test_a_refused_call_is_one_line_of_text() -> None:
    (line,) = written("text", lambda: invalid("d-1"))
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z WARNING horizon_minutes: -1 is not in \[1, 10080\] "
        r"method=/OptimizerAgent/GetLoadForecast code=INVALID_ARGUMENT peer=ipv4:10\.0\.0\.7:4100 decision_id=d-1 "
        r"field=horizon_minutes",
        line,
    )


def test_a_refused_call_is_one_json_object() -> None:
    (line,) = written("json", lambda: invalid("d-1"))
    told = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", told.pop("time"))
    assert told == {
        "level": "warning",
        "logger": "nhm_sched_plugin.agent.calls",
        "message": "horizon_minutes: -1 is not in [1, 10080]",
        "method": METHOD,
        "code": "INVALID_ARGUMENT",
        "peer": "ipv4:10.0.0.7:4100",
        "decision_id": "d-1",
        "field": "horizon_minutes",
    }


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_what_is_not_known_is_left_out(log_format: str) -> None:
    (line,) = written(log_format, lambda: refused(METHOD, "UNAUTHENTICATED", "unix:", "a token is needed"))
    assert "decision_id" not in line
    assert "field" not in line


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_every_refused_call_has_its_line_in_order(log_format: str) -> None:
    lines = written(log_format, *(lambda number=number: invalid(f"d-{number}") for number in range(500)))
    assert [re.search(r"d-(\d+)", line)[1] for line in lines] == [str(number) for number in range(500)]


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize(
    "odd",
    ["a\n2026-01-01T00:00:00.000Z ERROR forged", "\x1b[2J", 'q" method=/x', "\u2028", "\r", "a\x00b", "\udcff", "é ü"],
)
def test_callers_cannot_forge_or_break_lines(log_format: str, odd: str) -> None:
    lines = written(log_format, lambda: invalid(odd, why=f"{odd} is unknown"), lambda: invalid("next"))
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)
    if log_format == "json":
        told = json.loads(lines[0])
        assert (told["decision_id"], told["message"]) == (odd, f"{odd} is unknown")
    else:
        fields = lines[0].partition(" method=/OptimizerAgent/")[2] if "method=/x is" not in lines[0] else lines[0]
        found = re.search(r'decision_id=("(?:[^"\\]|\\.)*"|\S+) field=', fields)
        assert found is not None
        assert (json.loads(found[1]) if found[1].startswith('"') else found[1]) == odd


def test_a_made_up_method_is_cut() -> None:
    (line,) = written("text", lambda: invalid(method="/" + "x" * 100_000))
    assert len(line) < 1000


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_traceback_is_told_whole_and_cannot_pass_for_a_line(log_format: str) -> None:
    def fail() -> None:
        try:
            raise RuntimeError("odd\n2026-01-01T00:00:00.000Z ERROR forged")
        except RuntimeError:
            log.exception("the advisor failed")

    lines = written(log_format, fail)
    assert "the advisor failed" in lines[0]
    assert "RuntimeError: odd" in "\n".join(lines)
    if log_format == "json":
        assert "Traceback" in json.loads(lines[0])["error"]
        assert len(lines) == 1
    else:
        assert all(line.startswith("    ") for line in lines[1:])


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_token_that_a_library_quotes_is_blotted_out(log_format: str) -> None:
    metadata = "(_Metadatum(key='authorization', value='Bearer s3cret/+=-._~'), )"

    def fail() -> None:
        try:
            raise RuntimeError(metadata)
        except RuntimeError:
            log.exception("refused %s and bearer  s3cret", metadata)

    text = "\n".join(written(log_format, fail))
    assert "s3cret" not in text
    assert text.count("Bearer ***") >= 2


def test_other_libraries_speak_the_same_format() -> None:
    (line,) = written("json", lambda: logging.getLogger("asyncio").error("%s is wrong", "something"))
    assert json.loads(line)["message"] == "something is wrong"


def test_information_of_ours_is_told_and_nothing_for_debugging() -> None:
    lines = written(
        "text",
        lambda: log.info("listening"),
        lambda: log.debug("details"),
        lambda: logging.getLogger("asyncio").info("chatter"),
    )
    assert [line.split(" ", 1)[1] for line in lines] == ["INFO listening"]


def test_a_message_that_cannot_be_formatted_costs_only_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own would raise
    lines = written("text", lambda: log.warning("%d", "no number"), lambda: log.warning("next"))
    assert [line.split(" ", 1)[1] for line in lines] == ["WARNING 1 lines lost", "WARNING next"]


def test_after_closing_nothing_is_written_and_levels_are_as_before() -> None:
    before = logging.getLogger("nhm_sched_plugin").level
    out = io.StringIO()
    agent_log = AgentLog(AgentSettings(), out)
    agent_log.close()
    agent_log.close()
    log.warning("too late")
    assert out.getvalue() == ""
    assert logging.getLogger("nhm_sched_plugin").level == before


class Stuck(io.StringIO):
    """A stderr whose reader has stopped, until it goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.going = threading.Event()
        self._written = threading.Condition()
        self._writes = 0

    def write(self, text: str) -> int:
        self.going.wait(DEADLINE_S)
        with self._written:
            self._writes += 1
            self._written.notify_all()
            return super().write(text)

    def has_taken(self, writes: int) -> bool:
        with self._written:
            return self._written.wait_for(lambda: self._writes >= writes, DEADLINE_S)


@pytest.fixture
def stuck() -> Iterator[Stuck]:
    stream = Stuck()
    yield stream
    stream.going.set()


def test_a_stderr_that_takes_nothing_holds_nobody_up_and_what_was_lost_is_told(stuck: Stuck) -> None:
    with AgentLog(AgentSettings(), stuck):
        for number in range(10_500):  # would never end if any of them waited
            invalid(f"d-{number}")
        stuck.going.set()
        assert stuck.has_taken(10_001)  # what was waiting, and that something was lost
    lines = stuck.getvalue().splitlines()
    lost = [int(found[1]) for line in lines if (found := re.search(r"(\d+) lines lost", line))]
    assert sum(lost) in (498, 499, 500)  # as many as did not fit, but for those in the writer's hands
    assert sum("INVALID_ARGUMENT" in line for line in lines) + sum(lost) == 10_500


class Broken(io.StringIO):
    """A stderr that refuses so many writes."""

    def __init__(self, refused: int) -> None:
        super().__init__()
        self._left = refused

    def write(self, text: str) -> int:
        if self._left:
            self._left -= 1
            raise BrokenPipeError
        return super().write(text)


@pytest.mark.parametrize("refused", range(1, 11))
def test_every_line_that_was_lost_is_told_once(refused: int) -> None:
    stream = Broken(refused)
    with AgentLog(AgentSettings(), stream):
        for number in range(20):
            invalid(f"d-{number}")
    lines = stream.getvalue().splitlines()
    lost = [int(found[1]) for line in lines if (found := re.search(r"(\d+) lines lost", line))]
    assert lost
    assert sum("INVALID_ARGUMENT" in line for line in lines) + sum(lost) == 20


def test_closing_does_not_wait_for_a_stuck_stderr(stuck: Stuck) -> None:
    agent_log = AgentLog(AgentSettings(), stuck)
    invalid()
    closing = threading.Thread(target=agent_log.close)
    closing.start()
    closing.join(DEADLINE_S / 2)
    assert not closing.is_alive()
    assert not stuck.going.is_set()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_goes_on_telling() -> None:
    reading, writing = os.pipe()
    stream: TextIO = os.fdopen(writing, "w")
    agent_log = AgentLog(AgentSettings(log_format="json"), stream)
    child = os.fork()
    if child == 0:
        invalid("of-the-child")
        agent_log.close()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    invalid("of-the-parent")
    agent_log.close()
    stream.close()
    with os.fdopen(reading) as told:
        assert {json.loads(line)["decision_id"] for line in told} == {"of-the-child", "of-the-parent"}


def test_stderr_is_where_it_goes(capsys: pytest.CaptureFixture[str]) -> None:
    with AgentLog(AgentSettings()):
        log.info("listening on 127.0.0.1:50053")
    assert "INFO listening on 127.0.0.1:50053" in capsys.readouterr().err
