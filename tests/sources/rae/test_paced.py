"""What a control node may cost the loop at once: h11's events in one pass, counted, not timed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import h11
import pytest
from support import rae_server as s
from support.rae_rig import running
from support.rae_server import RaeServer, in_loop, until

from supervisor.sources.rae.paced import PIECE_BYTES

CHUNKED = b"HTTP/1.1 200 X\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
LEAST_EVENT = len(b"1\r\nx\r\n")


@pytest.mark.parametrize(
    ("answer", "up"),
    [
        pytest.param(CHUNKED + b"".join(b"1\r\n%c\r\n" % c for c in b'{"id": "%s"}' % (b"n" * 700)) + b"0\r\n\r\n", True,
                     id="a good heartbeat in chunks of one byte"),
        pytest.param(CHUNKED + b"1\r\nx\r\n" * 50_000, False, id="chunks of one byte without end"),
        pytest.param(b"HTTP/1.1 100 \r\n\r\n" * 20_000 + s.http(200, b"{}"), True, id="interim answers"),
        pytest.param(b"HTTP/1.1 200 X\r\n" + b"x: y\r\n" * 15_000 + b"\r\n{}", False, id="15,000 headers"),
    ],
)  # fmt: skip
@in_loop
async def test_a_pass_of_the_loop_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes, up: bool) -> None:
    events, busiest = 0, 0
    next_event = h11.Connection.next_event

    def counted(self: h11.Connection) -> Any:
        nonlocal events
        events += self.our_role is h11.CLIENT
        return next_event(self)

    async def passes() -> None:
        nonlocal events, busiest
        while True:
            busiest, events = max(busiest, events), 0
            await asyncio.sleep(0)

    monkeypatch.setattr(h11.Connection, "next_event", counted)
    async with RaeServer().listening() as server, running(server, tmp_path, heartbeat_s=0.05) as rig:
        await rig.up()
        server.always["heartbeat"] = s.raw(answer)
        before, counting = len(server.of("heartbeat")), asyncio.create_task(passes())
        try:
            if up:
                await until(lambda: len(server.of("heartbeat")) > before + 2)
                await rig.up()
            else:
                assert server.url in await rig.down()
        finally:
            counting.cancel()
        assert 0 < busiest <= PIECE_BYTES / LEAST_EVENT + 10
        server.always.clear()
