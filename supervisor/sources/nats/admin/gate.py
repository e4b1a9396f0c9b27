"""The gate of a fleet: the one user of JetStream. Nodes, operators and bridges ask it, and it does only what is theirs.

A server checks where a request goes, but not where its answer goes: a user that may ask JetStream for anything can name an
order to JetStream as the place of the answer. So nobody but the gate asks JetStream. A user asks `rae.gate.USER.SUBJECT`; its
rights at the server say which subjects; the gate answers at that user's own inbox and nowhere else.

A task that a node gets carries a lease: its address at JetStream, the node, the task and the end of the lease, signed by the
gate. Without it no task is acknowledged or given back, and no result or saved state is stored. The gate remembers nothing, so
several can run beside each other (one on each server); all have the same password, from which the signing key is made.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, Final

from states.observation import Link
from supervisor.linux import console
from supervisor.linux.bounded import end
from supervisor.linux.clock import SystemClock
from supervisor.sources.desired import QUESTIONS
from supervisor.sources.errors import MIB, RequestError
from supervisor.sources.link import RetryingLink
from supervisor.sources.nats import subjects
from supervisor.sources.nats.admin.setup import DEFINITIONS, NoDefinitions, read, set_up
from supervisor.sources.nats.admin.waking import LOOK_S, Waker
from supervisor.sources.nats.connection import ACK, ANSWER_S, IN_PROGRESS, TERM, Connection, Server, nak
from supervisor.sources.nats.errors import NO_RESPONDERS, NOTHING, Message, Refused
from supervisor.sources.sanitize import decode

ID: Final = r"[0-9a-f-]{36}"
NAME: Final = r"[A-Za-z0-9_=-]+"
MAX_PULLS: Final = 8  # of one user at a time
MAX_REQUESTS: Final = 256
MAX_WAIT_S: Final = 60.0
NAK: Final = re.compile(rb'-NAK( \{"delay": \d{1,15}\})?')
KEPT: Final = frozenset({"Nats-Msg-Id", subjects.REASON_HEADER})  # others change what JetStream does
MAX_BODY: Final = 1024
LAGS_S: Final = (0.0, 0.2, 1.0)
MAX_ANSWER: Final = MIB  # of a node

PULL: Final = re.compile(rf"\$JS\.API\.CONSUMER\.MSG\.NEXT\.({subjects.TASKS}|{subjects.RESULTS})\.({NAME})")
LEASE: Final = re.compile(r"lease\.\d+\.\d+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
# what needs the lease of the task that it names; `sequence` is a task whose id could not be read
OF_A_TASK: Final = re.compile(
    rf"(?:\$JS\.API\.DIRECT\.GET\.{subjects.PLACES}\.)?rae\.(?:results|places|dead)\.(?P<name>{ID}|sequence-\d+)"
)
FREE: Final = re.compile("|".join((
    rf"rae\.tasks\.{NAME}\.{ID}",
    rf"\$JS\.API\.CONSUMER\.INFO\.(?:{subjects.TASKS}|{subjects.RESULTS})\.{NAME}",
    rf"\$JS\.API\.STREAM\.INFO\.{NAME}",
    rf"\$JS\.API\.DIRECT\.GET\.{subjects.RESULTS}\.rae\.results\.{ID}",
    rf"\$KV\.(?:{subjects.NODES}|{subjects.DESIRED}|{subjects.WAKE})\.{NAME}",
    rf"\$JS\.API\.DIRECT\.GET\.{subjects.DESIRED_STREAM}\.\$KV\.{subjects.DESIRED}\.{NAME}",
)))  # fmt: skip
ASK: Final = re.compile(rf"rae\.ask\.{NAME}\.(?:{'|'.join(QUESTIONS)})")
BUCKETS: Final = f"{subjects.NODES_STREAM}|{subjects.WAKE_STREAM}"
WITH_BODY: Final = re.compile(rf"\$JS\.API\.(?:CONSUMER\.LIST\.{subjects.TASKS}|DIRECT\.GET\.(?:{BUCKETS}))")


class Denied(Exception):
    """It is not this user's to ask; one line."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a lease says."""

    user: str
    ack: str  # where JetStream takes the acknowledgement
    names: Sequence[str]  # the task's id, and its place in the stream
    until_s: float  # on the wall clock; the gates of a fleet share it better than they share any other
    length_s: float  # of each renewal


