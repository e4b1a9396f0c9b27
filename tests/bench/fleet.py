"""A fleet at work, measured: many minds, loops and JetStream links in few processes, at real servers.

    python tests/bench/fleet.py --nodes 10,100,1000                # 20 tasks a node, three servers, one of them killed
    python tests/bench/fleet.py --nodes 100 --tasks 20000 --task-seconds 0.2

Real are the loop, the mind, the performer, the link, its protocol, the servers and the gates (one beside each server, as
deploy/fleet/README.md says); simulated are the signs and what a task does (it lasts). People come back (each machine twice a
minute, for three seconds), 1 % of the nodes a minute die as by a power cut (at least one), and one server of three is killed
when a third of the tasks is done and started again at two thirds; what people's returns cost in the 20 s after that is told
apart. Exit 1 when a task was lost, or done twice without the engine knowing it.

All of it shares this machine: at 1,000 nodes the processes that simulate them are what is measured, not the servers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

ROOT: Final = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import msgspec
from support.constants import constants
from support.fleet_rig import KIND, Log, Member, configs
from support.nats_rig import NatsServer, gate_of, nats_cluster, nats_server, operator, processor_s

from supervisor.config.schema import Token
from supervisor.daemon import loop as loop_module
from supervisor.sources.base import Claim
from supervisor.sources.errors import RequestError
from supervisor.sources.nats import subjects
from supervisor.sources.nats.admin.credentials import Keys
from supervisor.sources.nats.admin.overview import overview
from supervisor.sources.nats.admin.submit import submit
from supervisor.sources.nats.connection import Connection, Server

LEASE_S: Final = 10.0  # as shipped
AWAY_S: Final = 27.0  # on average, between two visits of a person
VISIT_S: Final = 3.0
DEATHS_A_MINUTE: Final = 0.01
BACK_AFTER_S: Final = 5.0
BATCH: Final = 50
# so long after a server's end (new leaders, everybody back) what happens is told apart
OUTAGE_S: Final = 20.0
GIVE_UP_S: Final = 1800.0
# between looks of a loop that has a task in hand; the product's 1 s, a thousand times over, would be most of the load
BUSY_S: Final = 10.0


# --- a process full of nodes


async def worker(names: list[str], url: str, folder: Path, keys: Path, seed: int) -> None:
    """Live until stdin says so; then print what happened."""
    loop_module.BUSY_S = BUSY_S  # type: ignore[misc]
    rng, log = random.Random(seed), Log()
    replaced = msgspec.structs.replace
    members = []
    for config in configs(folder, names, url):
        control = replaced(config.node.control, token=Token(file=str(keys / "passwords" / config.node_id)))
        members.append(Member(replace(config, node=replaced(config.node, control=control)), log))
    deaths = 0
    over = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), over.set)

    async def visits(member: Member) -> None:
        while True:
            await asyncio.sleep(rng.expovariate(1 / AWAY_S))
            member.person_comes()
            await asyncio.sleep(VISIT_S)
            member.person_goes()

    async def dying() -> None:
        nonlocal deaths
        rate = max(len(members) * DEATHS_A_MINUTE / 60, 1 / 45)
        while True:
            await asyncio.sleep(rng.expovariate(rate))
            victim = rng.choice(members)
            if victim.task:
                deaths += 1
                await victim.die()
                await asyncio.sleep(BACK_AFTER_S)
                await victim.start()

    for at in range(0, len(members), BATCH):
        await asyncio.gather(*(member.start() for member in members[at : at + BATCH]))
        await asyncio.sleep(0.2)
    print("ready", flush=True)
    chances = [asyncio.create_task(visits(member)) for member in members]
    chances.append(asyncio.create_task(dying()))
    await over.wait()
    for chance in chances:
        chance.cancel()
    await asyncio.gather(*chances, return_exceptions=True)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    told = {
        "starts": log.starts, "left": log.left, "delivered": log.delivered, "events": log.events, "deaths": deaths,
        "cpu_s": usage.ru_utime + usage.ru_stime, "rss_mib": usage.ru_maxrss / 1024,
    }
    print(json.dumps(told), flush=True)
    os._exit(0)  # a thousand orderly stops are not what is measured


# --- the fleet around them


@dataclass
class Measured:
    """One run."""

    nodes: int
    tasks: int
    wall_s: float
    results: int
    left_in_queue: int
    twice_unknown: int
    twice_known: int
    log: Log
    deaths: int
    server_cpu: float
    server_rss_mib: float
    nodes_cpu: float
    killed_s: float
    gates_cpu: float

    @property
    def lost(self) -> int:
        """Tasks without a result."""
        return self.tasks - self.results

    def row(self) -> list[str]:
        """For the table."""
        calm, outage, deaths = Log(self.log.starts), Log(self.log.starts), self.log.gaps("death")
        for left in self.log.left:
            (outage if 0 <= left[0] - self.killed_s < OUTAGE_S else calm).left.append(left)
        returns, meanwhile = calm.gaps("return"), outage.gaps("return")
        return [
            str(self.nodes), str(self.tasks), f"{self.wall_s:.0f}", f"{self.tasks / self.wall_s:.1f}", str(self.lost),
            str(self.twice_unknown), str(self.twice_known),
            *percentiles(returns), percentiles(meanwhile)[2], *percentiles(deaths),
            f"{self.server_cpu / self.wall_s:.2f}", f"{1000 * self.server_cpu / self.tasks:.1f}", f"{self.server_rss_mib:.0f}",
            f"{self.gates_cpu / self.wall_s:.2f}", f"{self.nodes_cpu / self.wall_s:.2f}",
        ]


HEADS: Final = (
    "nodes", "tasks", "s", "tasks/s", "lost", "twice, unknown", "twice, known", "returns", "p50 s", "p99 s", "p99 s, outage",
    "deaths", "p50 s", "p99 s", "servers' cores", "ms a task", "servers' MiB", "gates' cores", "nodes' cores",
)


def percentiles(values: list[float]) -> list[str]:
    """How many, the middle, and the 99th."""
    if not values:
        return ["0", "-", "-"]
    ordered = sorted(values)
    return [str(len(ordered)), *(f"{ordered[min(len(ordered) - 1, int(len(ordered) * q))]:.3f}" for q in (0.5, 0.99))]


def _rss_mib(server: NatsServer) -> float:
    assert server.process is not None
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def measure(
    nodes: int,
    tasks: int,
    *,
    task_s: float,
    processes: int,
    servers: int,
    folder: Path,
    load: float | None = None,
    quiet: bool = False,
) -> Measured:
    """One run with `nodes` nodes and `tasks` tasks of about `task_s` seconds each. `load`: they come as fast as keeps this
    share of the nodes busy; None: all at once."""

    def say(text: str) -> None:
        if not quiet:
            print(f"[{nodes} nodes] {text}", file=sys.stderr, flush=True)

    names, keys = [f"n{n}" for n in range(nodes)], folder / "keys"
    users = [("gate", "gate", ""), *((name, "node", subjects.CONSUMER) for name in names)]
    Keys(keys).add([], users, "")
    also = (keys / "users.conf").read_text()
    cluster = nats_cluster(folder / "nats", also=also) if servers == 3 else contextlib.closing(_One(folder / "nats", also))
    with contextlib.ExitStack() as stack:
        made: Any = stack.enter_context(cluster)
        machines: list[NatsServer] = made if isinstance(made, list) else made.servers
        url = ",".join(machine.url for machine in machines)
        everything = Server(url, "gate", (keys / "passwords/gate").read_text().strip())
        async with operator(url, replicas=servers, lease_s=LEASE_S, server=everything) as boss:
            gates = []
            for n in range(len(machines)):
                own = ",".join(machine.url for machine in (*machines[n:], *machines[:n]))
                gates.append(stack.enter_context(gate_of(own, keys, "--replicas", str(servers), tls=False)))
            workers = []
            for n in range(processes):
                share = json.dumps({"names": names[n::processes], "url": url, "folder": str(folder / f"w{n}"),
                                    "keys": str(keys), "seed": n})
                process = subprocess.Popen(
                    [sys.executable, __file__, "--worker", share], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
                stack.callback(process.kill)
                workers.append(process)
            for process in workers:
                assert process.stdout is not None
                line = await asyncio.to_thread(process.stdout.readline)
                assert line.strip() == "ready", line
            say("up")
            rng = random.Random(nodes)
            claims = [Claim(str(uuid4()), KIND, {"seconds": rng.uniform(0.5, 1.5) * task_s}) for _ in range(tasks)]
            cpu_before = sum(machine.cpu_s() for machine in machines)
            began_s = time.monotonic()
            submitting = asyncio.create_task(_submit(boss.connection, claims, None if load is None else load * nodes / task_s))
            victim = next((m for m in machines if m.url != boss.connection.url), None) if servers == 3 else None
            cpu_of_the_dead, killed_s = 0.0, float("inf")
            killed = started = False
            rss_mib, said_s = 0.0, began_s
            while True:
                await asyncio.sleep(0.25)
                try:
                    done = (await boss.stream(subjects.RESULTS))["messages"]
                except RequestError:
                    continue
                if victim is not None and not killed and done >= tasks / 3:
                    cpu_of_the_dead, killed = victim.cpu_s(), True
                    victim.kill()
                    killed_s = time.monotonic()
                    say(f"{victim.name} killed at {done} tasks")
                if victim is not None and killed and not started and done >= 2 * tasks / 3:
                    started = True
                    await asyncio.to_thread(victim.start)
                    say(f"{victim.name} back at {done} tasks")
                rss_mib = max(rss_mib, sum(_rss_mib(m) for m in machines if m.process is not None))
                now_s = time.monotonic()
                if now_s - said_s > 10:
                    said_s = now_s
                    say(f"{done} done after {now_s - began_s:.0f} s")
                if done >= tasks or now_s - began_s > GIVE_UP_S:
                    break
            await submitting
            wall_s = time.monotonic() - began_s
            cpu_s = cpu_of_the_dead + sum(m.cpu_s() for m in machines if m.process is not None) - cpu_before
            queue = 1, 1, 0
            for _ in range(400):  # what is acknowledged after its result, or known to be done twice
                with contextlib.suppress(RequestError):
                    queue = await boss.queue()
                if queue[0] == 0:
                    break
                await asyncio.sleep(0.1)
            with contextlib.suppress(RequestError):
                look_s = time.monotonic()
                seen = await overview(boss.connection)
                say(f"`rae-node fleet` sees {len(seen['nodes'])} nodes after {1000 * (time.monotonic() - look_s):.0f} ms")
            log, nodes_cpu, deaths = Log(), 0.0, 0
            for process in workers:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write("over\n")
                process.stdin.flush()
                told = json.loads(await asyncio.to_thread(process.stdout.readline))
                for task_id, starts in told["starts"].items():
                    log.starts.setdefault(task_id, []).extend(tuple(start) for start in starts)
                log.left += [tuple(left) for left in told["left"]]
                log.delivered += Counter(told["delivered"])
                log.events += Counter(told["events"])
                nodes_cpu += told["cpu_s"]
                deaths += told["deaths"]
                process.wait(10)
            missing = [c.id for c in claims if c.id not in log.starts]
            say(f"never started: {len(missing)}; events: {dict(log.events)}; deaths: {deaths}")
            twice_unknown = sum(count - 1 for count in log.delivered.values() if count > 1)
            return Measured(
                nodes, tasks, wall_s, queue[2], queue[0], twice_unknown, log.events["done-twice"], log, deaths, cpu_s, rss_mib,
                nodes_cpu, killed_s, sum(processor_s(gate.pid) for gate in gates),
            )


async def _submit(connection: Connection, claims: list[Claim], rate: float | None) -> None:
    """All at once, or so many a second; once more what a server's end has interrupted."""
    began_s, at = time.monotonic(), 0
    while at < len(claims):
        upto = len(claims) if rate is None else min(len(claims), int((time.monotonic() - began_s) * rate) + 1)
        with contextlib.suppress(RequestError):
            await submit(connection, claims[at:upto])
            at = upto
        await asyncio.sleep(0.05)


