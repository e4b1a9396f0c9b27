"""HTTP to the control node, with every bound that a client needs: connections, bytes, seconds. What goes wrong comes out
as `RequestError`, with a reason in words that never quotes the server: its errors may hold task data (R6)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
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

if TYPE_CHECKING:
    import httpx2

CONNECT_TIMEOUT_S: Final = 5.0  # a machine on the same network answers in far less
READ_TIMEOUT_S: Final = 15.0  # between two pieces of an answer: a busy server may need a while
TOTAL_TIMEOUT_S: Final = 30.0  # for one request: a trickling answer must not occupy the link
MAX_ANSWER_BYTES: Final = 16 * MIB  # no server may fill the memory
# Requests within any second, whatever they are for. Intervals and back-off stay far below; this also bounds short tasks
# in a row, which need two requests each.
MAX_REQUESTS_PER_SEC: Final = 100
NOT_JSON: Final = object()
SPREAD_S: Final = 10.0  # who is told to come back at a time comes up to this much later, so that not all come at once
ENOUGH_BYTES: Final = 64 * 1024
COME_LATER: Final = (429, 503)  # with these, Retry-After is about the server, not about this request
CONTENT_TYPE: Final = re.compile(r"[a-z0-9.+-]{1,50}/[a-z0-9.+-]{1,50}")


class AnswerTooLarge(RequestError):
    """The answer is larger than allowed. `code`: its status; `head`: how it begins."""

    def __init__(self, reason: str, code: int, head: bytes) -> None:
        super().__init__(reason)
        self.code = code
        self.head = head


@dataclass(frozen=True, slots=True)
class _Request:
    """One request, see `Transport.request`."""

    method: str
    path: str
    query: Mapping[str, str] | None
    content: bytes | None = field(repr=False)
    enough: re.Pattern[bytes] | None
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; `value` is NOT_JSON when the body is not JSON."""

    status: int
    value: Any = field(repr=False)
    content_type: str = ""
    retry_after_s: float | None = None


