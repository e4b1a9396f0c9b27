"""When a task's GPU use must pause so that its mean over any minute stays under `safety.max_gpu_percent` (R4). Pure.

An account: it is filled at a rate a little under the limit, up to a small reserve, and the task's load is taken from it
while the task runs. Empty, the task is frozen; with enough for a stretch of work, it goes on. In any minute no more can
be spent than a minute's filling and the reserve, and the rate is such that this makes the limit. A task that stays under
the limit is never touched.
"""

from __future__ import annotations

from collections import deque
from typing import Final

WINDOW_S: Final = 60.0
RUN_S: Final = 1.5  # a stretch of work at full load; shorter ones could not be measured
REST_S: Final = 1.0  # the shortest pause: freezing and thawing cost something, too
RESIDUE_S: Final = 5.0  # what a GPU does so long after the task was frozen, it does for somebody else
SETTLE_S: Final = 1.0  # a sample of the driver reaches so far back: until then it is of the time before


class GpuQuota:
    """The account of one task.

    Args:
        limit: percent of the GPU.
        now_s: when the task began, seconds of CLOCK_BOOTTIME, as all times here.
    """

    def __init__(self, limit: float, now_s: float) -> None:
        self.frozen = self._paused = False
        self.load = 0.0  # percent while it runs
        self.rested_s = 0.0  # all pauses together
        self._residue = 0.0  # percent while it is frozen: work that it had handed to the GPU before
        self._at_s = self._since_s = self._began_s = now_s
        self._read_at_s = now_s
        self._spent: deque[tuple[float, float]] = deque()  # (until when, percent) of each stretch
        self.limit = limit
        self._level = self._reserve

    @property
    def _reserve(self) -> float:
        """The most on the account, percent × seconds."""
        return min(max(2 * self.limit, 100 * RUN_S), WINDOW_S / 2 * self.limit)

    @property
    def _rate(self) -> float:
        return self.limit - self._reserve / WINDOW_S

    @property
    def _enough(self) -> float:
        """What must be there before it goes on."""
        return min(self._reserve, max(self._rate * REST_S, (self.load - self._rate) * RUN_S))

    def read(self, percent: float | None, read_at_s: float) -> None:
        """A reading of the task's own load (None: not told), made at `read_at_s`. It says something of the present stretch
        only when it was made long enough after its begin."""
        if percent is None or read_at_s <= self._read_at_s:
            return
        self._read_at_s = read_at_s
        if read_at_s - self._since_s < SETTLE_S and self._since_s > self._began_s:
            return
        if self.frozen:
            self._residue = percent if read_at_s - self._since_s < RESIDUE_S else 0.0
        else:
            if self.load == 0.0:  # it has been so busy for a while, unseen
                self._level = max(-self._reserve, self._level - percent * min(SETTLE_S, read_at_s - self._since_s))
            self.load = percent

    def advance(self, now_s: float) -> None:
        """Book the time until now."""
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
        """It should be frozen now, or go on now."""
        return self._level >= self._enough if self.frozen else self._level <= 0.0 and self.load > self.limit

    def turn(self, now_s: float, *, frozen: bool) -> None:
        """It was frozen, or thawed."""
        self.advance(now_s)
        self.frozen, self._since_s, self._residue = frozen, now_s, 0.0
        self._paused = False

    def pause(self, now_s: float) -> None:
        """It was frozen, or is idle, for another reason than its load: that is no pause of ours."""
        self.turn(now_s, frozen=True)
        self._paused = True

    def wait_s(self) -> float:
        """Seconds until it is due, if the load stays as it is."""
        if self.due:
            return 0.0
        if self.frozen:
            gain = self._rate - self._residue
            return (self._enough - self._level) / gain if gain > 0 else WINDOW_S
        return max(0.0, self._level / (self.load - self._rate)) if self.load > self.limit else WINDOW_S

    def mean(self) -> float:
        """Percent, over the last minute or what there was of it."""
        total, before_s = 0.0, max(self._began_s, self._at_s - WINDOW_S)
        length_s = self._at_s - before_s
        for until_s, percent in self._spent:
            total += percent * max(0.0, until_s - before_s)
            before_s = max(before_s, until_s)
        return total / length_s if length_s > 0 else 0.0
