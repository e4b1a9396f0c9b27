"""A connection to a NATS server, and what a fleet needs of JetStream. The only file that knows nats-py.

It does not reconnect unasked: its owner backs off and opens it again, so that no request of an old connection is sent late on
a new one. Each wait has an end.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import secrets
import ssl
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from supervisor.linux.bounded import wait_for_event, within
from supervisor.linux.text import one_line
from supervisor.sources.errors import MIB, RequestError, describe_error, tls_context
from supervisor.sources.nats.errors import (
    MAX_TEXT,
    NO_RESPONDERS,
    NOTHING,
    TOO_LARGE,
    Delivery,
    Message,
    Refused,
    family,
    read_answer,
    read_delivery,
)
from supervisor.sources.nats.subjects import GATE, GATE_USER, LEASE_HEADER, inbox, next_subject, token

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

ANSWER_S: Final = 5.0
CLOSE_S: Final = 1.0
DRAIN_S: Final = 2.0
PING_S: Final = 30  # a connection that died silently is noticed after two of these, or by the next request
IMPATIENT_S: Final = 1.0  # at least so long between two requests for work of one poll
ROUND_S: Final = 10.0  # a request for work is renewed so often: it is lost with a server that dies
HEADERS_BYTES: Final = 12  # of a message's headers, beside names, values and four bytes each: NATS/1.0 and an empty line

ACK: Final = b"+ACK"
IN_PROGRESS: Final = b"+WPI"
TERM: Final = b"+TERM"


def nak(delay_s: int = 0) -> bytes:
    """Gives a delivery back; it is handed out again after this delay."""
    return b'-NAK {"delay": %d}' % (delay_s * 10**9)


@dataclass(frozen=True, slots=True)
class SettingNames:
    """What a person would change, by the names that it has for them: for a node, those of node.yaml."""

    url: str = "control.url"
    ca: str = "control.ca_file"
    no_key: str = "set control.token"
    wrong_key: str = "check control.token and node.id"


@dataclass(frozen=True, slots=True)
class Server:
    """Where a fleet's servers are, and the user to log in as. `url` may name several servers, separated by commas."""

    url: str
    user: str = ""
    password: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    connect_timeout_s: float = 5.0
    names: SettingNames = field(default=SettingNames(), compare=False)

    @property
    def gate(self) -> str:
        """What stands before each subject that is asked for: a user with a key reaches JetStream through the gate alone."""
        gated = self.password is not None and self.user not in ("", GATE_USER)
        return f"{GATE}.{token(self.user)}." if gated else ""


