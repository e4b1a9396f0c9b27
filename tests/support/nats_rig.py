"""Real nats-servers, one or a cluster, with the fleet's own streams; and JetStream sources at them. All die with the test."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from support.constants import constants, split
from support.ports import free_port
from support.recorded_events import Recorded
from support.waiting import DEADLINE_S
from support.waiting import eventually as until

from states.observation import Link
from supervisor.config.schema import Control, Token
from supervisor.linux.bounded import end
from supervisor.linux.clock import SystemClock
from supervisor.sources.base import Availability, Claim, SourceSettings
from supervisor.sources.errors import RequestError
from supervisor.sources.nats import subjects
from supervisor.sources.nats.admin import credentials
from supervisor.sources.nats.admin.setup import set_up
from supervisor.sources.nats.connection import Connection, Server
from supervisor.sources.nats.messages import Result, decode_result, encode_task
from supervisor.sources.nats.source import NatsSource

BINARY = shutil.which("nats-server")
needs_server = pytest.mark.skipif(BINARY is None, reason="nats-server is not installed (Debian: apt install nats-server)")


def _die_with_us() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


@dataclass
class NatsServer:
    """One server: `start`, `kill` and `start` again on the same store and port."""

    folder: Path
    name: str = "n1"
    host: str = "127.0.0.1"
    port: int = field(default_factory=free_port)
    more: str = ""
    config: Path | None = None  # of its own, in place of ours
    prefix: Sequence[str] = ()  # what runs it elsewhere, such as a network namespace
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For clients."""
        return f"nats://{self.host}:{self.port}"

    def start(self) -> NatsServer:
        """Run it; returns when it accepts connections."""
        assert BINARY is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.config or self.folder / f"{self.name}.conf"
        if self.config is None:
            config.write_text(
                f'server_name: "{self.name}"\nlisten: "{self.host}:{self.port}"\nmax_payload: 8MB\n{self.more}\n'
                f'jetstream {{ store_dir: "{self.folder / self.name}", max_memory_store: 256MB, max_file_store: 20GB }}\n'
            )
        log = (self.folder / f"{self.name}.log").open("ab")
        self.process = subprocess.Popen(
            [*self.prefix, BINARY, "-c", str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=_die_with_us
        )
        log.close()
        end_s = time.monotonic() + DEADLINE_S
        while not self._ready():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < end_s, f"nats-server {self.name} does not listen\n{self.log()}"
            time.sleep(0.02)
        return self

    def _ready(self) -> bool:
        if self.prefix:
            return "Server is ready" in self.log()
        with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), 1):
            return True
        return False

    def log(self) -> str:
        """What it said."""
        return (self.folder / f"{self.name}.log").read_text(errors="replace")

    def kill(self) -> None:
        """kill -9, as by a power cut."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None

    def cpu_s(self) -> float:
        """CPU seconds that it has used."""
        assert self.process is not None
        return processor_s(self.process.pid)


def processor_s(pid: int) -> float:
    """CPU seconds that a process has used."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / 100


@contextlib.contextmanager
def nats_server(folder: Path, **more: Any) -> Iterator[NatsServer]:
    """A server while the context lasts."""
    server = NatsServer(folder, **more)
    try:
        yield server.start()
    finally:
        server.kill()


