"""Control nodes on loopback for tests: all four dialects with and without auth, and every way in which a server misbehaves."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import socket
import ssl
import struct
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from support.waiting import DEADLINE_S, eventually

from supervisor.linux.clock import SystemClock
from supervisor.tools.demo.control_node.api import Api
from supervisor.tools.demo.control_node.server import Reply, Request
from supervisor.tools.demo.control_node.store import ControlNode

PATHS = {
    "A": {"prefix": "/control", "poll": "/tasks/poll", "lookup": False},
    "B": {"prefix": "/control", "poll": "/tasks_poll"},
    "C": {"prefix": "/v1/control", "poll": "/tasks_poll"},
    "D": {"prefix": "/v2/nodes", "poll": "/tasks_poll"},
}
until = eventually


def in_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test in a loop of its own, under a deadline that is later than any of the waits in it."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 3 * DEADLINE_S))

    return run


@dataclass
class Exchange:
    """What a fault gets: the connection, and the genuine answer, made only when it asks for it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    genuine: Callable[[], bytes]


Fault = Callable[[Exchange], Awaitable[None]]


def raw(content: bytes) -> Fault:
    """These bytes, whatever was asked; the request itself is not acted on."""

    async def fault(x: Exchange) -> None:
        x.writer.write(content)
        await x.writer.drain()

    return fault


def status(code: int, body: Any = None, **headers: str) -> Fault:
    """A status with a JSON body."""
    return raw(http(code, json.dumps(body).encode(), {k.replace("_", "-"): v for k, v in headers.items()}))


def http(code: int, body: bytes, headers: dict[str, str] | None = None, kind: str = "application/json") -> bytes:
    """An HTTP answer."""
    lines = [f"HTTP/1.1 {code} X", f"content-type: {kind}", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def acted_then_closed(x: Exchange) -> None:
    """The request is acted on; its answer is lost."""
    x.genuine()


async def closed(x: Exchange) -> None:
    """Closed before any answer, the request not acted on."""


async def half(x: Exchange) -> None:
    """The request is acted on; the answer breaks off."""
    answer = x.genuine()
    x.writer.write(answer[: len(answer) - 20])
    await x.writer.drain()


async def reset(x: Exchange) -> None:
    """Reset in the middle of the answer."""
    x.writer.write(x.genuine()[:60])
    await x.writer.drain()
    sock = x.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    x.writer.transport.abort()


async def trickle(x: Exchange) -> None:
    """A byte every 20 ms, for ever."""
    x.writer.write(b"HTTP/1.1 200 X\r\ncontent-length: 100000\r\n\r\n")
    while not x.writer.is_closing():
        x.writer.write(b" ")
        await x.writer.drain()
        await asyncio.sleep(0.02)


async def silent(x: Exchange) -> None:
    """No answer, until the client goes."""
    await x.reader.read()


def late(seconds: float) -> Fault:
    """The request is acted on at once, whether or not somebody still waits; the answer comes late."""

    async def fault(x: Exchange) -> None:
        answer = x.genuine()
        await asyncio.sleep(seconds)
        x.writer.write(answer)
        await x.writer.drain()

    return fault


async def huge(x: Exchange) -> None:
    """40 MB without a length, and sound JSON at that."""
    x.writer.write(b"HTTP/1.1 200 X\r\ncontent-type: application/json\r\n\r\n")
    for _ in range(40):
        x.writer.write(b" " * 1_000_000)
        await x.writer.drain()
    x.writer.write(b"null")


@dataclass
class RaeServer:
    """A control node with the paths of a dialect. `faults[KIND]` are played in order on calls of that kind (register,
    heartbeat, poll, create, task, result, openapi, nodes), then `always[KIND]` if there is one; every other call is answered
    by the real logic. With `key`, every call but the OpenAPI document needs it."""

    dialect: str = "B"
    key: str | None = None
    openapi: bool = True
    node: ControlNode = field(default_factory=lambda: ControlNode(SystemClock()))
    faults: dict[str, list[Fault]] = field(default_factory=lambda: defaultdict(list))
    always: dict[str, Fault] = field(default_factory=dict)
    calls: list[tuple[str, Any]] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    url: str = ""

    def of(self, kind: str) -> list[Any]:
        """The bodies of the calls of that kind so far."""
        return [body for name, body in self.calls if name == kind]

    def add(self, kind: str = "t", payload: Any = None, priority: int = 0) -> str:
        """Queue a task; its id."""
        return str(self.node.create(kind, {} if payload is None else payload, priority)["id"])

    def task(self, task_id: str) -> dict[str, Any]:
        """A task as it is now."""
        from uuid import UUID

        return self.node.task(UUID(task_id))

    def answer(self, request: Request) -> Reply:
        """The genuine answer."""
        if request.path == "/openapi.json" and not self.openapi:
            return Reply(404, {"detail": "Not Found"})
        if self.key is not None and request.path != "/openapi.json" and request.headers.get("x-api-key") != self.key:
            return Reply(401, {"error": {"code": "401", "message": "Authentication required."}})
        return Api(self.node, **PATHS[self.dialect])(request)  # type: ignore[arg-type]

    def kind(self, request: Request) -> str:
        """What a call is."""
        path = request.path
        if path.endswith(("register", "heartbeat", "result", "/nodes")):
            return path.rpartition("/")[2]
        if path == "/openapi.json":
            return "openapi"
        if "poll" in path:
            return "poll"
        return "create" if request.method == "POST" else "task"

    @contextlib.asynccontextmanager
    async def listening(self, port: int = 0, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[RaeServer]:
        """Serve while the context lasts."""
        tasks: set[asyncio.Task[Any]] = set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            try:
                await self._serve(reader, writer)
            except (OSError, asyncio.CancelledError, asyncio.IncompleteReadError):
                pass
            finally:
                tasks.discard(task)
                writer.close()

        server = await asyncio.start_server(accept, "127.0.0.1", port, ssl=tls)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for task in list(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        path, _, query = target.partition("?")
        request = Request(method, path, query, headers, body, "127.0.0.1")
        kind = self.kind(request)
        self.requests.append(request)
        self.times_s.append(asyncio.get_running_loop().time())
        self.calls.append((kind, json.loads(body) if body else query))

        def genuine() -> bytes:
            reply = self.answer(request)
            return http(reply.status, json.dumps(reply.value).encode(), dict(reply.headers))

        fault = self.faults[kind].pop(0) if self.faults[kind] else self.always.get(kind)
        if fault is not None:
            await fault(Exchange(reader, writer, genuine))
        else:
            writer.write(genuine())
            await writer.drain()
