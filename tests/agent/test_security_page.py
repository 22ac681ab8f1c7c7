"""docs/agent-security.md: its commands make an authority, its two configurations fit together."""

from __future__ import annotations

import asyncio
import re
import subprocess
from pathlib import Path
from typing import Any

import grpc
import pytest

from nhm_sched_plugin.agent.access import METHODS, Authoriser, credentials
from nhm_sched_plugin.settings import load_settings
from nhm_sched_plugin.wire.credentials import ClientCredentials

PAGE = (Path(__file__).parents[2] / "docs" / "agent-security.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the page's commands were run, its configurations beside what they name."""
    folder = tmp_path_factory.mktemp("made")
    subprocess.run(["bash", "-euo", "pipefail", "-c", blocks("bash")[0]], cwd=folder, check=True, capture_output=True)
    for name, text in zip(("agent.yaml", "host.yaml"), blocks("yaml"), strict=True):
        (folder / name).write_text(text.replace("/etc/nhm-sched", str(folder)))
    return folder


def test_both_ends_of_the_example_understand_each_other(made: Path) -> None:
    agent = load_settings(made / "agent.yaml").agent
    optimizer = load_settings(made / "host.yaml").optimizer
    authoriser, listen_with = Authoriser(agent), credentials(agent)
    refusals: list[Any] = []

    async def check(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        metadata, proven = context.invocation_metadata(), context.auth_context()
        refusals.extend(authoriser.refusal(method, metadata, proven) for method in (*METHODS, "/reflection/List"))
        return request

    async def call(token_file: Path) -> None:
        client = ClientCredentials(optimizer.model_copy(update={"token_file": token_file}))
        server = grpc.aio.server()
        handler = grpc.unary_unary_rpc_method_handler(check)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Test", {"Check": handler}),))
        port = server.add_secure_port("127.0.0.1:0", listen_with)
        await server.start()
        options = [("grpc.ssl_target_name_override", "agent.example")]
        async with grpc.aio.secure_channel(f"localhost:{port}", client.channel_credentials(), options) as channel:
            answer = channel.unary_unary("/Test/Check")(b"x", metadata=client.call_metadata(), timeout=30)
            assert await answer == b"x"
        await server.stop(None)

    asyncio.run(call(made / "host-token"))
    assert [refusal and refusal[0] for refusal in refusals] == [*[None] * 5, grpc.StatusCode.PERMISSION_DENIED]
    refusals.clear()
    asyncio.run(call(made / "admin-token"))
    assert refusals == [None] * 6


def test_secrets_are_for_their_owner_only(made: Path) -> None:
    for name in ("ca.key", "agent.key", "host.key", "tokens", "host-token", "admin-token"):
        assert (made / name).stat().st_mode & 0o077 == 0, name


def test_the_table_of_scopes_is_that_of_the_code() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE, re.MULTILINE))
    told = {
        f"/OptimizerAgent/{name}": scope for scope in ("read", "write") for name in re.findall(r"`(\w+)`", rows[scope])
    }
    assert told == METHODS