@contextlib.contextmanager
def gate_of(url: str, keys: Path, *options: str, tls: bool = True) -> Iterator[subprocess.Popen[str]]:
    """The fleet's gate as deploy/fleet/README.md starts it, with the streams made."""
    tool = Path(__file__).resolve().parents[2] / "deploy/fleet/gate"
    password, ca = str(keys / "passwords/gate"), str(keys / "ca.pem")
    access = ["--server", url, "--user", "gate", "--password-file", password, *(["--ca-file", ca] if tls else [])]
    with subprocess.Popen(
        [str(tool), *access, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=_die_with_us
    ) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if line.lower().startswith("gate: up"):
                break
        else:
            raise AssertionError("".join(said))
        drain = threading.Thread(target=lambda: said.extend(process.stdout or ()), daemon=True)
        drain.start()
        try:
            yield process
        finally:
            process.terminate()
            assert process.wait(DEADLINE_S) == 0, "".join(said)


@dataclass
class KeyedFleet:
    """A server with TLS and users, and its gate, as our own tools set them up."""

    server: NatsServer
    keys: Path

    @property
    def url(self) -> str:
        """For clients."""
        return f"tls://{self.server.host}:{self.server.port}"

    def as_user(self, name: str, **changes: Any) -> Server:
        """The way in for a user."""
        password = (self.keys / "passwords" / name).read_text().strip()
        return Server(**{"url": self.url, "user": name, "password": password, "ca_file": str(self.keys / "ca.pem"), **changes})


@contextlib.contextmanager
def keyed_fleet(folder: Path, *nodes: str, host: str = "127.0.0.1") -> Iterator[KeyedFleet]:
    """A fleet with keys for these nodes while the context lasts; its server is at this address of ours."""
    keys, port = folder / "keys", free_port()
    names = [word for name in nodes for word in ("--node", name)]
    assert credentials.main([str(keys), "--server", host, *names]) == 0
    conf = keys / f"{host}.conf"
    text = conf.read_text().replace("0.0.0.0:4222", f"{host}:{port}")
    conf.write_text(text.replace("/var/lib/nats/jetstream", str(folder / "js")))
    with nats_server(folder, name="keyed", host=host, port=port, config=conf, prefix=("env", "-C", str(keys))) as server:
        fleet = KeyedFleet(server, keys)
        with gate_of(fleet.url, keys):
            yield fleet


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    """A server of this test's own."""
    with nats_server(tmp_path / "nats") as one:
        yield one


@contextlib.contextmanager
def nats_cluster(
    folder: Path, hosts: Sequence[str] = ("127.0.0.1",) * 3, also: str = "", **more: Any
) -> Iterator[list[NatsServer]]:
    """Three servers that are one; `also` stands in each one's configuration."""
    routes = [(host, free_port()) for host in hosts]
    urls = ", ".join(f'"nats-route://{host}:{port}"' for host, port in routes)
    servers = [
        NatsServer(
            folder, name=f"n{n + 1}", host=host,
            more=f'cluster {{ name: fleet, listen: "{host}:{port}", routes: [ {urls} ], no_advertise: true }}\n{also}', **more,
        )
        for n, (host, port) in enumerate(routes)
    ]
    try:
        for server in servers:
            server.start()
        yield servers
    finally:
        for server in servers:
            server.kill()


class Operator:
    """The submitter's side, and whoever may do everything."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def submit(self, kind: str = "echo", payload: Any = None, task_id: str | None = None) -> str:
        """Queue a task; its id."""
        claim = Claim(task_id or str(uuid4()), kind, payload or {})
        await self.raw(encode_task(claim), kind, claim.id)
        return claim.id

    async def raw(self, data: bytes, kind: str = "echo", task_id: str | None = None) -> None:
        """Queue these bytes as a task."""
        name = task_id or str(uuid4())
        await self.connection.store(subjects.task_subject(kind, name), data, name)

    async def result(self, task_id: str) -> Result | None:
        """The stored result, if there is one."""
        data = await self.connection.last(subjects.RESULTS, subjects.result_subject(task_id))
        return None if data is None else decode_result(data)

    async def settled(self, task_id: str, timeout_s: float = DEADLINE_S) -> Result:
        """The result once it is stored."""
        end_s = time.monotonic() + timeout_s
        while (result := await self.result(task_id)) is None:
            assert time.monotonic() < end_s, f"task {task_id} has no result after {timeout_s:g} s"
            await asyncio.sleep(0.02)
        return result

    async def stream(self, name: str) -> dict[str, Any]:
        """A stream's state."""
        state: dict[str, Any] = (await self.ask(f"STREAM.INFO.{name}"))["state"]
        return state

    async def ask(self, name: str) -> dict[str, Any]:
        """An answer of the servers, which give none while they elect a leader."""
        end_s = time.monotonic() + 60
        while True:
            try:
                return await self.connection.api(name)
            except RequestError:
                if time.monotonic() > end_s:
                    raise
                await asyncio.sleep(0.1)

    async def asked_for(self, polls: int = 1) -> None:
        """Wait until so many nodes wait at the server for work."""
        end_s = time.monotonic() + DEADLINE_S
        while (info := await self.ask(f"CONSUMER.INFO.{subjects.TASKS}.{subjects.CONSUMER}"))["num_waiting"] != polls:
            assert time.monotonic() < end_s, f"{info['num_waiting']} wait for work, not {polls}"
            await asyncio.sleep(0.02)

    async def queue(self) -> tuple[int, int, int]:
        """Tasks in the queue, those of them with a node, and results."""
        info = await self.ask(f"CONSUMER.INFO.{subjects.TASKS}.{subjects.CONSUMER}")
        tasks, results = await self.stream(subjects.TASKS), await self.stream(subjects.RESULTS)
        return tasks["messages"], info["num_ack_pending"], results["messages"]


@contextlib.asynccontextmanager
async def operator(
    url: str, *, replicas: int = 1, lease_s: float = 10.0, made: bool = False, server: Server | None = None, **consumer: Any
) -> AsyncIterator[Operator]:
    """The fleet's streams made (unless `made`), with this lease, and an operator at them."""
    connection = Connection(server or Server(url), name="operator")
    await connection.open()
    try:
        if not made:
            end_s = time.monotonic() + DEADLINE_S
            while True:  # a cluster wants a moment to elect its leaders
                try:
                    await set_up(connection, replicas, consumer={"ack_wait": int(lease_s * 1e9), **consumer})
                    break
                except Exception:
                    if time.monotonic() > end_s:
                        raise
                    await asyncio.sleep(0.2)
        yield Operator(connection)
    finally:
        await connection.close()


class Rig:
    """A source under test."""

    def __init__(self, source: NatsSource, recorded: Recorded) -> None:
        self.source = source
        self.recorded = recorded
        self.events = recorded.events

    def names(self) -> list[str]:
        """The events so far."""
        return [event["event"] for event in self.events]

    async def saw(self, name: str) -> dict[str, Any]:
        """Wait for an event."""
        await until(lambda: name in self.names(), lambda: f"event {name}, not {self.events}")
        return next(event for event in self.events if event["event"] == name)

    async def up(self) -> None:
        """Wait for the link."""
        await until(lambda: self.source.status.link is Link.UP, lambda: f"link up, not {self.source.status}")

    async def poll(self) -> Claim | None:
        """Ask until one poll has been answered; what it brought."""
        await until(self.source.ask, lambda: f"a poll is started, not {self.source.status}")
        await until(lambda: not self.source.asking, "the poll is over")
        return self.source.take()

    async def claim(self) -> Claim:
        """A claim, for which is asked until there is one."""
        end_s = time.monotonic() + DEADLINE_S
        while (claim := await self.poll()) is None:
            assert time.monotonic() < end_s, "no claim came"
        return claim

    async def delivered(self) -> None:
        """Wait until the outbox is empty."""
        await until(lambda: self.source.status.outbox == 0, lambda: f"outbox empty, not {self.source.status}")


@contextlib.asynccontextmanager
async def node(
    url: str,
    folder: Path,
    *,
    node_id: str = "node-1",
    token: str | Token | None = None,
    types: Sequence[str] = ("echo", "sleep"),
    heartbeat_s: float = 0.5,
    poll_s: float = 1.0,
    retry: bool = True,
    stop_s: float | None = 5.0,
    ready: bool = True,
    describe: Callable[[], dict[str, Any]] = dict,
    **control: Any,
) -> AsyncIterator[Rig]:
    """A started source. `stop_s` None: it ends as by a power cut, with nothing said and nothing given back."""
    others, control = split({"backoff_longest_s": 0.2, **control})
    with constants(others):
        settings = SourceSettings(
            control=Control(**{"source": "nats", "url": url, **control}, token=token if isinstance(token, Token) else Token()),
            node_id=node_id,
            state_dir=folder / node_id,
            heartbeat_interval_s=heartbeat_s,
            poll_interval_s=poll_s,
            retry_on_disconnect=retry,
            on_preempt=dict.fromkeys(types, "resubmit"),
            token=token if isinstance(token, str) else None,
        )
        events = Recorded(describe)
        source = NatsSource(settings, SystemClock(), events)
        await source.start(lambda: None)
        rig = Rig(source, events)
        if ready:
            source.announce(Availability.ONLINE)
        try:
            yield rig
        finally:
            if stop_s is None:
                await cut(source)
            else:
                await source.stop(stop_s)


async def cut(source: NatsSource) -> None:
    """As by a power cut: every task of the source ends at once, its connection too."""
    await end(*source._work, *source._hand_backs, *([source._poll] if source._poll is not None else []))
    await source._close()
