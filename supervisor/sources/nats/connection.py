"""One connection to a NATS server, and the few things that a fleet needs of JetStream. The only file that knows nats-py.

It never reconnects by itself: whoever uses it backs off and opens a new one, so that no request of an old connection is
sent late on a new one. Every wait has an end. What goes wrong comes out as `RequestError`, with a reason in words.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import ssl
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from supervisor.linux.bounded import wait_for_event, within
from supervisor.linux.text import one_line
from supervisor.sources.errors import MIB, RequestError, describe_error, tls_context
from supervisor.sources.nats.errors import MAX_TEXT, NOTHING, TOO_LARGE, Delivery, Refused, family, read_answer, read_delivery
from supervisor.sources.nats.subjects import inbox, next_subject

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

ANSWER_S: Final = 5.0
CLOSE_S: Final = 1.0
DRAIN_S: Final = 2.0
PING_S: Final = 30  # a connection that has died in silence is noticed after two of these, or by the next request
IMPATIENT_S: Final = 1.0  # between two requests for work of one poll, at least
ROUND_S: Final = 10.0  # a request for work is renewed so often: one that a server took along when it died is lost
HEADERS_BYTES: Final = 12  # what a message's headers take beside names, texts and four bytes each: NATS/1.0 and an empty line

ACK: Final = b"+ACK"
IN_PROGRESS: Final = b"+WPI"
TERM: Final = b"+TERM"


@dataclass(frozen=True, slots=True)
class Knobs:
    """What a person would change, by the names that it has where the servers are named: for a node, in node.yaml."""

    url: str = "control.url"
    ca: str = "control.ca_file"
    no_key: str = "set control.token"
    wrong_key: str = "check control.token and node.id"


@dataclass(frozen=True, slots=True)
class Server:
    """Where a fleet's servers are, and as whom to come. `url` may name several, separated by commas."""

    url: str
    user: str = ""
    password: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    connect_timeout_s: float = 5.0
    knobs: Knobs = field(default=Knobs(), compare=False)


