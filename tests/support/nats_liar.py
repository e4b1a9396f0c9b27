"""Something at a port that speaks as a NATS server with JetStream does, and answers oddly until it is told to be calm."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator
from uuid import uuid4

JUNK = [
    b"", b"{}", b"[]", b"null", b"7", b'"x"', b"\xff", b"[" * 3000, b'{"error": {}}', b'{"error": "x"}', b'{"error": null}',
    b'{"error": {"code": 503, "description": "no"}}', b'{"error": {"code": 404}}',
    b'{"error": {"code": 1e999, "err_code": []}}',
    b'{"error": {"code": 400, "err_code": 10077, "description": "maximum messages per subject exceeded"}}',
    b'{"duplicate": true}', b'{"duplicate": "x"}', b'{"config": {"ack_policy": "explicit"}}',
]  # fmt: skip
HEADERS = [b"NATS/1.0" + rest + b"\r\n\r\n" for rest in (b"", b"\r\nStatus: \xff", b"\r\n: :", b" \xff\xff\xff")]
PLACES = [
    "$JS.ACK.RAE_TASKS.nodes.1.5.5.1.0", "$JS.ACK.RAE_TASKS.nodes.2.9.9.1.0", "$JS.ACK.d.h.RAE_TASKS.nodes.2.9.9.1.0.t",
    "$JS.ACK.RAE_TASKS.nodes.50.9.9.1.0", "$JS.ACK.RAE_TASKS.nodes.x.1.1.1.1", "$JS.ACK.RAE_TASKS.nodes.1", "odd",
    "$JS.ACK.RAE_TASKS.nodes.99999999999999999999.1.1.1.1", "$JS.ACK.RAE_TASKS.nodes.-1.-1.1.1.1",
]  # fmt: skip
Answer = tuple[bytes | None, bytes, str]  # headers, data, where it is to be answered


def said(status: str) -> bytes:
    """Headers that are a word of the server's."""
    return f"NATS/1.0 {status}\r\n\r\n".encode()


class Liar:
    """`requests`: how many there were; `results`: what was stored since it is calm, by subject."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self.requests = 0
        self.calm = False
        self.tasks: list[bytes] = []
        self.results: dict[str, bytes] = {}
        self.acknowledged = 0

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Its URL."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        listens: dict[str, str] = {}
        try:
            writer.write(b'INFO {"server_id":"x","version":"2.10","max_payload":1048576,"headers":true,"proto":1}\r\n')
            while words := (await reader.readline()).decode().split():
                if words[0] == "PING":
                    writer.write(b"PONG\r\n")
                elif words[0] == "SUB":
                    listens[words[-1]] = words[1]
                elif words[0] == "UNSUB":
                    listens.pop(words[1], None)
                elif words[0] in ("PUB", "HPUB"):
                    body = (await reader.readexactly(int(words[-1]) + 2))[:-2]
                    self.requests += 1
                    if not self.calm and self._rng.random() < 0.01:
                        break
                    head = int(words[-2]) if words[0] == "HPUB" else 0
                    for answer in self._answers(words[1], body[head:]):
                        writer.write(_message(listens, words[2], *answer))
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    def _answers(self, subject: str, data: bytes) -> list[Answer]:
        choose, chance = self._rng.choice, self._rng.random()
        if not self.calm and chance < 0.1:
            junk = (choose([None, None, said("404"), said("409 Consumer Deleted"), *HEADERS]), choose(JUNK))
            return [(*junk, choose(["", "odd", "$JS.ACK.1"]))] * choose([1, 1, 2])
        if "CONSUMER.INFO" in subject:
            settings = {"ack_policy": "explicit", "ack_wait": 10**9 * choose([1, 10]), "max_deliver": choose([50, -1, 3])}
            return [(None, json.dumps({"config": settings}).encode(), "")]
        if "MSG.NEXT" in subject:
            return [self._next(chance)]
        if "DIRECT.GET" in subject:
            return [(choose([None, said("404")]), choose([b'{"rae_state": 1}', b"{}", b"x"]), "")]
        if subject.startswith("$JS.ACK") or subject == "odd":
            self.acknowledged += self.calm and data == b"+ACK"
            return [(None, b"", "")]
        if self.calm:
            self.results[subject] = data
        return [(None, b'{"stream": "x", "seq": 1}', "")]

    def _next(self, chance: float) -> Answer:
        choose = self._rng.choice
        if self.calm:
            return (None, self.tasks.pop(), PLACES[0]) if self.tasks else (said("404"), b"", "")
        if chance < 0.25:
            return said(choose(["404", "404", "408", "408", "409", "100", "503", "x"])), b"", ""
        kind, payload = choose(["echo"] * 4 + ["other", "", "x" * 300]), choose([{}, {"a": 1}, []])
        task = {"id": str(uuid4()), "type": kind, "payload": payload}
        if chance < 0.4:
            task.pop(choose(sorted(task)))
        return None, json.dumps(task).encode() if chance < 0.9 else choose(JUNK), choose(PLACES[:1] * 6 + PLACES)


def _message(listens: dict[str, str], to: str, headers: bytes | None, data: bytes, reply: str) -> bytes:
    """As it goes to whoever listens there."""
    out = b""
    for number, pattern in listens.items():
        if to == pattern or (pattern.endswith("*") and to.startswith(pattern[:-1])):
            head = f"{'MSG' if headers is None else 'HMSG'} {to} {number} {reply}".rstrip()
            sizes = f"{len(data)}" if headers is None else f"{len(headers)} {len(headers) + len(data)}"
            out += f"{head} {sizes}\r\n".encode() + (headers or b"") + data + b"\r\n"
    return out
