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

from supervisor.sources.rae import paced
from supervisor.sources.rae.paced import PIECE_BYTES, PacedStream

CHUNKED = b"HTTP/1.1 200 X\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
LEAST_EVENT = len(b"1\r\nx\r\n")


@pytest.mark.parametrize(
    ("answer", "up"),
    [
        pytest.param(CHUNKED + b"".join(b"1\r\n%c\r\n" % c for c in b'{"id": "%s"}' % (b"n" * 700)) + b"0\r\n\r\n", True,
                     id="a good heartbeat in chunks of one byte"),
        pytest.param(CHUNKED + b"1\r\nx\r\n" * 50_000, False, id="chunks of one byte without end"),
        pytest.param(b"HTTP/1.1 100 \r\n\r\n" * 20_000 + s.http(200, b"{}"), True, id="interim answers"),
        pytest.param(b"HTTP/1.1 100 \r\n\r\n" * 80_000, False, id="interim answers without end"),
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


class Flood:
    """A stream that always has more; each piece costs its reader what `costs` says."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self.asked.append(max_bytes)
        return b"x" * max_bytes


@pytest.mark.parametrize(
    ("cost_s", "piece_bytes", "pause_s"),
    [(0.0001, PIECE_BYTES, 0.0), (0.001, paced.FIRST_BYTES, 0.001), (0.01, paced.LEAST_BYTES, 0.01), (60.0, 64, 0.1)],
)
def test_what_costs_much_is_read_in_smaller_pieces_and_others_get_half_of_the_time(
    monkeypatch: pytest.MonkeyPatch, cost_s: float, piece_bytes: int, pause_s: float
) -> None:
    now_s, pauses = 0.0, []

    async def sleep(seconds: float) -> None:
        nonlocal now_s
        pauses.append(seconds)
        now_s += seconds

    async def read_on() -> None:
        nonlocal now_s
        for _ in range(10):
            await stream.read(1 << 16)
            now_s += cost_s

    flood = Flood()
    stream = PacedStream(flood)  # type: ignore[arg-type]
    monkeypatch.setattr(paced.asyncio, "sleep", sleep)
    monkeypatch.setattr(paced.time, "perf_counter", lambda: now_s)
    asyncio.run(read_on())
    assert flood.asked[-1] == piece_bytes
    assert pauses[-1] == pytest.approx(pause_s)