class Connection:
    """A connection. `on_lost(reason)` is called once when it ends by itself."""

    def __init__(self, server: Server, *, name: str, on_lost: Callable[[str], None] = lambda reason: None) -> None:
        self._server = server
        self._name = name
        self._on_lost = on_lost
        self._client: Client | None = None
        self._closing = False
        self._over = asyncio.Event()
        self._error = ""

    async def open(self) -> None:
        """Connect to one of the servers.

        Raises:
            RequestError: none could be had.
        """
        from nats.aio.client import Client
        from nats.errors import Error

        logging.getLogger("nats").setLevel(logging.CRITICAL + 1)  # it logs tracebacks that quote what was sent (R6)
        server = self._server
        urls = [url.strip() for url in server.url.split(",")]
        context = await asyncio.to_thread(tls_context, server.ca_file) if any(u.startswith("tls:") for u in urls) else None
        client = Client()

        def proven() -> None:
            # nats-py speaks TLS where the server asks for it, whatever the URL says
            if context is not None and not _encrypted(client):
                raise Error(f"the server offers no TLS, and {server.knobs.url} says tls://")

        def password() -> str:
            proven()  # asked for just before it is sent: never in the clear to a server that was to prove itself
            return server.password or ""

        login = {"user": server.user, "password": password} if server.password is not None else {}
        try:
            async with asyncio.timeout(server.connect_timeout_s * (len(urls) + 1)):
                await client.connect(
                    urls,
                    name=self._name,
                    tls=context,
                    error_cb=self._told,
                    closed_cb=self._closed,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    connect_timeout=server.connect_timeout_s,  # type: ignore[arg-type]  # seconds, also fractions
                    ping_interval=PING_S,
                    inbox_prefix=inbox(server.user) if server.user else "_INBOX",
                    **login,  # type: ignore[arg-type]  # nats-py types a callback for the password wrongly
                )
            proven()
            if not client.is_connected:
                raise ConnectionResetError("the server hung up")
        except asyncio.CancelledError:
            self._closing = True
            _end(client)
            raise
        except Exception as error:  # noqa: BLE001  whatever a peer does to the library is trouble, never an end
            self._closing = True
            told = client._server_info
            why = self._why(error, isinstance(told, dict) and bool(told.get("auth_required")))
            await _let_go(client)
            raise RequestError(why) from None
        self._client = client
        if client._reading_task is not None:
            client._reading_task.add_done_callback(self._deaf)

    async def close(self) -> None:
        """Let go of the connection."""
        self._closing = True
        self._over.set()
        client, self._client = self._client, None
        if client is not None:
            await _let_go(client)

    @property
    def up(self) -> bool:
        """It is connected, as far as is known."""
        return self._client is not None and self._client.is_connected

    @property
    def url(self) -> str:
        """The server that it is connected to; empty while it is not."""
        url = self._client.connected_url if self._client is not None else None
        return f"{url.scheme}://{url.netloc.rpartition('@')[2]}" if url is not None else ""

    @property
    def max_payload(self) -> int:
        """The most bytes of a message, with its headers, that this server takes."""
        most: Any = self._client.max_payload if self._client is not None else None
        return most if type(most) is int and most > 0 else MIB

    def too_large(self, data: bytes, headers: Mapping[str, str]) -> str:
        """Why this server does not take such a message; empty: it does."""
        size = len(data) + sum(len(name) + len(text.encode()) + 4 for name, text in headers.items()) + HEADERS_BYTES
        if size <= self.max_payload:
            return ""
        return f"{size / MIB:.2f} MiB are more than the {self.max_payload / MIB:.2f} MiB that {self.url} takes"

    @staticmethod
    def msg_id(msg_id: str) -> dict[str, str]:
        """The header by which a message is stored once."""
        return {"Nats-Msg-Id": msg_id}

    async def request(
        self, subject: str, data: bytes = b"", *, headers: Mapping[str, str] | None = None, timeout_s: float = ANSWER_S
    ) -> Msg:
        """The answer to a request.

        Raises:
            Refused: it is larger than the server takes; nothing was sent, for the server would hang up.
            RequestError: there is none; the server may have acted all the same.
        """
        from nats.errors import NoRespondersError

        client = self._connected()
        if why := self.too_large(data, headers or {}):
            raise Refused(why, status=TOO_LARGE)
        asking = client.request(subject, data, timeout=timeout_s, headers=dict(headers) if headers else None)
        try:
            return await self._while_connected(asking)
        except NoRespondersError:
            reason = f"{self.url} has no stream for {family(subject)}: set it up (deploy/fleet), or wait for its leader"
            raise RequestError(reason, sent=False) from None
        except Exception as error:  # noqa: BLE001  whatever a peer does to the library is trouble, never an end
            denied = f" ({self._error})" if self._error else ""
            self._error = ""
            why = f" within {timeout_s:g} s" if isinstance(error, TimeoutError) else f": {_lost(error)}"
            raise RequestError(f"{self.url or self._server.url} gives no answer for {family(subject)}{denied}{why}") from None

    async def _while_connected(self, asking: Coroutine[Any, Any, Msg]) -> Msg:
        """The answer, if it comes before the connection ends: nats-py would wait on for one that cannot come."""
        answer, over = asyncio.ensure_future(asking), asyncio.ensure_future(self._over.wait())
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())  # it may fail with nobody there
        try:
            await asyncio.wait({answer, over}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise ConnectionResetError
            return answer.result()
        finally:
            answer.cancel()
            over.cancel()

    async def api(self, name: str, body: Any = None) -> dict[str, Any]:
        """A call of JetStream's own.

        Raises:
            Refused: the answer is an error.
            RequestError: there is no answer.
        """
        msg = await self.request(f"$JS.API.{name}", b"" if body is None else json.dumps(body).encode())
        return read_answer(msg.data, name)

    async def store(self, subject: str, data: bytes, msg_id: str, headers: Mapping[str, str] | None = None) -> bool:
        """Have a message stored once. False: this very one, by its id, was stored before.

        Raises:
            Exists: another one lies there, and it stands.
            RequestError: it may be stored or not; the same call again finds out.
        """
        msg = await self.request(subject, data, headers={**self.msg_id(msg_id), **(headers or {})})
        return not read_answer(msg.data, family(subject)).get("duplicate", False)

    async def last(self, stream: str, subject: str) -> bytes | None:
        """The last message there, None when there is none.

        Raises:
            RequestError: there is no answer.
        """
        msg = await self.request(f"$JS.API.DIRECT.GET.{stream}.{subject}")
        status = (msg.headers or {}).get("Status")
        if status in (None, NOTHING):
            return msg.data if status is None else None
        raise RequestError(f"{self.url} does not tell what is in {stream}")

    async def everything(self, stream: str) -> list[bytes]:
        """The last message of every subject of a stream.

        Raises:
            RequestError: the server does not answer.
        """
        found: dict[str, bytes] = {}
        after = 0
        while True:
            wanted = json.dumps({"seq": after + 1, "next_by_subj": ">"}).encode()
            msg = await self.request(f"$JS.API.DIRECT.GET.{stream}", wanted)
            headers = msg.headers or {}
            if headers.get("Status") == NOTHING:
                return list(found.values())
            before, text = after, headers.get("Nats-Sequence", "")
            after = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else before
            if headers.get("Status") or after <= before:
                raise RequestError(f"{self.url} does not tell what is in {stream}")
            found[headers.get("Nats-Subject", "")] = msg.data

    async def word(self, reply: str, word: bytes, timeout_s: float = ANSWER_S) -> None:
        """Acknowledge, renew, give back or end a delivery, and be sure of it.

        Raises:
            RequestError: it may not have arrived.
        """
        await self.request(reply, word, timeout_s=min(ANSWER_S, timeout_s))

    async def listen(self, subject: str, heard: Callable[[bytes], None]) -> None:
        """Call `heard` with every message there, as long as the connection lasts.

        Raises:
            RequestError: it has ended.
        """

        async def hear(msg: Msg) -> None:
            heard(msg.data)

        try:
            await self._connected().subscribe(subject, cb=hear)
        except RequestError:
            raise
        except Exception as error:  # noqa: BLE001  as for a request
            raise RequestError(f"{self._server.url}: {_lost(error)}") from None

    async def pull(
        self, stream: str, consumer: str, *, linger_s: Callable[[], float], enough: asyncio.Event
    ) -> Delivery | None:
        """One message: at once if there is one, else the first of the next `linger_s()` seconds (asked for again and again;
        0: no more), or until `enough` is set. Whatever was on its way then is still returned.

        Raises:
            RequestError: the server does not answer.
        """
        from nats.errors import Error

        client = self._connected()
        loop = asyncio.get_running_loop()
        answers: asyncio.Queue[Msg] = asyncio.Queue()
        try:
            box = client.new_inbox()
            sub = await client.subscribe(box, cb=answers.put)
            try:
                found = await self._next(stream, consumer, box, answers, {"batch": 1, "no_wait": True}, ANSWER_S, enough)
                if found is TimeoutError:
                    raise RequestError(f"{self.url or self._server.url} gives no answer to the request for work")
                while found is None and (left_s := linger_s()) > 0 and not enough.is_set():
                    left_s = min(left_s, ROUND_S)
                    wanted = {"batch": 1, "expires": max(1, int(left_s * 1e9))}
                    again_s = loop.time() + min(IMPATIENT_S, left_s)
                    found = await self._next(stream, consumer, box, answers, wanted, left_s + 1.0, enough)
                    found = None if found is TimeoutError else found
                    if found is None:  # a server that did not wait as it was asked to is not asked in a busy loop
                        await wait_for_event(enough, again_s - loop.time())
            finally:
                # no interest, then everything that was sent before: nothing is left lying with us unseen
                # (a connection that ends meanwhile would have us wait for ever)
                with contextlib.suppress(Error, OSError, TimeoutError):
                    async with asyncio.timeout(DRAIN_S):
                        await sub.drain()  # type: ignore[no-untyped-call]
        except RequestError:
            raise
        except Exception as error:  # noqa: BLE001  as for a request
            raise RequestError(f"{self._server.url}: {_lost(error)}") from None
        while not isinstance(found, Delivery) and not answers.empty():
            with contextlib.suppress(RequestError):
                found = _as_delivery(answers.get_nowait())
        return found if isinstance(found, Delivery) else None

    async def _next(
        self,
        stream: str,
        consumer: str,
        box: str,
        answers: asyncio.Queue[Msg],
        wanted: Mapping[str, Any],
        wait_s: float,
        enough: asyncio.Event,
    ) -> Any:
        await self._connected().publish(next_subject(stream, consumer), json.dumps(wanted).encode(), reply=box)
        answer, stop = asyncio.ensure_future(answers.get()), asyncio.ensure_future(enough.wait())
        try:
            done, _ = await asyncio.wait({answer, stop}, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            if answer in done:
                return _as_delivery(answer.result())
            return None if stop in done else TimeoutError
        finally:
            answer.cancel()
            stop.cancel()

    def _connected(self) -> Client:
        if self._client is None or not self._client.is_connected:
            raise RequestError(f"not connected to {self._server.url}", sent=False)
        return self._client

    async def _told(self, error: Exception) -> None:
        self._error = self._in_words(error)

    def _in_words(self, error: Exception) -> str:
        if isinstance(error, ssl.SSLError) or (isinstance(error, OSError) and error.errno in errno.errorcode):
            return describe_error(error, self._server.knobs.ca)
        return one_line(str(error).removeprefix("nats: "), MAX_TEXT)

    def _deaf(self, _: asyncio.Task[None]) -> None:
        """Nobody reads any more: by a fault, nats-py ends that in silence."""
        self._lost()

    async def _closed(self) -> None:
        self._lost()

    def _lost(self) -> None:
        self._over.set()
        if not self._closing:
            self._closing = True
            self._on_lost(f"{self._server.url}: the connection was lost" + (f" ({self._error})" if self._error else ""))

    def _why(self, error: Exception, wants_key: bool) -> str:
        from nats.errors import Error

        told = self._error or self._in_words(error)
        if not isinstance(error, Error | OSError | TimeoutError):
            told = "it does not speak as NATS servers do"
        # a server that refuses a key hangs up at once, and its word for it may be lost with the connection
        hung_up = wants_key and isinstance(error, ConnectionError)
        if hung_up or "authorization" in told.lower():
            knobs = self._server.knobs
            advice = knobs.wrong_key if self._server.password is not None else knobs.no_key
            return f"{self._server.url} refuses this user's key: {advice}"
        if isinstance(error, TimeoutError) and not told:
            told = f"no answer within {self._server.connect_timeout_s:g} s"
        return f"{self._server.url} cannot be reached: {told or type(error).__name__}"


def _lost(error: Exception) -> str:
    """What became of a connection that is no use any more."""
    from nats.errors import ConnectionClosedError, ConnectionDrainingError

    gone = isinstance(error, OSError | ConnectionClosedError | ConnectionDrainingError)
    return "the connection was lost" if gone else f"the connection failed ({type(error).__name__})"


def _encrypted(client: Client) -> bool:
    """The connection itself is; what the server says of it may be an impostor's."""
    writer = getattr(client._transport, "_io_writer", None)
    return writer is not None and writer.get_extra_info("ssl_object") is not None


async def _let_go(client: Client) -> None:
    try:
        with contextlib.suppress(Exception):  # a TLS connection that failed may never say that it is closed
            await within(CLOSE_S, client.close())
    finally:
        _end(client)


def _end(client: Client) -> None:
    """End what nats-py has running: where its close fails, it leaves that behind."""
    listening = (sub._wait_for_msgs_task for sub in client._subs.values())
    for task in (client._reading_task, client._ping_interval_task, client._flusher_task, *listening):
        if task is not None:
            task.cancel()
    if client._transport is not None:
        client._transport.close()  # type: ignore[no-untyped-call]


def _as_delivery(msg: Msg) -> Delivery | None:
    return read_delivery(msg.data, msg.reply, msg.headers or {})
