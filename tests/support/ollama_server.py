"""An Ollama on loopback as far as the node speaks to it: /api/generate as a stream of JSON lines, unloading, /api/ps."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any


class OllamaServer:
    """Answers by `says` (model → pieces of the answer, as raw lines), and remembers what it was asked.

    A piece of None waits until the client is gone. `sticky`: a model is not unloaded when asked. `floods`: what is answered
    without end, "/api/ps" or "unload". `pieces`: those of the last long answer that the client has let us send.
    """

    def __init__(
        self,
        says: Callable[[dict[str, Any]], list[bytes | None]],
        *,
        status: int = 200,
        sticky: bool = False,
        floods: str = "",
    ) -> None:
        self.says = says
        self.status = status
        self.sticky = sticky
        self.floods = floods
        self.pieces = 0
        self.asked: list[dict[str, Any]] = []
        self.loaded: set[str] = set()
        self.unloaded: list[str] = []
        self.streaming = asyncio.Event()
        self.left = asyncio.Event()
        self.url = ""

    async def __aenter__(self) -> OllamaServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            size = next((int(line.split(":")[1]) for line in head.splitlines() if line.startswith("content-length:")), 0)
            await self._answer(head.split()[1], await reader.readexactly(size), reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.left.set()
        finally:
            writer.close()

    async def _answer(self, path: str, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if path == "/api/ps":
            if self.floods == path:
                return await self._flood(writer)
            return self._whole(writer, {"models": [{"name": name} for name in sorted(self.loaded)]})
        order = json.loads(body)
        if "prompt" not in order:
            self.unloaded.append(order["model"])
            if self.floods == "unload":
                return await self._flood(writer)
            if not self.sticky:
                self.loaded.discard(order["model"])
            return self._whole(writer, {"model": order["model"], "done": True, "done_reason": "unload"})
        self.asked.append(order)
        if self.status != 200:
            return self._whole(writer, {"error": "sentinel-4711"}, self.status)
        self.loaded.add(order["model"])
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n")
        for piece in self.says(order):
            if piece is None:
                self.streaming.set()
                await reader.read()  # the client's end of file
                self.left.set()
                return None
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
            self.pieces += 1
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return None

    async def _flood(self, writer: asyncio.StreamWriter) -> None:
        self.pieces = 0
        writer.write(b"HTTP/1.1 200 X\r\nconnection: close\r\n\r\n[")
        while True:  # until the client has gone
            writer.write(b"1," * (1 << 19))
            await writer.drain()
            self.pieces += 1

    def _whole(self, writer: asyncio.StreamWriter, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (status, len(data), data))


def line(text: str, *, done: bool = False) -> bytes:
    """One line of a stream."""
    return json.dumps({"model": "m", "response": text, "done": done}).encode() + b"\n"


def answer(text: str) -> list[bytes | None]:
    """A whole answer, in pieces that do not end where lines do."""
    data = b"".join(line(c) for c in text) + line("", done=True)
    return [data[i : i + 7] for i in range(0, len(data), 7)]