class _One:
    """One server, in the place of a cluster."""

    def __init__(self, folder: Path, also: str) -> None:
        self._context = nats_server(folder, more=also)
        self.servers = [self._context.__enter__()]

    def close(self) -> None:
        """Kill it."""
        self._context.__exit__(None, None, None)


def table(runs: list[Measured]) -> str:
    """All runs, one a line."""
    rows = [list(HEADS), *(run.row() for run in runs)]
    widths = [max(len(row[n]) for row in rows) for n in range(len(HEADS))]
    return "\n".join("  ".join(f"{cell:>{widths[n]}}" for n, cell in enumerate(row)) for row in rows)


def main() -> int:
    """Measure; exit 1 when anything was lost, or done twice unknown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", default="10,100,1000", help="numbers of nodes, between commas")
    parser.add_argument("--tasks", type=int, help="default: 20 a node")
    parser.add_argument("--task-seconds", type=float, default=3.0)
    parser.add_argument("--load", type=float, help="share of the nodes that the tasks keep busy; default: all come at once")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--servers", type=int, choices=(1, 3), default=3)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        share = json.loads(given.worker)
        with constants({"backoff_longest_s": 2.0}):
            asyncio.run(worker(share["names"], share["url"], Path(share["folder"]), Path(share["keys"]), share["seed"]))
        return 0
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    runs = []
    for nodes in map(int, given.nodes.split(",")):
        with tempfile.TemporaryDirectory(prefix="fleet-", dir=memory) as folder:
            runs.append(
                asyncio.run(
                    measure(
                        nodes, given.tasks or 20 * nodes, task_s=given.task_seconds, processes=min(given.processes, nodes),
                        servers=given.servers, folder=Path(folder), load=given.load,
                    )
                )
            )
    load = os.getloadavg()[0]
    print(f"{given.servers} server(s), lease {LEASE_S:g} s, tasks of {given.task_seconds:g} s, "
          f"{'all at once' if given.load is None else f'for {given.load:.0%} of the nodes'}; {os.cpu_count()} cores, "
          f"load of the machine {load:.1f}")
    print(table(runs))
    faults = [run for run in runs if run.lost or run.left_in_queue or run.twice_unknown]
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