class Transport:
    """One connection a request: none is kept, so no late or unasked byte can be taken for the next answer."""

    def __init__(self, settings: Control, clock: Clock, token: str | None) -> None:
        self._settings = settings
        self._clock = clock
        parts = _split(settings.url)
        self._parts = parts = parts._replace(netloc=parts.netloc.rpartition("@")[2], path=parts.path.rstrip("/"))
        self._scheme = parts.scheme
        self._names = Resolver()
        self.url = parts.geturl()  # for people: no password
        self._headers = {
            "host": parts.netloc,
            "accept": "application/json",
            "accept-encoding": "identity",
            "cache-control": "no-cache",
            "connection": "close",
            "user-agent": f"rae-node/{VERSION}",
        }
        if token is not None:
            self._headers["x-api-key"] = token
        self._client: httpx2.AsyncClient | None = None
        self._sent_s: deque[float] = deque(maxlen=MAX_REQUESTS_PER_SEC)
        self._not_before_s = 0.0

    def lift(self) -> None:
        """Forget that the server asked to be left alone: the operator, or the end of the node, does not wait."""
        self._not_before_s = 0.0

    async def close(self) -> None:
        """Let go of connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        content: bytes | None = None,
        enough: re.Pattern[bytes] | None = None,
        max_bytes: int | None = None,
    ) -> Answer:
        """One request, once, and its whole answer, whatever its status. Of a good answer that is long and begins with
        `enough`, the rest is left: its value is then the pattern's named groups. At most `max_bytes` of
        an answer are read, and never more than MAX_ANSWER_BYTES.

        Raises:
            RequestError: no usable answer within the deadline and the bounds.
        """
        await self._turn()
        ask = _Request(method, path, query, content, enough, min(MAX_ANSWER_BYTES, max_bytes or MAX_ANSWER_BYTES))
        client = self._client or await self._open()
        try:
            async with asyncio.timeout(TOTAL_TIMEOUT_S):
                return await self._exchange(client, ask)
        except RequestError:
            raise
        except TimeoutError:
            raise RequestError(f"no whole answer from {self.url} within {TOTAL_TIMEOUT_S:g} s") from None
        except Exception as error:  # noqa: BLE001  whatever a peer does to the library is trouble, never an end
            raise self._trouble(error) from None

    async def _turn(self) -> None:
        """Wait until one more request is within MAX_REQUESTS_PER_SEC, whatever asks for it.

        Raises:
            RequestError: the server asked to be left alone for longer.
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
        """Import the library and read the CAs, off the loop: both take tens of milliseconds."""
        self._client = await asyncio.to_thread(self._make_client)
        return self._client

    def _make_client(self) -> httpx2.AsyncClient:
        from http.cookiejar import CookieJar, DefaultCookiePolicy

        import httpx2

        s = self._settings
        if self._scheme not in ("http", "https"):
            raise RequestError(f"control.url: found {self.url!r}, allowed: an http or https URL", sent=False)
        # without TLS it is never used: there are no redirects
        context = tls_context(s.ca_file) if self._scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        return httpx2.AsyncClient(
            verify=context,
            timeout=httpx2.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            limits=httpx2.Limits(max_connections=8, max_keepalive_connections=0),
            trust_env=False,
            follow_redirects=False,
            headers=self._headers,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),  # none: each would make every request longer
        )

    async def _exchange(self, client: httpx2.AsyncClient, ask: _Request) -> Answer:
        import httpx2

        bases = await self._bases()
        for base in bases[:-1]:
            with contextlib.suppress(httpx2.ConnectError, httpx2.ConnectTimeout):
                return await self._at(base, client, ask)
        return await self._at(bases[-1], client, ask)

    async def _bases(self) -> list[str]:
        """The URL by address, once for each that its host has."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                found = await self._names.addresses(self._parts.hostname or "")
        except TimeoutError:
            reason = f"{self.url}: its name was not resolved within {CONNECT_TIMEOUT_S:g} s"
            raise RequestError(reason, sent=False) from None
        except OSError:
            raise RequestError(f"{self.url}: its name cannot be resolved", sent=False) from None
        port = f":{self._parts.port}" if self._parts.port is not None else ""
        hosts = (f"[{address}]" if ":" in address else address for address in found)
        return [self._parts._replace(netloc=f"{host}{port}").geturl() for host in hosts]

    async def _at(self, base: str, client: httpx2.AsyncClient, ask: _Request) -> Answer:
        headers = {"content-type": "application/json"} if ask.content is not None else None
        name = {"sni_hostname": self._parts.hostname}  # the certificate must be the name's, whichever address answers
        async with client.stream(
            ask.method, base + ask.path, params=ask.query, content=ask.content, headers=headers, extensions=name
        ) as response:
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise RequestError(f"{self.url} sent an encoded answer that was not asked for")
            body = bytearray()
            good = response.status_code in (200, 201)
            async for chunk in response.aiter_raw():
                body += chunk
                if good and ask.enough is not None and len(body) > ENOUGH_BYTES and (seen := ask.enough.match(body)):
                    return Answer(response.status_code, {name: text.decode() for name, text in seen.groupdict().items()})
                if len(body) > ask.max_bytes:
                    reason = f"{self.url} sent an answer of more than {ask.max_bytes / MIB:g} MiB"
                    raise AnswerTooLarge(reason, response.status_code, bytes(body[:1024]))
            kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            wait_s = self._retry_after_s(response.headers.get("retry-after"))
            if wait_s is not None:
                wait_s = min(wait_s, RETRY_AFTER_MAX_S)
                wait_s += random.uniform(0.0, min(wait_s, SPREAD_S))  # noqa: S311  not a secret
                if response.status_code in COME_LATER:
                    self._not_before_s = self._clock.now_s() + wait_s
            return Answer(response.status_code, _json(bytes(body)), kind if CONTENT_TYPE.fullmatch(kind) else "", wait_s)

    def _retry_after_s(self, value: str | None) -> float | None:
        """Retry-After as seconds from now; it is a number of seconds or a date."""
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

    def _trouble(self, error: Exception) -> RequestError:
        import httpx2

        never_sent = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.InvalidURL)
        if isinstance(error, httpx2.ConnectTimeout):
            what = f"no connection within {CONNECT_TIMEOUT_S:g} s"
        elif isinstance(error, httpx2.TimeoutException):
            what = f"silent for {READ_TIMEOUT_S:g} s"
        elif isinstance(error, httpx2.RemoteProtocolError):
            what = "the answer broke off or is not HTTP"
        else:
            what = describe_error(error)
        return RequestError(f"{self.url}: {what}", sent=not isinstance(error, never_sent))


def _split(url: str) -> SplitResult:
    """The URL's parts without query and fragment; all empty when it is none."""
    try:
        parts = urlsplit(url)._replace(query="", fragment="")
        _ = parts.port  # a bad one is found here
        return parts
    except ValueError:
        return SplitResult("", "", "", "", "")


def _json(body: bytes) -> Any:
    try:
        return json.loads(body.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return NOT_JSON


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
