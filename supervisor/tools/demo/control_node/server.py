"""A small, strict HTTP/1.1 server on h11 and asyncio streams. Everything is limited in size and in time.

It serves loopback only. A web page in a browser on the same machine can send to loopback too, tasks run programs, and a poll
takes a task by GET. So a request is refused if its host name is not a loopback one, or if a page in a browser made it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

import h11

MAX_BODY_BYTES: Final = 64 * 1024 * 1024
MAX_HEADER_BYTES: Final = 32 * 1024
MAX_CONNECTIONS: Final = 128
READ_BYTES: Final = 64 * 1024
LINGER_S: Final = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds that a client has to send its request line and headers (from the connection, or from the last answer), to
    send the body, and to take the answer."""

    headers_s: float = 15.0
    body_s: float = 60.0
    answer_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    query: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    peer: str


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    value: Any = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    close: bool = False


Handler = Callable[[Request], Reply]


class _Refused(Exception):
    """The request cannot go on; the connection is closed after this answer."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.reply = Reply(status, {"detail": HTTPStatus(status).phrase}, close=True)


def loopback(host: str) -> str:
    """The loopback address of `host`.

    Raises:
        ValueError: it has none.
    """
    if host == "localhost":
        return "127.0.0.1"
    if not ipaddress.ip_address(host).is_loopback:
        raise ValueError(f"{host} is not a loopback address")
    return host


async def listen(
    handler: Handler, host: str, port: int, ready: Callable[[str], None], *, timeouts: Timeouts | None = None
) -> None:
    """Serve until cancelled. `ready` gets the URL once connections are accepted.

    Raises:
        ValueError: `host` is not a loopback address.
        OSError: the port cannot be opened.
    """
    address = loopback(host)
    times = timeouts or Timeouts()
    connections: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            if len(connections) <= MAX_CONNECTIONS:
                await _Connection(handler, reader, writer, times).serve()
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # the client is gone or too slow, or the server stops: the connection ends
        finally:
            connections.discard(task)
            writer.close()

    server = await asyncio.start_server(accept, address, port)
    try:
        bound_host, bound_port = server.sockets[0].getsockname()[:2]
        ready(f"http://[{bound_host}]:{bound_port}" if ":" in bound_host else f"http://{bound_host}:{bound_port}")
        await asyncio.get_running_loop().create_future()
    finally:
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


class _Connection:
    def __init__(
        self, handler: Handler, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, timeouts: Timeouts
    ) -> None:
        self._handler = handler
        self._reader = reader
        self._writer = writer
        self._timeouts = timeouts
        self._wire = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADER_BYTES)
        self._peer = str((writer.get_extra_info("peername") or ("",))[0])

    async def serve(self) -> None:
        """Answer requests until one side closes."""
        while True:
            try:
                request = await self._request()
                if request is None:
                    return
                reply = self._answer(request)
            except h11.RemoteProtocolError as error:
                reply = _Refused(error.error_status_hint).reply
            except _Refused as refused:
                reply = refused.reply
            await self._send(reply)
            if self._wire.states != {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}:
                await self._linger()
                return
            self._wire.start_next_cycle()

    def _answer(self, request: Request) -> Reply:
        started_s = time.monotonic()
        try:
            reply = self._handler(request)
        except Exception as error:  # noqa: BLE001  one bad request must not show a traceback, nor end the server
            log.error("%s %s failed: %s", request.method, request.path, type(error).__name__)
            reply = Reply(500, {"error": {"code": "500", "message": "Internal Server Error"}}, close=True)
        log.info("%s %s %d %.1f ms", request.method, request.path, reply.status, 1e3 * (time.monotonic() - started_s))
        return reply

    async def _linger(self) -> None:
        """Drop what the client still sends, for a moment: a close with unread bytes would reset the connection, and the
        client would lose the answer."""
        if self._writer.can_write_eof():
            self._writer.write_eof()
        async with asyncio.timeout(LINGER_S):
            while await self._reader.read(READ_BYTES):
                pass

    async def _request(self) -> Request | None:
        async with asyncio.timeout(self._timeouts.headers_s):
            head = await self._event()
        if not isinstance(head, h11.Request):
            return None  # the client closed
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
        _check_same_machine(headers)
        if int(headers.get("content-length", "0")) > MAX_BODY_BYTES:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        body = bytearray()
        try:
            async with asyncio.timeout(self._timeouts.body_s):
                while not isinstance(event := await self._event(), h11.EndOfMessage):
                    if not isinstance(event, h11.Data):
                        return None
                    body += event.data
                    if len(body) > MAX_BODY_BYTES:
                        raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        except TimeoutError:
            raise _Refused(HTTPStatus.REQUEST_TIMEOUT) from None
        path, _, query = head.target.decode("latin-1").partition("?")
        return Request(head.method.decode("latin-1"), path, query, headers, bytes(body), self._peer)

    async def _event(self) -> h11.Event | type[h11.PAUSED]:
        while (event := self._wire.next_event()) is h11.NEED_DATA:
            if self._wire.they_are_waiting_for_100_continue:
                go_on = h11.InformationalResponse(status_code=100, headers=[])
                self._writer.write(self._wire.send(go_on) or b"")
            self._wire.receive_data(await self._reader.read(READ_BYTES))
        return event  # type: ignore[return-value]  # NEED_DATA is excluded above

    async def _send(self, reply: Reply) -> None:
        body = json.dumps(reply.value, separators=(",", ":")).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **reply.headers}
        if reply.close:
            headers["connection"] = "close"
        response = h11.Response(
            status_code=reply.status, reason=HTTPStatus(reply.status).phrase, headers=list(headers.items())
        )
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self._writer.write(self._wire.send(event) or b"")
        async with asyncio.timeout(self._timeouts.answer_s):
            await self._writer.drain()


def _check_same_machine(headers: Mapping[str, str]) -> None:
    """Refuse a request that a web page may have sent (see the top of this file)."""
    host = headers.get("host", "localhost")
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    # An image or a link sends no Origin; it tells where it comes from, or at least that a browser sends it.
    page = "origin" in headers or "referer" in headers or headers.get("sec-fetch-site", "none") != "none"
    with contextlib.suppress(ValueError):
        loopback(name)
        if not page:
            return
    raise _Refused(HTTPStatus.FORBIDDEN)