class Connection:
    """A connection that can be opened again after it was closed. `on_lost` is called once when the server ends it.

    Each call raises Refused when the server refuses for good, and RequestError when it gives no good answer; it may have acted
    all the same.
    """

    def __init__(
        self, server: Server, *, name: str, on_lost: Callable[[RequestError], None] = lambda error: None
    ) -> None:
        self._server = server
        self._name = name
        self._on_lost = on_lost
        self._client: Client | None = None
        self._over = asyncio.Event()
        self._error = ""
        self.url = server.url  # for people: without a password; once it was open, the server that it was connected to

    def use_password(self, password: str | None) -> None:
        """Log in with this one from now on."""
        self._server = replace(self._server, password=password)

    async def open(self) -> None:
        """Connect to one of the servers. Raises Refused when the server does not take the user's key."""
        from nats.aio.client import Client
        from nats.errors import Error

        logging.getLogger("nats").setLevel(logging.CRITICAL + 1)  # it logs tracebacks that quote what was sent
        logging.getLogger("asyncio").addFilter(_not_about_eof)
        server = self._server
        urls = [url.strip() for url in server.url.split(",")]
        tls = any(url.startswith("tls:") for url in urls)
        context = await asyncio.to_thread(tls_context, server.ca_file, server.names.ca) if tls else None
        client, self._error = Client(), ""

        def check_tls() -> None:
            # nats-py speaks TLS where the server asks for it, whatever the URL says
            if context is not None and not _encrypted(client):
                raise Error(f"the server offers no TLS, and {server.names.url} says tls://")

        def password() -> str:
            check_tls()  # called just before it is sent: never in the clear to a server that should prove its identity
            return server.password or ""

        async def closed() -> None:
            self._lost(client)

        login = {"user": server.user, "password": password} if server.password is not None else {}
        try:
            async with asyncio.timeout(server.connect_timeout_s * (len(urls) + 1)):
                await client.connect(
                    urls,
                    name=self._name,
                    tls=context,
                    error_cb=self._record,
                    closed_cb=closed,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    connect_timeout=server.connect_timeout_s,  # type: ignore[arg-type]  # seconds, also fractions
                    ping_interval=PING_S,
                    inbox_prefix=inbox(server.user) if server.user else "_INBOX",
                    **login,  # type: ignore[arg-type]  # nats-py types a callback for the password wrongly
                )
            check_tls()
            if not client.is_connected:
                raise ConnectionResetError("the server hung up")
        except asyncio.CancelledError:
            _end(client)
            raise
        except Exception as error:  # noqa: BLE001  whatever a peer does to the library is an error of the request
            info = client._server_info
            failure = self._open_error(error, isinstance(info, dict) and bool(info.get("auth_required")))
            await _close(client)
            raise failure from None
        self._client, self._over = client, asyncio.Event()
        if (url := client.connected_url) is not None:
            self.url = f"{url.scheme}://{url.netloc.rpartition('@')[2]}"
        if client._reading_task is not None:  # nats-py ends it silently when a fault of its own ends the reading
            client._reading_task.add_done_callback(lambda _: self._lost(client))

    async def close(self) -> None:
        """End the connection."""
        self._over.set()
        client, self._client = self._client, None
        if client is not None:
            await _close(client)

    @property
    def up(self) -> bool:
        """It is connected, as far as is known."""
        return self._client is not None and self._client.is_connected

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
        """The answer to a request. One that is larger than the server takes is not sent: the server would hang up."""
        from nats.errors import NoRespondersError

        client = self._connected()
        if why := self.too_large(data, headers or {}):
            raise Refused(why, status=TOO_LARGE)
        asking = client.request(self._path(subject), data, timeout=timeout_s, headers=dict(headers) if headers else None)
        try:
            # nats-py would wait on for an answer that cannot come any more
            answer = await _first(asking, self._over)
            if answer is None:
                raise ConnectionResetError
            return answer
        except NoRespondersError:
            missing = "no gate (deploy/fleet/gate) answers there" if self._server.gate else f"{self.url} has no stream for it"
            reason = f"{family(subject)}: {missing}: set it up (deploy/fleet), or wait for its leader"
            raise RequestError(reason, sent=False) from None
        except Exception as error:  # noqa: BLE001  whatever a peer does to the library is an error of the request
            denied = f" ({self._error})" if self._error else ""
            self._error = ""
            why = f" within {timeout_s:g} s" if isinstance(error, TimeoutError) else f": {_describe(error)}"
            raise RequestError(f"{self.url} gives no answer for {family(subject)}{denied}{why}") from None

    async def api(self, name: str, body: Any = None) -> dict[str, Any]:
        """A call of JetStream's API."""
        msg = await self.request(f"$JS.API.{name}", b"" if body is None else json.dumps(body).encode())
        return read_answer(msg.data, name)

    def _path(self, subject: str) -> str:
        """Where a subject is asked for; the address of a lease is a whole one."""
        return subject if subject.startswith(f"{GATE}.") else self._server.gate + subject

    def _with(self, lease: str) -> dict[str, str]:
        return {LEASE_HEADER: lease} if lease and self._server.gate else {}

    async def store(
        self, subject: str, data: bytes, msg_id: str, headers: Mapping[str, str] | None = None, *, lease: str = ""
    ) -> bool:
        """Have a message stored once. False: this very message, by its id, was stored before. `lease`: of the task that it is
        about.

        Raises Exists when another message lies there. After another error, the same call again finds out.
        """
        msg = await self.request(subject, data, headers={**self.msg_id(msg_id), **self._with(lease), **(headers or {})})
        return not read_answer(msg.data, family(subject)).get("duplicate", False)

    async def last(self, stream: str, subject: str, *, lease: str = "") -> bytes | None:
        """The last message there; None when there is none. `lease`: of the task that it is about."""
        msg = await self.request(f"$JS.API.DIRECT.GET.{stream}.{subject}", headers=self._with(lease))
        headers = msg.headers or {}
        status = headers.get("Status")
        if status in (None, NOTHING):
            if status is None and self._server.gate and "Nats-Sequence" not in headers:
                read_answer(msg.data, family(subject))  # the gate's own refusal
            return msg.data if status is None else None
        raise self._unreadable(stream)

    async def last_of_each(self, stream: str) -> list[bytes]:
        """The last message of each subject of a stream."""
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
                raise self._unreadable(stream)
            found[headers.get("Nats-Subject", "")] = msg.data

    async def acknowledge(self, reply: str, what: bytes, timeout_s: float = ANSWER_S) -> str:
        """Acknowledge (ACK), renew (IN_PROGRESS), give back (`nak`) or end (TERM) a delivery, and be sure of it; where it is
        acknowledged from now on."""
        answer = await self.request(reply, what, timeout_s=min(ANSWER_S, timeout_s))
        if answer.data:
            read_answer(answer.data, "an acknowledgement")
        return (answer.headers or {}).get(LEASE_HEADER, reply)

    async def listen(self, subject: str, on_message: Callable[[Message], None], *, queue: str = "") -> None:
        """Call `on_message` with each message there, as long as the connection lasts. Each message goes to one of those who
        listen with the same `queue`."""

        async def hear(msg: Msg) -> None:
            on_message(_message(msg))

        with self._request_errors():
            await self._connected().subscribe(subject, queue=queue, cb=hear)

    async def send(self, message: Message) -> None:
        """Publish a message. One that is larger than the server takes is refused: the server would hang up."""
        if why := self.too_large(message.data, message.headers):
            raise Refused(why, status=TOO_LARGE)
        with self._request_errors():
            headers = dict(message.headers) or None
            await self._connected().publish(message.subject, message.data, reply=message.reply, headers=headers)

    async def first(self, subject: str, data: bytes, wait_s: float, *, box: str = "") -> Message | None:
        """The first answer to a request that the server may answer after `wait_s` seconds only; None: there was none. `box`:
        where it is expected; empty: in an inbox of ours."""
        answers: asyncio.Queue[Msg] = asyncio.Queue()
        with self._request_errors():
            client = self._connected()
            box = box or client.new_inbox()
            sub = await client.subscribe(box, cb=answers.put, max_msgs=1)
            try:
                await client.publish(subject, data, reply=box)
                msg = await _first(answers.get(), self._over, timeout_s=wait_s + ANSWER_S)
            except TimeoutError:
                msg = None
            finally:
                with contextlib.suppress(Exception):
                    await sub.unsubscribe()
        return None if msg is None else _message(msg)

    async def ask(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        """A node's answer to a question (see subjects.ask_subject). The gate hears it where this node alone may send, at a
        place that nobody can guess."""
        if self._server.user != GATE_USER:
            return (await self.request(subject, data, timeout_s=timeout_s)).data
        box = f"{GATE}.{subject.split('.')[2]}.answer.{secrets.token_hex(16)}"
        found = await self.first(subject, data, 0.0, box=box)
        if found is None or found.headers.get("Status") == NO_RESPONDERS:
            raise RequestError("the node gives no answer")
        return found.data

    async def pull(
        self, stream: str, consumer: str, *, linger_s: Callable[[], float], stop: asyncio.Event | None = None
    ) -> Delivery | None:
        """One message: at once if there is one, else the first of the next `linger_s()` seconds.

        `linger_s` is called again and again; 0: do not wait any longer. `stop` ends the wait at once. A message that is on
        its way then is still returned. None: there is no message, or the connection was lost.
        """
        client, over, stop = self._connected(), self._over, stop or asyncio.Event()
        answers: asyncio.Queue[Msg] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        async def ask(wanted: Mapping[str, Any], wait_s: float) -> Delivery | None:
            await client.publish(self._path(next_subject(stream, consumer)), json.dumps(wanted).encode(), reply=box)
            msg = await _first(answers.get(), over, stop, timeout_s=wait_s)
            return None if msg is None else _as_delivery(msg)

        found = None
        with self._request_errors():
            box = client.new_inbox()
            sub = await client.subscribe(box, cb=answers.put)
            try:
                try:
                    found = await ask({"batch": 1, "no_wait": True}, ANSWER_S)
                except TimeoutError:
                    raise RequestError(f"{self.url} gives no answer to the request for work") from None
                while not (found or stop.is_set() or over.is_set()) and (left_s := linger_s()) > 0:
                    left_s = min(left_s, ROUND_S)
                    again_s = loop.time() + min(IMPATIENT_S, left_s)
                    with contextlib.suppress(TimeoutError):
                        found = await ask({"batch": 1, "expires": max(1, int(left_s * 1e9))}, left_s + 1.0)
                    if found is None:  # no busy loop with a server that does not wait as it was asked to
                        await wait_for_event(stop, again_s - loop.time())
            finally:
                # Unsubscribe, then read all that was sent before: no message is left here unseen. A connection that ends
                # meanwhile would never finish this.
                with contextlib.suppress(Exception):
                    async with asyncio.timeout(DRAIN_S):
                        await sub.drain()  # type: ignore[no-untyped-call]
        while found is None and not answers.empty():
            with contextlib.suppress(RequestError):
                found = _as_delivery(answers.get_nowait())
        return found

    def _connected(self) -> Client:
        if self._client is None or not self._client.is_connected:
            raise RequestError(f"not connected to {self._server.url}", sent=False)
        return self._client

    @contextlib.contextmanager
    def _request_errors(self) -> Iterator[None]:
        """Whatever a peer does to the library is an error of the request."""
        try:
            yield
        except RequestError:
            raise
        except Exception as error:  # noqa: BLE001
            raise RequestError(f"{self._server.url}: {_describe(error)}") from None

    def _unreadable(self, stream: str) -> RequestError:
        return RequestError(f"{self.url} does not show what is in {stream}")

    async def _record(self, error: Exception) -> None:
        self._error = self._text(error)

    def _text(self, error: Exception) -> str:
        if isinstance(error, ssl.SSLError) or (isinstance(error, OSError) and error.errno in errno.errorcode):
            return describe_error(error, self._server.names.ca)
        return one_line(str(error).removeprefix("nats: "), MAX_TEXT)

    def _lost(self, client: Client) -> None:
        if self._client is client and not self._over.is_set():
            self._over.set()
            denied = f" ({self._error})" if self._error else ""
            self._on_lost(RequestError(f"{self._server.url}: the connection was lost{denied}"))

    def _open_error(self, error: Exception, wants_key: bool) -> RequestError:
        from nats.errors import Error

        url, names = self._server.url, self._server.names
        text = self._error or self._text(error)
        if not isinstance(error, Error | OSError | TimeoutError):
            text = "it does not speak as NATS servers do"
        # a server that refuses a key hangs up at once, and its message may be lost with the connection
        hung_up = wants_key and isinstance(error, ConnectionError)
        if hung_up or "authorization" in text.lower():
            advice = names.wrong_key if self._server.password is not None else names.no_key
            return Refused(f"{url} refuses this user's key: {advice}")
        if isinstance(error, TimeoutError) and not text:
            text = f"no answer within {self._server.connect_timeout_s:g} s"
        return RequestError(f"{url} cannot be reached: {text or type(error).__name__}")


async def _first(work: Coroutine[Any, Any, Msg], *stops: asyncio.Event, timeout_s: float | None = None) -> Msg | None:
    """The result of `work`; None if one of the events is set first.

    Raises:
        TimeoutError: neither within `timeout_s` seconds.
    """
    answer = asyncio.ensure_future(work)
    answer.add_done_callback(lambda done: done.cancelled() or done.exception())  # it may fail when nobody waits any more
    waits = [asyncio.ensure_future(stop.wait()) for stop in stops]
    try:
        done, _ = await asyncio.wait({answer, *waits}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if answer in done:
            return answer.result()
        if not done:
            raise TimeoutError
        return None
    finally:
        for task in (answer, *waits):
            task.cancel()


def _describe(error: Exception) -> str:
    """What became of a connection that is of no use any more."""
    from nats.errors import ConnectionClosedError, ConnectionDrainingError

    gone = isinstance(error, OSError | ConnectionClosedError | ConnectionDrainingError)
    return "the connection was lost" if gone else f"the connection failed ({type(error).__name__})"


def _encrypted(client: Client) -> bool:
    """The connection itself is encrypted; what the server says about it may be an impostor's."""
    writer = getattr(client._transport, "_io_writer", None)
    return writer is not None and writer.get_extra_info("ssl_object") is not None


async def _close(client: Client) -> None:
    try:
        with contextlib.suppress(Exception):  # a TLS connection that failed may never report that it is closed
            await within(CLOSE_S, client.close())
    finally:
        _end(client)


def _end(client: Client) -> None:
    """End the tasks of nats-py: its close leaves them behind when it fails."""
    listening = (sub._wait_for_msgs_task for sub in client._subs.values())
    for task in (client._reading_task, client._ping_interval_task, client._flusher_task, *listening):
        if task is not None:
            task.cancel()
    if client._transport is not None:
        client._transport.close()  # type: ignore[no-untyped-call]


def _not_about_eof(record: logging.LogRecord) -> bool:
    """asyncio warns at each end of a TLS connection of how nats-py answers it, which changes nothing."""
    return "eof_received" not in str(record.msg)


def _message(msg: Msg) -> Message:
    return Message(msg.subject, msg.reply, msg.data, msg.headers or {})


def _as_delivery(msg: Msg) -> Delivery | None:
    return read_delivery(msg.data, msg.reply, msg.headers or {})
