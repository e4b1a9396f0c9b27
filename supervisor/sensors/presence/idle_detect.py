"""The last input according to idle_detect (BOINC's helper): two times in shared memory, believed only while fresh.

Its segment holds two 64-bit numbers, in seconds since the epoch: when it was written, and the last input. They are written
without a lock, so they count only if both are plausible and two reads agree. This source can only add a sign: a forged
file keeps the node from working, and does nothing else. A segment that is missing, stale or odd says nothing.
"""

from __future__ import annotations

import contextlib
import os
import struct
from itertools import pairwise
from pathlib import Path
from typing import Final

from supervisor.linux.clock import Clock
from supervisor.linux.small_files import open_plain
from supervisor.sensors.base import Presence, PresenceSensor, Quality

FRESH_S: Final = 60.0
AHEAD_S: Final = 2.0  # its clock has whole seconds
TIMES: Final = struct.Struct("qq")
READS: Final = 4
SEGMENT: Final = Path("/dev/shm/idle_detect_shmem")  # noqa: S108 - another program's fixed name


class IdleDetect(PresenceSensor):
    """Read at each look; shared memory sends no events."""

    name = "idle_detect"

    def __init__(self, clock: Clock, path: Path = SEGMENT) -> None:
        self._clock, self._path = clock, path

    def latest(self, now_s: float) -> Presence:
        wall_s = self._clock.wall_s()
        written_s, input_s = self._read()
        fresh = -AHEAD_S <= wall_s - written_s <= FRESH_S
        if not fresh or not 0 < input_s <= written_s + AHEAD_S:
            return Presence(self.name, now_s, sign="no source: idle_detect does not run", quality=Quality.UNKNOWN)
        at_s = now_s - max(0.0, wall_s - input_s)
        return Presence(self.name, now_s, at_s, "user active by idle_detect", quality=Quality.POLLED, hands=True)

    def _read(self) -> tuple[float, float]:
        """Both times, read until two reads agree; (0, 0): there are none."""
        with contextlib.suppress(OSError):
            fd = open_plain(self._path)
            try:
                reads = [os.pread(fd, TIMES.size, 0) for _ in range(READS)]
            finally:
                os.close(fd)
            for before, now in pairwise(reads):
                if now == before and len(now) == TIMES.size:
                    written_s, input_s = TIMES.unpack(now)
                    return float(written_s), float(input_s)
        return 0.0, 0.0
