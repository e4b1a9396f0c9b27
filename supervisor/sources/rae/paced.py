"""HTTP that is read in small pieces, one per pass of the event loop.

The HTTP library works through all that it has read before it lets others run. In 64 KiB, a peer can hide ten thousand chunks
of one byte, or thousands of interim answers. That would hold the person's path up for a second. Import this in a thread, as
the library itself: it takes time.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from typing import Any, Final, TypeVar, cast

from httpcore2 import AnyIOBackend, AsyncHTTP11Connection, AsyncNetworkBackend, AsyncNetworkStream

PIECE_BYTES: Final = 2048  # holds 340 chunks of one byte: some milliseconds
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

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """See AsyncNetworkStream."""
        await asyncio.sleep(0)
        return await self._stream.read(min(max_bytes, PIECE_BYTES), timeout)

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
