"""A node's link in a storm: a proxy before a real `rae-node control` answers a share of all requests with every fault of
`support.bad_answers` and a few more, while tasks are polled for, run, settled and handed back.

The node's side and the proxy are one event loop whose time is made: what nothing happens in is skipped, so that back-off,
timeouts and intervals are the shipped ones and cost nothing. While the control node, a process of its own, is asked, time
stands still. What is random comes from one seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import logging
import os
import random
import socket
import struct
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any, Final
from unittest import mock

from support import rae_server as s
from support.bad_answers import TABLE, Bad
from support.clock import MadeLoop, ManualClock
from support.constants import constants
from support.running import control_node

from states.ending import failed, handed_back, succeeded
from supervisor.config.schema import Control, Execution
from supervisor.linux.clock import SystemClock
from supervisor.sources.base import Availability, Claim, SourceSettings
from supervisor.sources.rae.resolver import Resolver
from supervisor.sources.rae.source import RaeSource

HOST: Final = "control.test"
SHARE: Final = 0.35  # of all requests that meet a fault
PER_SEC: Final = 3  # MAX_REQUESTS_PER_SEC of the node in the storm: low enough to be felt
QUEUE: Final = 4  # tasks that wait at the control node
RARE: Final = {"40 MB": 0.2}  # weights; 1 otherwise
CALM_S: Final = 12 * 3600.0  # for the rest, once the storm is over
QUICK: Final = {  # constants of a daemon in real time, in step with the proxy's waits
    "connect_timeout_s": 2, "read_timeout_s": 0.3, "total_timeout_s": 0.6, "patient_s": 1.0, "backoff_longest_s": 0.2,
    "lost_poll_first_s": 0.1,
}  # fmt: skip
LATER_S: Final = 120.0
LIMITED: Final = "500 for a rate limit"  # for a minute, whatever is asked
LATE_CALM_S: Final = 3600.0
BIG: Final = 300_000  # bytes of some results, so that a request can be cut in its middle


class RealTime(SystemClock):
    """The kernel's time, for a proxy before a real daemon."""

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Time goes on all the same."""
        return contextlib.nullcontext()


@dataclass
class Rate:
    """The most that fell into any window of that many seconds."""

    window_s: float
    most: int = 0
    _times: deque[float] = field(default_factory=deque)

    def count(self, now_s: float) -> None:
        """One more."""
        self._times.append(now_s)
        while self._times[0] <= now_s - self.window_s + 1e-3:  # a timer may be early by the clock's resolution
            self._times.popleft()
        self.most = max(self.most, len(self._times))


async def _slow(x: s.Exchange) -> None:
    """A byte a second: no silence that the read timeout could end."""
    x.writer.write(b"HTTP/1.1 200 X\r\ncontent-length: 100000\r\n\r\n")
    while not x.writer.is_closing():
        x.writer.write(b" ")
        await x.writer.drain()
        await asyncio.sleep(1)


async def _in_bytes(x: s.Exchange) -> None:
    """The genuine answer, each byte a chunk of its own."""
    head, _, body = x.genuine().partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-length")]
    x.writer.write(b"\r\n".join([*lines, b"transfer-encoding: chunked", b"", b""]))
    for at in range(len(body)):
        x.writer.write(b"1\r\n" + body[at : at + 1] + b"\r\n")
        await x.writer.drain()
    x.writer.write(b"0\r\n\r\n")


async def _interim(x: s.Exchange) -> None:
    """Interim answers without end."""
    while not x.writer.is_closing():
        x.writer.write(b"HTTP/1.1 102 Processing\r\n\r\n" * 2000)
        await x.writer.drain()
        await asyncio.sleep(0.05)


async def _cut(x: s.Exchange) -> None:
    """Reset while the request is still being read; see `Proxy`."""
    x.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    x.writer.transport.abort()


class Proxy:
    """Passes requests on to the control node at `port`; a share of them meets a fault. It keeps the books of what the
    control node was really told."""

    def __init__(self, port: int, clock: ManualClock | RealTime, rng: random.Random, later_s: float = LATER_S) -> None:
        self.port = port
        self.calm = False
        self.requests = 0
        self.faults: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.per_second, self.per_minute = Rate(1.0), Rate(60.0)
        self.outcomes: dict[str, set[int]] = {}  # by task: what the control node took as its outcome, hashed
        self.posted: set[str] = set()  # tasks that the node posted anew
        self._clock = clock
        self._rng = rng
        self._later_s = later_s  # the most that a Retry-After asks for; other waits are shorter or longer with it
        self._limited_until_s = 0.0
        self.late_s = 0.0  # answers that touch a task come so late, and there is no other fault
        self._faults = self._all()
        self._weights = [RARE.get(name, 1.0) for name in self._faults]

    def _all(self) -> dict[str, Bad]:
        def later(status: int, as_date: bool) -> s.Fault:
            async def fault(x: s.Exchange) -> None:
                wait_s = self._rng.uniform(0, self._later_s)
                asked = formatdate(self._clock.wall_s() + wait_s, usegmt=True) if as_date else f"{wait_s:.0f}"
                await s.status(status, {"detail": "later"}, retry_after=asked)(x)

            return fault

        async def late(x: s.Exchange) -> None:
            """What a lock on the server's table does: 20, 60, 200 s, and more than a node waits."""
            await s.late(self._rng.choice((20.0, 60.0, 200.0, 900.0)) * self._later_s / LATER_S)(x)

        async def limited(x: s.Exchange) -> None:
            if self._clock.now_s() >= self._limited_until_s:
                self._limited_until_s = self._clock.now_s() + self._later_s / 2
            await TABLE["500"].fault(x)

        return {
            **TABLE,
            "a late answer": Bad(late, acts=True),
            "a good answer in chunks of one byte": Bad(_in_bytes, acts=True),
            "interim answers without end": Bad(_interim),
            LIMITED: Bad(limited),
            "slow loris": Bad(_slow),
            "429, later": Bad(later(429, False)),
            "429, later by date": Bad(later(429, True)),
            "503, later": Bad(later(503, False)),
            "reset in the request": Bad(_cut),
            "502 for what was done": Bad(TABLE["502"].fault, acts=True),
        }

    async def resolve(self, _names: Resolver, _host: str) -> list[str]:
        """DNS, which may fail by itself, or name an address where nobody listens. Every request begins here."""
        self.requests += 1
        self.per_second.count(self._clock.now_s())
        self.per_minute.count(self._clock.now_s())
        if self.calm or self.late_s or (drawn := self._rng.random()) >= SHARE / 20:
            return ["127.0.0.1"]
        if drawn < SHARE / 40:
            self.faults["no name"] += 1
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        self.faults["no connection"] += 1
        return ["127.0.0.2"]

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request."""
        hit = not self.calm and not self.late_s and self._rng.random() < SHARE
        fault = self._rng.choices(list(self._faults), self._weights)[0] if hit else ""
        if not self.calm and self._clock.now_s() < self._limited_until_s:
            fault = LIMITED
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            try:
                await self._serve(reader, writer, fault)
            finally:
                writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: str) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
        if fault == "reset in the request":
            await reader.readexactly(length // 2)
        else:
            body = await reader.readexactly(length)
        method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        self.kinds[_kind(method, target)] += 1
        if not fault:
            answer = await self.forward(method, target, body)
            if self.late_s and not self.calm and self._touches_a_task(method, target):
                await asyncio.sleep(self.late_s)
            writer.write(answer)
            await writer.drain()
            return
        self.faults[fault] += 1
        bad = self._faults[fault]
        answer = await self.forward(method, target, body) if bad.acts else b""
        await bad.fault(s.Exchange(reader, writer, lambda: answer))

    @staticmethod
    def _touches_a_task(method: str, target: str) -> bool:
        return _kind(method, target) in ("poll", "result", "post anew", "look up")

    async def forward(self, method: str, target: str, body: bytes = b"") -> bytes:
        """The control node's whole answer, and a line in the books."""
        with self._clock.held():
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                head = f"{method} {target} HTTP/1.1", "host: 127.0.0.1", "connection: close", f"content-length: {len(body)}"
                writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + body)
                answer = await reader.read()
            finally:
                writer.close()
        if answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 201")):
            if target.endswith("/result"):
                self.outcomes.setdefault(target.split("/")[-2], set()).add(hash(body))
            elif method == "POST" and target.endswith("/tasks"):
                self.posted.add(_json(answer)["id"])
        return answer


