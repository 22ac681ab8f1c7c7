"""Asking an optimizer agent from the command line: which one, with which credentials, and about which state."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import msgspec
import typer
from pydantic import ValidationError

from nhm_sched_plugin.cli.app import between, pairs
from nhm_sched_plugin.errors import AgentUnavailableError, NhmSchedError
from nhm_sched_plugin.settings import Settings
from nhm_sched_plugin.settings_agent import OptimizerSettings
from nhm_sched_plugin.types import STATE_FIELDS
from nhm_sched_plugin.wire.limits import MOST_NUMBER, STATE_LIMITS

if TYPE_CHECKING:
    from nhm_sched_plugin.advice.remote.calls import Caller

__all__ = ["Agent", "EndpointOption", "StateOption", "TimeoutOption", "TlsCaOption", "TokenOption", "measured"]

EndpointOption = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Ask this optimizer agent. Default: optimizer.endpoint, else no agent."),
]
TlsCaOption = Annotated[
    Path | None, typer.Option(help="PEM file of the agent's authority (TLS). Default: optimizer.tls_ca_file.")
]
TokenOption = Annotated[
    Path | None, typer.Option(help="File with the bearer token for the agent. Default: optimizer.token_file.")
]
TimeoutOption = Annotated[
    float | None,
    typer.Option(callback=between(0.01, 60), help="Seconds for the agent's answer. Default: optimizer.grpc_timeout."),
]
StateOption = Annotated[
    list[str] | None, typer.Option("--state", metavar="FIELD=NUMBER", help="What the host measures; repeatable.")
]

T = TypeVar("T")
_OPTIONS = {"endpoint": "--endpoint", "tls_ca_file": "--tls-ca-file", "token_file": "--token-file"}


class Agent(NamedTuple):
    """The agent that options and configuration name."""

    optimizer: OptimizerSettings

    @classmethod
    def of(
        cls,
        settings: Settings,
        endpoint: str | None,
        tls_ca_file: Path | None,
        token_file: Path | None,
        timeout: float | None,
    ) -> Agent | None:
        """None where neither names one.

        Raises `BadParameter` for an option that cannot be used, `ConfigError` without the extra `grpc`.
        """
        given = {"endpoint": endpoint, "tls_ca_file": tls_ca_file, "token_file": token_file, "grpc_timeout": timeout}
        given = {name: value for name, value in given.items() if value is not None}
        try:
            optimizer = OptimizerSettings.model_validate(settings.optimizer.model_dump() | given)
        except ValidationError as error:
            problem = error.errors()[0]
            name = str(problem["loc"][0]) if problem["loc"] else "endpoint"
            told = problem["msg"].removeprefix("Value error, ")
            raise typer.BadParameter(f"{_OPTIONS.get(name, name)} {given.get(name)}: {told}") from None
        for name in ("tls_ca_file", "token_file"):
            path = given.get(name)
            if isinstance(path, Path) and not path.is_file():
                raise typer.BadParameter(f"{_OPTIONS[name]} {path}: there is no such file")
        if optimizer.endpoint is None:
            if given:
                raise typer.BadParameter("there is no agent to ask: name it with --endpoint HOST:PORT")
            return None
        from nhm_sched_plugin.advice.remote.endpoints import require_grpc

        require_grpc()
        return cls(optimizer)

    @property
    def addresses(self) -> str:
        return ", ".join(self.optimizer.endpoint or ())

    def ask(self, method: str, requests: Iterable[Any], read: Callable[[Any], T]) -> list[T]:
        """The answers as `read` has them, one after the other. Raises `NhmSchedError` that says why there is none."""
        with self._caller() as caller:
            answers = [self._answer(caller, method, request) for request in requests]
        try:
            return [read(answer) for answer in answers]
        except (ValueError, TypeError, OverflowError, OSError, msgspec.MsgspecError) as error:
            raise NhmSchedError(f"the optimizer agent at {self.addresses} answers nonsense: {error}") from None

    def _answer(self, caller: Caller, method: str, request: Any) -> Any:
        try:
            return caller.call(method, request)
        except AgentUnavailableError as error:
            from nhm_sched_plugin.advice.remote.status import explained

            raise NhmSchedError(f"no answer from the optimizer agent: {explained(error, self.optimizer)}") from None

    @contextmanager
    def _caller(self) -> Iterator[Caller]:
        from nhm_sched_plugin.advice.remote.calls import Caller
        from nhm_sched_plugin.observe.metrics import Metrics

        # A person has nobody else to ask meanwhile: the first attempt may take all the time there is.
        caller = Caller(self.optimizer, Metrics(), probe_s=self.optimizer.grpc_timeout)
        try:
            yield caller
        finally:
            caller.close()


def measured(given: list[str] | None, further: Sequence[str] = ()) -> dict[str, float]:
    """The numbers of `--state FIELD=NUMBER` by field. Raises `BadParameter` that names the nearest one.

    Args:
        further: names that are taken besides the eight fields of the state.
    """
    known = (*STATE_FIELDS, *further)
    found = {}
    for name, text in pairs(given, "--state").items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            meant = f"; did you mean {close[0]!r}?" if close else ""
            raise typer.BadParameter(f"--state {name}={text}: no such field; known: {', '.join(known)}{meant}")
        try:
            found[name] = float(text)
        except ValueError:
            raise typer.BadParameter(f"--state {name}={text}: {text!r} is not a number") from None
        most = STATE_LIMITS.get(name, MOST_NUMBER)
        if not 0 <= found[name] <= most:  # NaN is in no range
            raise typer.BadParameter(f"--state {name}={text}: is not in [0, {most:g}]")
    return found