class Gate:
    """Answers requests on an open connection. `secret`: the password that all gates of the fleet share."""

    def __init__(self, connection: Connection, secret: str, wall_s: Callable[[], float] = time.time) -> None:
        self._connection = connection
        self._key = hashlib.sha256(b"rae lease " + secret.encode()).digest()
        self._wall_s = wall_s
        self._lease_s: dict[tuple[str, str], float] = {}
        self._jobs: set[asyncio.Task[None]] = set()
        self._asked: Counter[tuple[str, bool]] = Counter()

    async def open(self) -> None:
        """Hear all requests from now on."""
        await self._connection.listen(f"{subjects.GATE}.*.>", self._hear, queue="gates")
        await self._connection.listen(f"{subjects.GATE}.*.lease.>", self._not_taken)

    async def close(self) -> None:
        """End what is under way."""
        await end(*self._jobs)

    def _not_taken(self, message: Message) -> None:
        """The server says that nobody hears the answer with this lease any more: the next node gets the task at once."""
        if message.headers.get("Status") != NO_RESPONDERS:
            return
        user = message.subject.split(".")[2]
        job = asyncio.create_task(self._safely(self._give_back(user, message.subject), ""))
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)

    async def _give_back(self, user: str, address: str) -> None:
        held = self._held(user, address)
        if self._wall_s() <= held.until_s:  # later the task may be another node's, and a node may say this, too
            await self._connection.request(held.ack, nak())

    def _hear(self, message: Message) -> None:
        user, _, subject = message.subject.removeprefix(f"{subjects.GATE}.").partition(".")
        if not message.reply.startswith(f"_INBOX.{user}."):
            return  # the answer would go where this user may not send
        pull = PULL.fullmatch(subject)
        most = MAX_PULLS if pull else MAX_REQUESTS
        kind = (user, pull is not None)
        if self._asked[kind] >= most:
            return
        work = self._pull(user, message, pull[1], pull[2]) if pull else self._answer(user, subject, message)
        self._asked[kind] += 1
        self._jobs.add(job := asyncio.create_task(self._safely(work, message.reply)))

        def done(job: asyncio.Task[None]) -> None:
            self._jobs.discard(job)
            self._asked[kind] -= 1
            if not self._asked[kind]:
                del self._asked[kind]

        job.add_done_callback(done)

    async def _safely(self, work: Coroutine[Any, Any, None], reply: str) -> None:
        """Whatever a request holds, it ends with an answer and never ends the gate."""
        try:
            await work
        except Denied as denied:
            await self._say(reply, 403, str(denied))
        except Refused as refused:
            await self._say(reply, refused.status or 400, refused.reason)
        except RequestError as error:
            await self._say(reply, 503, error.reason)
        except Exception as error:  # noqa: BLE001
            await self._say(reply, 400, f"the request cannot be read ({type(error).__name__})")

    async def _say(self, reply: str, code: int, why: str) -> None:
        if not reply:
            return
        body = json.dumps({"error": {"code": code, "description": why}}).encode()
        try:
            await self._connection.send(Message(reply, "", body, {}))
        except RequestError:
            return  # the asker's own time limit ends its wait

    # --- work and leases

    async def _pull(self, user: str, message: Message, stream: str, consumer: str) -> None:
        wanted = decode(message.data)
        wait_s = 0.0 if wanted.get("no_wait") else min(MAX_WAIT_S, max(0.001, int(wanted["expires"]) / 1e9))
        asked: dict[str, Any] = {"batch": 1, "no_wait": True} if not wait_s else {"batch": 1, "expires": int(wait_s * 1e9)}
        length_s = await self._length_s(stream, consumer)
        found = await self._connection.first(subjects.next_subject(stream, consumer), json.dumps(asked).encode(), wait_s)
        if found is None:
            found = Message("", "", b"", {"Status": NOTHING})
        lease = self._lease(user, found, length_s) if found.reply else ""
        await self._connection.send(Message(message.reply, lease, found.data, found.headers))

    async def _length_s(self, stream: str, consumer: str) -> float:
        known = self._lease_s.get((stream, consumer))
        if known is None:
            info = await self._connection.api(f"CONSUMER.INFO.{stream}.{consumer}")
            known = self._lease_s[(stream, consumer)] = info["config"]["ack_wait"] / 1e9
        return known

    def _lease(self, user: str, found: Message, length_s: float) -> str:
        names = (found.subject.rpartition(".")[2], f"sequence-{found.reply.split('.')[-4]}")
        return self._address(Held(user, found.reply, names, self._wall_s() + length_s, length_s))

    def _address(self, held: Held) -> str:
        text = json.dumps(astuple(held), separators=(",", ":")).encode()
        counts = ".".join(held.ack.split(".")[-5:-3])  # of deliveries, and in the stream, for the node to read
        return f"{subjects.GATE}.{held.user}.lease.{counts}.{_text(text)}.{_text(self._sign(text))}"

    def _sign(self, text: bytes) -> bytes:
        return hmac.digest(self._key, text, "sha256")[:16]

    def _held(self, user: str, address: str) -> Held:
        """What the lease at this address says. Raises Denied when it is not this user's."""
        text, signature = address.split(".")[-2:] if address.count(".") > 1 else ("", "")
        body = _bytes(text)
        if not hmac.compare_digest(self._sign(body), _bytes(signature)):
            raise Denied("this lease is none of this fleet's")
        held = Held(*json.loads(body))
        if held.user != user:
            raise Denied("this lease is another node's")
        return held

    async def _acknowledge(self, user: str, message: Message) -> None:
        held = self._held(user, message.subject)
        lapsed = self._wall_s() > held.until_s
        what, headers = message.data, {}
        if what in (ACK, TERM):
            if lapsed and what == TERM:
                raise Denied("the lease has ended")
            if not held.ack.startswith(f"$JS.ACK.{subjects.RESULTS}.") and not await self._ended(held):
                raise Denied("the task has neither a result nor a dead letter")
        elif lapsed:
            raise Denied("the lease has ended")
        elif what == IN_PROGRESS:
            headers = {subjects.LEASE_HEADER: self._address(replace(held, until_s=self._wall_s() + held.length_s))}
        elif not NAK.fullmatch(what):
            raise Denied("this is no acknowledgement")
        await self._connection.request(held.ack, what)
        await self._connection.send(Message(message.reply, "", b"", headers))

    async def _ended(self, held: Held) -> bool:
        """Its outcome is stored, so nothing is lost with it. A copy that lags behind is asked again."""
        for wait_s in LAGS_S:
            await asyncio.sleep(wait_s)
            for stream, kind in ((subjects.RESULTS, "results"), (subjects.DEAD, "dead")):
                for name in held.names if kind == "dead" else held.names[:1]:
                    if await self._connection.last(stream, f"rae.{kind}.{name}") is not None:
                        return True
        return False

    # --- all else

    async def _answer(self, user: str, subject: str, message: Message) -> None:
        if LEASE.fullmatch(subject):
            await self._acknowledge(user, message)
            return
        body = message.data
        is_question = ASK.fullmatch(subject) is not None
        if is_question or WITH_BODY.fullmatch(subject):
            if len(body) > MAX_BODY:
                raise Denied("the request is too long")
            if is_question:
                await self._ask(subject, message)
                return
        elif (task := OF_A_TASK.fullmatch(subject)) is not None:
            held = self._held(user, message.headers.get(subjects.LEASE_HEADER, ""))
            if task["name"] not in held.names:
                raise Denied("the lease is another task's")
        elif not FREE.fullmatch(subject):
            raise Denied("nothing of this name can be asked for")
        if subject.startswith("$JS.") and not WITH_BODY.fullmatch(subject):
            body = b""
        headers = {name: text for name, text in message.headers.items() if name in KEPT}
        answer = await self._connection.request(subject, body, headers=headers)
        await self._connection.send(Message(message.reply, "", answer.data, answer.headers or {}))


    async def _ask(self, subject: str, message: Message) -> None:
        """Pass a question to a node on."""
        answer = await self._connection.ask(subject, message.data, ANSWER_S)
        if len(answer) > MAX_ANSWER:
            raise Denied("the node's answer is too long")
        await self._connection.send(Message(message.reply, "", answer, {}))


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        raise Denied("this is no lease") from None


