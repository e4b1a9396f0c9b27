"""idle_detect's shared memory: believed while fresh and plausible, and only to add a sign (T12)."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from support.clock import ManualClock

from states.observation import NEVER
from supervisor.sensors.presence.idle_detect import IdleDetect


@pytest.mark.parametrize(
    ("written_ago_s", "input_ago_s", "sign_ago_s"),
    [
        pytest.param(0, 0, 0, id="now"),
        pytest.param(1, 300, 300, id="five minutes ago"),
        pytest.param(60, 60, 60, id="just fresh"),
        pytest.param(-1, -1, 0, id="its seconds are ahead"),
        pytest.param(61, 61, None, id="stale"),
        pytest.param(-3600, 10, None, id="written in the future"),
        pytest.param(5, -30, None, id="input after it was written: a torn read"),
        pytest.param(1, 1_800_000_000, None, id="no input yet"),
        pytest.param(1, 1_900_000_000, None, id="before the epoch"),
    ],
)
def test_both_times_must_be_plausible(
    written_ago_s: int, input_ago_s: int, sign_ago_s: int | None, tmp_path: Path
) -> None:
    clock, segment = ManualClock(), tmp_path / "segment"
    wall = int(clock.wall_s())
    segment.write_bytes(struct.pack("qq", wall - written_ago_s, wall - input_ago_s))
    seen = IdleDetect(clock, segment).latest(clock.now_s())
    assert seen.last_sign_at_s == (NEVER if sign_ago_s is None else clock.now_s() - sign_ago_s)
    assert seen.error == ""


@pytest.mark.parametrize("what", ["nothing", "short", "a pipe", "a link", "a folder"])
def test_what_is_no_segment_says_nothing_and_holds_nothing_up(what: str, tmp_path: Path) -> None:
    clock, segment = ManualClock(), tmp_path / "segment"
    wall = int(clock.wall_s())
    if what == "short":
        segment.write_bytes(b"1234")
    elif what == "a pipe":
        os.mkfifo(segment)
    elif what == "a folder":
        segment.mkdir()
    elif what == "a link":
        (tmp_path / "other").write_bytes(struct.pack("qq", wall, wall))
        segment.symlink_to(tmp_path / "other")
    seen = IdleDetect(clock, segment).latest(clock.now_s())
    assert (seen.last_sign_at_s, seen.error) == (NEVER, "")