def _kind(method: str, target: str) -> str:
    for name in ("register", "heartbeat", "result", "poll", "openapi", "/nodes"):
        if name in target.replace("/nodes/", "/"):
            return name.strip("/")
    return "post anew" if method == "POST" else "look up"


def _json(answer: bytes) -> Any:
    return json.loads(answer.partition(b"\r\n\r\n")[2])


class Storm:
    """One run: the node's side of the books, and the verdict."""

    def __init__(
        self, requests: int, seed: int, port: int, state: Path, say: Callable[[str], None], late_s: float = 0.0
    ) -> None:
        self.rng = random.Random(seed)
        self.clock = ManualClock(wall=time.time())
        self.proxy = Proxy(port, self.clock, random.Random(f"proxy {seed}"))
        self.proxy.late_s = late_s
        self.target = requests
        self.events: Counter[str] = Counter()
        self.lost: set[str] = set()  # tasks whose outcome was reported as undeliverable
        self.reposts: set[str] = set()
        self.submitted: set[str] = set()
        self.taken: Counter[str] = Counter()
        self.unsound: list[str] = []
        self.escaped: list[str] = []
        self.memory: list[tuple[int, float, int, int]] = []  # requests, MiB, open files, asyncio tasks
        self.state = state
        self.say = say
        self.source: RaeSource
        self.left: list[str] = []
        self.given_back = 0

    # --- what the node tells

    def link_event(self, event: str, fields: Mapping[str, Any]) -> None:
        """See SourceEvents."""
        self.events[event] += 1
        if event == "outcome-lost":
            self.lost.add(fields["task"])
        elif event == "reposted":
            self.reposts.add(fields["new_task"])

    def describe(self) -> Mapping[str, Any]:
        """No fleet asks."""
        return {}

    async def answer(self, question: str, lines: int) -> Mapping[str, Any]:
        """No fleet asks."""
        return {}

    def obey(self, order: object) -> None:
        """No fleet asks."""

    # --- the run

    def run(self) -> None:
        """All of it."""
        loop = MadeLoop(self.clock, sockets=True)
        loop.set_exception_handler(lambda _loop, context: self.escaped.append(str(context.get("exception") or context)))
        alarm = _Alarm(self.escaped)
        logging.getLogger("asyncio").addHandler(alarm)
        try:
            dns = mock.patch.object(Resolver, "addresses", lambda names, host: self.proxy.resolve(names, host))
            slow = constants({"max_requests_per_sec": PER_SEC})
            with dns, slow, asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(self._live())
                gc.collect()  # exceptions that nobody asked for are told of now
        finally:
            logging.getLogger("asyncio").removeHandler(alarm)

    async def _live(self) -> None:
        server = await asyncio.start_server(self.proxy.accept, "127.0.0.1", 0)
        execution = Execution(45, 30, 180, True)
        settings = SourceSettings(
            control=Control(url=f"http://{HOST}:{server.sockets[0].getsockname()[1]}"),
            node_id="storm", state_dir=self.state, heartbeat_interval_s=execution.heartbeat_interval_sec,
            poll_interval_s=execution.poll_interval_sec, retry_on_disconnect=True, on_preempt={},
            capabilities={} if self.proxy.late_s else {"life": "first"},  # RAE's own control node looks at no run
        )  # fmt: skip
        self.source = RaeSource(settings, self.clock, self)
        await self.source.start(lambda: None)
        try:
            while self.proxy.requests < self.target:
                await self._come_and_go(execution.poll_interval_sec)
            self.proxy.calm = True
            end_s = self.clock.now_s() + (LATE_CALM_S if self.proxy.late_s else CALM_S)
            while await self._waiting() and self.clock.now_s() < end_s:
                await self._come_and_go(execution.poll_interval_sec)
        finally:
            await self.source.stop(10)
            server.close()
        self._sample()
        await self._read_the_books()

    async def _come_and_go(self, interval_s: float) -> None:
        """The person is away for a while, and back for a while."""
        until_s = self.clock.now_s() + self.rng.expovariate(1 / 3600)
        self.source.announce(Availability.ONLINE)
        while self.clock.now_s() < until_s and (self.proxy.requests < self.target or self.proxy.calm):
            await self._submit()
            while await self._one_task() and self.rng.random() < 0.5:
                pass  # one more while it is still safe
            self._sample(every=self.target // 10)
            await asyncio.sleep(interval_s)
        self.source.announce(Availability.BUSY)
        await asyncio.sleep(self.rng.expovariate(1 / 900))

    async def _one_task(self) -> bool:
        """Poll; run what came. False: nothing came."""
        if not self.source.ask():
            return False
        while self.source.asking:
            await asyncio.sleep(0.1)
        claim = self.source.take()
        if claim is None:
            return False
        self.source.announce(Availability.BUSY)
        self._judge(claim)
        await asyncio.sleep(self.rng.expovariate(1 / 60))
        how = self.rng.random()
        if how < 0.15:
            self.given_back += how < 0.1
            self.source.hand_back(claim, handed_back("user returned"), "resubmit" if how < 0.1 else "fail")
        else:
            result = {"n": claim.payload["n"], "stdout": "x" * (BIG if how > 0.9 else 10)}
            self.source.settle(claim, failed("exit code 3", result) if how < 0.25 else succeeded(result))
        self.source.announce(Availability.ONLINE)
        return True

    def _judge(self, claim: Claim) -> None:
        """What may run: a task of ours, whole, and not one that ran before, unless its outcome was reported lost."""
        self.taken[claim.id] += 1
        ours = claim.id in self.submitted or claim.id in self.proxy.posted
        if not ours or claim.type != "storm" or set(claim.payload) != {"n"}:
            self.unsound.append(f"{claim} is not what was submitted")
        if self.taken[claim.id] > 1 and claim.id not in self.lost:
            self.unsound.append(f"{claim.id} was run {self.taken[claim.id]} times")

    async def _submit(self) -> None:
        if self.proxy.calm or len(self.submitted) - len(self.proxy.outcomes) >= QUEUE:
            return
        body = {"type": "storm", "payload": {"n": len(self.submitted)}}
        before = set(self.proxy.posted)
        answer = await self.proxy.forward("POST", "/control/tasks", json.dumps(body).encode())
        task_id = _json(answer)["id"]
        self.proxy.posted = before
        self.submitted.add(task_id)

    async def _waiting(self) -> bool:
        """Something is not settled yet."""
        open_ids = (self.submitted | self.proxy.posted) - set(self.proxy.outcomes) - self.lost
        return bool(open_ids) or self.source.status.outbox > 0

    def _sample(self, every: int = 0) -> None:
        if every and self.proxy.requests < (self.memory[-1][0] if self.memory else 0) + every:
            return
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        rss = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        self.memory.append((self.proxy.requests, rss, len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())))
        self.say(f"{self.proxy.requests} requests, {self.clock.now_s() / 3600:.1f} h of made time, {rss:.1f} MiB")

    async def _read_the_books(self) -> None:
        """Every task, as the control node has it in the end."""
        for task_id in sorted(self.submitted | self.proxy.posted):
            task = _json(await self.proxy.forward("GET", f"/control/tasks/{task_id}"))
            took = len(self.proxy.outcomes.get(task_id, ()))
            if task["status"] not in ("COMPLETED", "FAILED") and task_id not in self.lost:
                self.left.append(f"{task_id} is left {task['status']}")
            elif took > 1 and task_id not in self.lost:
                self.left.append(f"{task_id} was settled {took} times, differently")

    # --- the verdict

    def figures(self) -> list[tuple[float, str]]:
        """What happened, for people."""
        proxy, e = self.proxy, self.events
        unknown = len(proxy.posted - self.reposts)
        kinds = ", ".join(f"{count} {name}" for name, count in proxy.kinds.most_common())
        return [
            (proxy.requests, f"requests ({kinds})"),
            (sum(proxy.faults.values()), f"of them met a fault, of {len(proxy.faults)} kinds"),
            (len(self.submitted), "tasks submitted"),
            (len(proxy.posted), "tasks posted anew by the node"),
            (len(proxy.outcomes), "tasks settled at the control node"),
            (len(self.lost), "outcomes reported undeliverable (outcome-lost)"),
            (e["outcome-refused"], "outcomes refused, a bare failure in their place"),
            (e["poll-lost"], "polls whose answer was lost, each reported (poll-lost)"),
            (unknown, f"tasks posted twice, of {e['repost-repeated'] + e['repost-refused']} times that this was reported"),
            (proxy.per_second.most, f"requests in the busiest second, {PER_SEC} allowed"),
            (proxy.per_minute.most, "requests in the busiest minute"),
            (self.clock.now_s() / 3600, "hours of made time"),
            (self.growth_mib, "MiB of memory more at the end than after a fifth of it"),
            (len(self.escaped), "exceptions that reached the loop"),
            (len(self.faults()), "faults in all"),
        ]

    def late_figures(self) -> tuple[float, ...]:
        """With a late server: requests, lost polls, tasks lost, tasks given back, posted again, requests in a minute."""
        lost = sum("PROCESSING" in line for line in self.left)
        return (
            self.proxy.requests, self.events["poll-lost"], lost, self.given_back, len(self.proxy.posted),
            self.proxy.per_minute.most,
        )  # fmt: skip

    def late_faults(self) -> list[str]:
        """What is more than docs/control-node.md promises of a late server."""
        _, polls, lost, back, posted, _ = self.late_figures()
        found = [*self.unsound, *(f"reached the loop: {what}" for what in self.escaped)]
        found += [f"{lost:g} tasks lost with {polls:g} lost polls"] * (lost > polls)
        return found + [f"{posted:g} posts of {back:g} tasks"] * (posted > 2 * back)

    @property
    def growth_mib(self) -> float:
        """MiB."""
        early = next((mib for count, mib, _, _ in self.memory if count >= self.target * 0.2), self.memory[0][1])
        return self.memory[-1][1] - early

    def faults(self, growth_mib: float = 6.0) -> list[str]:
        """What is not as it must be."""
        found = [*self.unsound, *self.left, *(f"reached the loop: {what}" for what in self.escaped)]
        doubled, said = len(self.proxy.posted - self.reposts), self.events["repost-repeated"] + self.events["repost-refused"]
        if doubled > said:
            found.append(f"{doubled} tasks were posted twice, and {said} times it was said")
        if self.proxy.per_second.most > PER_SEC:
            found.append(f"{self.proxy.per_second.most} requests within a second, {PER_SEC} allowed")
        if self.growth_mib > growth_mib:
            found.append(f"memory grew by {self.growth_mib:.1f} MiB")
        files = [count for _, _, count, _ in self.memory]
        if files[-1] > files[0] + 2:
            found.append(f"open files grew from {files[0]} to {files[-1]}")
        if self.memory[-1][3] > 2:
            found.append(f"{self.memory[-1][3]} asyncio tasks are left")
        if self.source.status.outbox:
            found.append(f"{self.source.status.outbox} outcomes are left in the outbox")
        return found


class _Alarm(logging.Handler):
    def __init__(self, told: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._told = told

    def emit(self, record: logging.LogRecord) -> None:
        """See Handler."""
        self._told.append(record.getMessage())


@contextlib.contextmanager
def stormy(port: int, seed: int) -> Iterator[tuple[str, Proxy]]:
    """A proxy before the control node at `port` in real time, in a thread and a loop of its own; its URL."""
    proxy, loop = Proxy(port, RealTime(), random.Random(seed), later_s=0.5), asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(proxy.accept, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", proxy
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.1))  # for what was cancelled to end
        loop.close()


def storm(requests: int, seed: int, say: Callable[[str], None] = lambda _line: None, *, late_s: float = 0.0) -> Storm:
    """That many requests in a storm, then calm until all is settled. `late_s`: see Proxy."""
    with control_node() as control, tempfile.TemporaryDirectory(prefix="storm-") as state:
        run = Storm(requests, seed, int(control.url.rpartition(":")[2]), Path(state), say, late_s)
        run.run()
    return run


if __name__ == "__main__":
    sys.exit("see tests/bench/faults.py")