async def serve(
    server: Server, stop: asyncio.Event, say: Callable[[str], None], *, replicas: int, wanted: Mapping[str, Any]
) -> None:
    """Make or update the streams, then answer until `stop` is set. A lost connection is made again."""
    connection = Connection(server, name="rae-node gate", on_lost=lambda error: link.fail(error))
    waker = Waker(connection, say)
    gate: Gate | None = None

    async def connect() -> None:
        nonlocal gate
        await connection.open()
        for line in await set_up(connection, replicas, wanted=wanted):
            say(line)
        gate = Gate(connection, server.password or "")
        await gate.open()

    async def keep() -> None:
        await link.rest(LOOK_S)
        with contextlib.suppress(RequestError, KeyError, TypeError, AttributeError):  # this wakes nobody, and ends nothing
            await waker.look(time.monotonic())

    async def close() -> None:
        if gate is not None:
            await gate.close()
        await connection.close()

    def changed(state: Link, reason: str) -> None:
        say(f"gate: {state.value}" + (f": {reason}" if reason else ""))

    link = RetryingLink(connect, keep, close, clock=SystemClock(), retry=True, changed=changed)
    work = asyncio.create_task(link.run())
    try:
        await stop.wait()
    finally:
        await end(work)
        await close()


def main(argv: Sequence[str]) -> int:
    """`deploy/fleet/gate --server URL --password-file FILE [--replicas 3]`; exit 0 stopped, 1 wrong files, 2 wrong usage."""
    import argparse

    from supervisor.sources.nats.admin.access import AccessError, add_arguments, server_of

    what = "Make a fleet's streams, then answer its nodes, operators and bridges until SIGTERM or Ctrl-C."
    parser = argparse.ArgumentParser(prog="deploy/fleet/gate", description=what)
    add_arguments(parser)
    parser.add_argument("--replicas", type=int, choices=(1, 3, 5), default=1, help="copies of each stream; 3 for three servers")
    parser.add_argument("--file", type=Path, default=DEFINITIONS, help="the definitions of the streams")
    given = parser.parse_args(argv)

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    async def work() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await serve(server, stop, say, replicas=given.replicas, wanted=wanted)

    try:
        wanted = read(given.file)
        server = server_of(given.server, given.user, given.password_file, given.ca_file)
    except NoDefinitions as wrong:
        sys.stderr.write(f"--file: {wrong}\n")
        return 1
    except AccessError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    asyncio.run(work())
    return 0


if __name__ == "__main__":
    console.prepare()
    sys.exit(main(sys.argv[1:]))
