"""When a task's GPU use must pause so that its mean over any minute stays under `safety.max_gpu_percent`. Pure.

This is a token bucket. It fills at a rate a little under the limit, up to a small reserve; the load of the running task
empties it. When it is empty, the task is frozen; when there is enough for a stretch of work, the task goes on. In any minute
no more can be used than a minute's fill and the reserve, which together make the limit. A task under the limit is never
frozen.
"""

from __future__ import annotations

from collections import deque
from typing import Final

WINDOW_S: Final = 60.0
RUN_S: Final = 1.5  # a stretch of work at full load; a shorter one could not be measured
REST_S: Final = 1.0  # the shortest pause: freezing and thawing have a cost
RESIDUE_S: Final = 5.0  # load so long after the freeze is somebody else's
SETTLE_S: Final = 1.0  # a sample of the driver covers so much time before it


class GpuQuota:
    """The quota of one task: `limit` percent of the GPU. All times are seconds of CLOCK_BOOTTIME."""

    def __init__(self, limit: float, now_s: float) -> None:
        self.frozen = self._paused = False
        self.load = 0.0  # percent while it runs
        self.rested_s = 0.0  # the sum of all pauses
        self._residue = 0.0  # percent while it is frozen: work that the GPU already had
        self._at_s = self._since_s = self._began_s = now_s
        self._read_at_s = now_s
        self._spent: deque[tuple[float, float]] = deque()  # (end, percent) of each stretch
        self.limit = limit
        self._level = self._reserve

    @property
    def _reserve(self) -> float:
        """The most in the bucket, percent × seconds."""
        return min(max(2 * self.limit, 100 * RUN_S), WINDOW_S / 2 * self.limit)

    @property
    def _rate(self) -> float:
        return self.limit - self._reserve / WINDOW_S

    @property
    def _enough(self) -> float:
        """What must be in the bucket before it goes on."""
        return min(self._reserve, max(self._rate * REST_S, (self.load - self._rate) * RUN_S))

    def read(self, percent: float | None, read_at_s: float) -> None:
        """A reading of the task's own load (None: not known), made at `read_at_s`. It counts only if it was made long enough
        after the present stretch began."""
        if percent is None or read_at_s <= self._read_at_s:
            return
        self._read_at_s = read_at_s
        if read_at_s - self._since_s < SETTLE_S and self._since_s > self._began_s:
            return
        if self.frozen:
            self._residue = percent if read_at_s - self._since_s < RESIDUE_S else 0.0
        else:
            if self.load == 0.0:  # it has had this load for a while, unseen
                self._level = max(-self._reserve, self._level - percent * min(SETTLE_S, read_at_s - self._since_s))
            self.load = percent

    def advance(self, now_s: float) -> None:
        """Count the time until now."""
        passed_s = max(0.0, now_s - self._at_s)
        percent = self._residue if self.frozen else self.load
        self._at_s = now_s
        if self.frozen and not self._paused:
            self.rested_s += passed_s
        level = self._level + (self._rate - percent) * passed_s
        self._level = max(-self._reserve, min(self._reserve, level))
        if self._spent and self._spent[-1][1] == percent:
            self._spent.pop()
        self._spent.append((now_s, percent))
        while self._spent and self._spent[0][0] <= now_s - WINDOW_S:
            self._spent.popleft()

    @property
    def due(self) -> bool:
        """It should be frozen, or thawed, now."""
        return self._level >= self._enough if self.frozen else self._level <= 0.0 and self.load > self.limit

    def turn(self, now_s: float, *, frozen: bool) -> None:
        """It was frozen, or thawed."""
        self.advance(now_s)
        self.frozen, self._since_s, self._residue = frozen, now_s, 0.0
        self._paused = False

    def pause(self, now_s: float) -> None:
        """It was frozen, or is idle, for another reason than its load: that does not count as a pause."""
        self.turn(now_s, frozen=True)
        self._paused = True

    def wait_s(self) -> float:
        """Seconds until it is due, if the load does not change."""
        if self.due:
            return 0.0
        if self.frozen:
            gain = self._rate - self._residue
            return (self._enough - self._level) / gain if gain > 0 else WINDOW_S
        return max(0.0, self._level / (self.load - self._rate)) if self.load > self.limit else WINDOW_S

    def mean(self) -> float:
        """Percent, over the last minute, or since it began."""
        total, before_s = 0.0, max(self._began_s, self._at_s - WINDOW_S)
        length_s = self._at_s - before_s
        for until_s, percent in self._spent:
            total += percent * max(0.0, until_s - before_s)
            before_s = max(before_s, until_s)
        return total / length_s if length_s > 0 else 0.0
