"""HTTP to the control node, with each bound that a client needs: connections, bytes, seconds."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import ssl
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, urlsplit

from supervisor import VERSION
from supervisor.config.schema import Control
from supervisor.linux.clock import Clock
from supervisor.sources.backoff import RETRY_AFTER_MAX_S
from supervisor.sources.errors import MIB, RequestError, describe_error, tls_context
from supervisor.sources.rae.resolver import Resolver
from supervisor.sources.sanitize import decode

if TYPE_CHECKING:
    import httpx2

CONNECT_TIMEOUT_S: Final = 5.0  # a machine on the same network answers in far less
READ_TIMEOUT_S: Final = 15.0  # between two pieces of an answer: a busy server may need a while
TOTAL_TIMEOUT_S: Final = 30.0  # for one request: a trickling answer must not occupy the link
# For the first byte of an answer to a request that the server acts on. It acts on it also when nobody waits any more: a poll
# that is given up costs a task, and a post that is given up is made twice. A peer that is gone is told by PEER_GONE instead.
PATIENT_S: Final = 600.0
PEER_GONE: Final = (  # 45 s without any sign of the peer's kernel: it is off, or the network is
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 45_000),
)
MAX_ANSWER_BYTES: Final = 16 * MIB  # no server may fill the memory
# Requests within any second, of all kinds. Intervals and back-off stay far below; this also bounds short tasks in a row, which
# need two requests each.
MAX_REQUESTS_PER_SEC: Final = 100
# Each piece of an answer costs the loop some time, however small it is. No server needs a thousand pieces of a few bytes.
MAX_SMALL_PIECES: Final = 1000
SMALL_PIECE_BYTES: Final = 64
NOT_JSON: Final = object()
SPREAD_S: Final = 10.0  # a wait that the server asks for gets up to so much longer, so that not all nodes return at once
ENOUGH_BYTES: Final = 64 * 1024
COME_LATER: Final = (429, 503)  # with these, Retry-After is about the server, not about this request
CONTENT_TYPE: Final = re.compile(r"[a-z0-9.+-]{1,50}/[a-z0-9.+-]{1,50}")


class AnswerTooLarge(RequestError):
    """The answer is larger than allowed. `code`: its status; `head`: its first bytes."""

    def __init__(self, reason: str, code: int, head: bytes) -> None:
        super().__init__(reason)
        self.code = code
        self.head = head


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    `enough`: of a good answer that is long and begins with this pattern, the rest is not read; its value is then the
    pattern's named groups. `max_bytes`: the most that is read of an answer, and never more than MAX_ANSWER_BYTES.
    `patient`: the server may answer late; see PATIENT_S.
    """

    method: str
    path: str
    query: Mapping[str, str] | None = None
    content: bytes | None = field(default=None, repr=False)
    enough: re.Pattern[bytes] | None = None
    max_bytes: int | None = None
    patient: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; `value` is NOT_JSON when the body is not JSON."""

    status: int
    value: Any = field(repr=False)
    content_type: str = ""
    retry_after_s: float | None = None


class Transport:
    """Uses a new connection for each request, so that no late byte can be taken for the next answer."""

    def __init__(self, settings: Control, clock: Clock, token: str | None = None) -> None:
        self._ca_file = settings.ca_file
        self._clock = clock
        parts = _split(settings.url)
        self._parts = parts = parts._replace(netloc=parts.netloc.rpartition("@")[2], path=parts.path.rstrip("/"))
        self._resolver = Resolver()
        self.url = parts.geturl()  # for people: without a password
        self._headers = {
            "host": parts.netloc,
            "accept": "application/json",
            "accept-encoding": "identity",
            "cache-control": "no-cache",
            "connection": "close",
            "user-agent": f"rae-node/{VERSION}",
        }
        self.use_key(token)
        self._client: httpx2.AsyncClient | None = None
        self._sent_s: deque[float] = deque(maxlen=MAX_REQUESTS_PER_SEC)
        self._not_before_s = 0.0

    def use_key(self, key: str | None) -> None:
        """Send this key from now on."""
        self._headers.pop("x-api-key", None)
        if key is not None:
            self._headers["x-api-key"] = key

    def lift(self) -> None:
        """Do not wait any longer for the time that the server asked for: the operator resumes, or the node stops."""
        self._not_before_s = 0.0

    async def close(self) -> None:
        """Close all connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def send(self, request: Request) -> Answer:
        """Send one request, once; its whole answer, whatever its status.

        Raises:
            RequestError: no usable answer within the deadline and the bounds.
        """
        await self._turn()
        client = self._client or await self._open()
        limit_s = PATIENT_S if request.patient else TOTAL_TIMEOUT_S
        try:
            async with asyncio.timeout(limit_s) as limit:
                return await self._exchange(client, request, limit)
        except RequestError:
            raise
        except TimeoutError:
            raise RequestError(f"no whole answer from {self.url} within {limit_s:g} s") from None
        except Exception as error:  # noqa: BLE001  whatever a peer does to the library is an error of the request
            raise self._request_error(error, request) from None

    async def _turn(self) -> None:
        """Wait until MAX_REQUESTS_PER_SEC allows one more request.

        Raises:
            RequestError: the server asks the node to wait longer.
        """
        now_s = self._clock.now_s()
        if (left_s := self._not_before_s - now_s) > 0:
            reason = f"{self.url} asked to be left alone for {left_s:.0f} s more (Retry-After)"
            raise RequestError(reason, sent=False, retry_after_s=left_s)
        full = len(self._sent_s) == self._sent_s.maxlen
        turn_s = max(now_s, self._sent_s[0] + 1.0) if full else now_s
        self._sent_s.append(turn_s)
        if turn_s > now_s:
            await asyncio.sleep(turn_s - now_s)

    async def _open(self) -> httpx2.AsyncClient:
        """Import the library and read the CAs in a thread: both take tens of milliseconds."""
        self._client = await asyncio.to_thread(self._make_client)
        return self._client

    def _make_client(self) -> httpx2.AsyncClient:
        from http.cookiejar import CookieJar, DefaultCookiePolicy

        import httpx2

        from supervisor.sources.rae.paced import paced

        if self._parts.scheme not in ("http", "https"):
            raise RequestError(f"control.url: found {self.url!r}, allowed: an http or https URL", sent=False)
        # without TLS the context is never used: there are no redirects
        context = tls_context(self._ca_file) if self._parts.scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        limits = httpx2.Limits(max_connections=8, max_keepalive_connections=0)
        return httpx2.AsyncClient(
            transport=paced(
                httpx2.AsyncHTTPTransport(verify=context, limits=limits, trust_env=False, socket_options=PEER_GONE)
            ),
            trust_env=False,
            follow_redirects=False,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),  # none: each would make all requests longer
        )

    async def _exchange(self, client: httpx2.AsyncClient, request: Request, limit: asyncio.Timeout) -> Answer:
        import httpx2

        bases = await self._bases()
        for base in bases[:-1]:
            with contextlib.suppress(httpx2.ConnectError, httpx2.ConnectTimeout):
                return await self._send_to(base, client, request, limit)
        return await self._send_to(bases[-1], client, request, limit)

    async def _bases(self) -> list[str]:
        """The URL with an address in place of the host, for each address that the host has."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                found = await self._resolver.addresses(self._parts.hostname or "")
        except TimeoutError:
            reason = f"{self.url} cannot be reached: its name was not resolved within {CONNECT_TIMEOUT_S:g} s"
            raise RequestError(reason, sent=False) from None
        except OSError:
            raise RequestError(f"{self.url} cannot be reached: its name cannot be resolved", sent=False) from None
        port = f":{self._parts.port}" if self._parts.port is not None else ""
        hosts = (f"[{address}]" if ":" in address else address for address in found)
        return [self._parts._replace(netloc=f"{host}{port}").geturl() for host in hosts]

    async def _send_to(self, base: str, client: httpx2.AsyncClient, request: Request, limit: asyncio.Timeout) -> Answer:
        import httpx2

        headers = self._headers if request.content is None else {**self._headers, "content-type": "application/json"}
        name = {"sni_hostname": self._parts.hostname}  # the certificate is checked against the name, not the address
        max_bytes = min(request.max_bytes or MAX_ANSWER_BYTES, MAX_ANSWER_BYTES)
        silence_s = PATIENT_S if request.patient else READ_TIMEOUT_S
        async with client.stream(
            request.method, base + request.path,
            params=request.query, content=request.content, headers=headers, extensions=name,
            timeout=httpx2.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S, read=silence_s),
        ) as response:
            response.extensions["network_stream"].answered()
            if request.patient:  # from here on, as all answers
                limit.reschedule(asyncio.get_running_loop().time() + TOTAL_TIMEOUT_S)
            status = response.status_code
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise RequestError(f"{self.url} sent an encoded answer that was not asked for")
            enough = request.enough if status in (200, 201) else None
            body, pieces = bytearray(), 0
            async for chunk in response.aiter_raw():
                body += chunk
                pieces += 1
                if pieces > MAX_SMALL_PIECES and pieces * SMALL_PIECE_BYTES > len(body):
                    raise RequestError(f"{self.url} sent an answer in {pieces} pieces of a few bytes")
                if enough is not None and len(body) > ENOUGH_BYTES and (begin := enough.match(body)):
                    return Answer(status, {name: text.decode() for name, text in begin.groupdict().items()})
                if len(body) > max_bytes:
                    reason = f"{self.url} sent an answer of more than {max_bytes / MIB:g} MiB"
                    raise AnswerTooLarge(reason, status, bytes(body[:1024]))
            content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            wait_s = self._retry_after_s(response.headers.get("retry-after"))
            if wait_s is not None:
                wait_s = min(wait_s, RETRY_AFTER_MAX_S)
                wait_s += random.uniform(0.0, min(wait_s, SPREAD_S))  # noqa: S311  not a secret
                if status in COME_LATER:
                    self._not_before_s = self._clock.now_s() + wait_s
            return Answer(status, _json(body), content_type if CONTENT_TYPE.fullmatch(content_type) else "", wait_s)

    def _retry_after_s(self, value: str | None) -> float | None:
        """Retry-After in seconds from now; the header holds a number of seconds or a date."""
        if value is None:
            return None
        value = value.strip()
        if value.isascii() and value.isdigit():
            return float(value[:9])
        try:
            date = parsedate_to_datetime(value)
            date = date if date.tzinfo is not None else date.replace(tzinfo=UTC)  # "-0000", or no zone: GMT is meant
            return max(0.0, date.timestamp() - self._clock.wall_s())
        except (ValueError, OverflowError):
            return None

    def _request_error(self, error: Exception, request: Request) -> RequestError:
        import httpx2

        never_sent = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.InvalidURL)
        if isinstance(error, httpx2.ConnectTimeout):
            what = f"no connection within {CONNECT_TIMEOUT_S:g} s"
        elif isinstance(error, httpx2.TimeoutException):
            what = f"silent for {PATIENT_S if request.patient else READ_TIMEOUT_S:g} s"
        elif isinstance(error, httpx2.RemoteProtocolError):
            what = "the answer broke off or is not HTTP"
        else:
            what = describe_error(error)
        if isinstance(error, never_sent):
            return RequestError(f"{self.url} cannot be reached: {what}", sent=False)
        return RequestError(f"{self.url}: {what}")


def _split(url: str) -> SplitResult:
    """The URL's parts without query and fragment; all empty when it is not a URL."""
    try:
        parts = urlsplit(url)._replace(query="", fragment="")
        _ = parts.port  # a bad port raises here
        return parts
    except ValueError:
        return SplitResult("", "", "", "", "")


def _json(body: bytes | bytearray) -> Any:
    try:
        return decode(body)
    except ValueError:
        return NOT_JSON
