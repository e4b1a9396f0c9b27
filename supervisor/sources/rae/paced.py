"""HTTP that is read in small pieces, one per pass of the event loop, and that leaves half of the time to others.

The HTTP library works through all that it has read before it lets others run. In 64 KiB, a peer can hide ten thousand chunks
of one byte, or thousands of interim answers. That would hold the person's path up for a second. So pieces that cost much are
made smaller, and after each the loop is left alone for as long as it took. Import this in a thread, as the library itself: it
takes time.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Iterable
from typing import Any, Final, TypeVar, cast

from httpcore2 import AnyIOBackend, AsyncHTTP11Connection, AsyncNetworkBackend, AsyncNetworkStream, RemoteProtocolError

PIECE_BYTES: Final = 2048  # holds 340 chunks of one byte: some milliseconds
FIRST_BYTES: Final = 512
LEAST_BYTES: Final = 64
DEAR_S: Final = 0.002  # a piece that costs more is followed by a smaller one
CHEAP_S: Final = 0.0005
LONGEST_PAUSE_S: Final = 0.1  # the process may have stood still for another reason
# Before the answer's own headers there may be interim answers: a server that sends so much of them sends nothing else.
HEAD_BYTES: Final = 1 << 20
# The library's own limit for the headers, which it reads at once, is 100 KiB: 70 ms.
AsyncHTTP11Connection.MAX_INCOMPLETE_EVENT_SIZE = 16 * 1024


Transport = TypeVar("Transport")


def paced(transport: Transport) -> Transport:
    """Let this `AsyncHTTPTransport` read in small pieces. The library has no argument for it."""
    cast(Any, transport)._pool._network_backend = PacedBackend()
    return transport


class PacedBackend(AsyncNetworkBackend):
    """Connects as the library's own backend does; its streams are paced."""

    def __init__(self) -> None:
        self._backend = AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> AsyncNetworkStream:
        """See AsyncNetworkBackend."""
        return PacedStream(await self._backend.connect_tcp(host, port, timeout, local_address, socket_options))


class PacedStream(AsyncNetworkStream):
    """A stream that gives at most PIECE_BYTES per pass of the loop, also where more has arrived."""

    def __init__(self, stream: AsyncNetworkStream) -> None:
        self._stream = stream
        self._piece_bytes = FIRST_BYTES
        self._given_s: float | None = None
        self._head_bytes: int | None = 0  # so much has come, and no answer yet; None: it has

    def answered(self) -> None:
        """The answer's headers are there."""
        self._head_bytes = None

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """See AsyncNetworkStream."""
        await asyncio.sleep(self._pause_s())
        data = await self._stream.read(min(max_bytes, self._piece_bytes), timeout)
        self._given_s = time.perf_counter()
        if self._head_bytes is not None:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                raise RemoteProtocolError("interim answers without end")
        return data

    def _pause_s(self) -> float:
        """How long to leave the loop to others: as long as the last piece has cost it."""
        if self._given_s is None:
            return 0.0
        cost_s = time.perf_counter() - self._given_s
        if cost_s > DEAR_S:
            self._piece_bytes = max(LEAST_BYTES, self._piece_bytes // 2)
        elif cost_s < CHEAP_S:
            self._piece_bytes = min(PIECE_BYTES, self._piece_bytes * 2)
        return min(cost_s, LONGEST_PAUSE_S) if cost_s >= CHEAP_S else 0.0

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """See AsyncNetworkStream."""
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        """See AsyncNetworkStream."""
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> AsyncNetworkStream:
        """See AsyncNetworkStream."""
        return PacedStream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        """See AsyncNetworkStream."""
        return self._stream.get_extra_info(info)
