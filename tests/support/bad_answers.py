"""Every bad answer of a control node, or of a proxy before it, and its effect; docs/control-node.md has the same table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from support import rae_server as s

SENTINEL = "sentinel-7f3a"


@dataclass(frozen=True)
class Bad:
    """A bad answer. `lost`: a poll answered so may have handed out a task. `result`: what becomes of an outcome answered
    so: posted "again", "failed" with the reason in its place, or "lost" and said. `up`: the link stays up. `beats`: it is
    good enough for a heartbeat, of whose answer nothing is used but that it is an object. `acts`: the request is acted on."""

    fault: s.Fault
    lost: bool = True
    result: str = "again"
    up: bool = False
    beats: bool = False
    acts: bool = False


def code(number: int, **more: Any) -> Bad:
    """A status, with the kind of body that the server gives it."""
    return Bad(s.status(number, {"error": {"code": str(number), "message": SENTINEL}}), **{"lost": False, **more})


TABLE: dict[str, Bad] = {
    "HTML with 200": Bad(s.raw(s.http(200, b"<html>sentinel-7f3a</html>", kind="text/html"))),
    "HTML that says JSON": Bad(s.raw(s.http(200, b"<html>sentinel-7f3a</html>"))),
    "half a JSON": Bad(s.raw(s.http(200, b'{"id": "7bc3cfb7'))),
    "wrong types": Bad(s.raw(s.http(200, b'["sentinel-7f3a"]'))),
    "no id": Bad(s.raw(s.http(200, b'{"type": "t", "payload": {}}')), beats=True),
    "an id that is a path": Bad(s.raw(s.http(200, b'{"id": "../../x", "type": "t", "payload": {}}')), beats=True),
    "NaN": Bad(s.raw(s.http(200, b"NaN"))),
    "not UTF-8": Bad(s.raw(s.http(200, b'"\xff"'))),
    "nested without end": Bad(s.raw(s.http(200, b"[" * 200_000))),
    "an odd content type": Bad(s.raw(s.http(200, b"<", kind="sentinel-7f3a; x"))),
    "chunks of one byte": Bad(s.raw(b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 5000)),
    "40 MB": Bad(s.huge),
    "slow loris": Bad(s.trickle),
    "silence": Bad(s.silent),
    "reset in the answer": Bad(s.reset, acts=True),
    "half an answer": Bad(s.half, acts=True),
    "closed before the answer": Bad(s.closed),
    "the answer lost": Bad(s.acted_then_closed, acts=True),
    "gzip": Bad(s.raw(s.http(200, b"\x1f\x8b\x08", {"content-encoding": "gzip"}))),
    "not HTTP": Bad(s.raw(b"SSH-2.0-OpenSSH_9.2\r\n")),
    "two lengths": Bad(s.raw(b"HTTP/1.1 200 X\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\nnull")),
    "5000 headers": Bad(s.raw(b"HTTP/1.1 200 X\r\n" + b"x: y\r\n" * 50_000 + b"\r\n")),
    "a redirect": Bad(s.raw(s.http(302, b"", {"location": "http://127.0.0.1:9/control/tasks_poll"})), lost=False),
    "204": Bad(s.raw(b"HTTP/1.1 204 X\r\n\r\n"), lost=False),
    "400": code(400, result="failed"),
    "401": code(401),
    "403": code(403),
    "404 of a node or task": code(404, result="lost", up=True),
    "404 of a path": Bad(s.status(404, {"detail": "Not Found"}), lost=False, up=True),
    "405": Bad(s.status(405, {"detail": "Method Not Allowed"}), lost=False, up=True),
    "413": code(413, result="failed"),
    "422": code(422, result="failed"),
    "429": code(429),
    "500": code(500),
    "502": Bad(s.raw(s.http(502, b"<html>", kind="text/html"))),
    "503": code(503, lost=True),
    "504": code(504, lost=True),
}
