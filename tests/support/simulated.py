"""The parts of a node that play a story: its signs, its tasks, its control node; what puts them together is the product's."""

from __future__ import annotations

import asyncio
import random
import uuid
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from support.clock import ManualClock
from support.parts import Treeless, Unlinked
from support.stories import HOUR, MINUTE, Story

from states.ending import Ending
from states.lifecycle import Lifecycle
from states.observation import NEVER, Cpu, Gpu, Host, Link, Reading
from supervisor.config.load import Config
from supervisor.config.schema import TaskType
from supervisor.daemon.wiring import Node
from supervisor.journal.decision_log import Journal
from supervisor.sensors.base import Presence, PresenceSensor
from supervisor.sensors.gpu.ownership import TaskUse
from supervisor.sources.base import Claim, LinkStatus
from supervisor.tasks.attempt import Attempt
from supervisor.tasks.executors.base import Rung
from supervisor.tasks.process.rungs import RungName

TYPES: Final = ("render", "embed", "transcribe")


class Spans:
    """Which span of a list holds now; the lists are in order and do not overlap."""

    def __init__(self, spans: list[Any]) -> None:
        self._spans = sorted(spans)
        self._begins = [s[0] for s in self._spans]

    def last(self, wall: float) -> Any:
        """The last span that has begun, or None."""
        n = bisect_right(self._begins, wall)
        return self._spans[n - 1] if n else None

    def now(self, wall: float) -> Any:
        """The span that lasts, or None."""
        last = self.last(wall)
        return last if last is not None and wall < last[1] else None


def _wobble(wall: float, salt: int) -> float:
    """0 to 1, a new value every two minutes, the same for the same moment."""
    return ((int(wall // 120) * 2654435761 + salt * 40503) >> 7) % 1000 / 999


class Signs(PresenceSensor):
    """What the sensors of the simulated machine say."""

    name = "simulated"

    def __init__(self, story: Story, clock: ManualClock) -> None:
        self.clock = clock
        self._there, self._gpu, self._cpu = Spans(story.there), Spans(story.gpu), Spans(story.cpu)

    def latest(self, now_s: float) -> Presence:
        """See PresenceSensor."""
        wall = self.clock.wall
        last = self._there.last(wall)
        if last is None:
            return Presence(self.name, now_s)
        sign_s = now_s - max(0.0, wall - last[1])
        return Presence(self.name, now_s, NEVER if sign_s < 0 else sign_s, "user active on seat0")

    def gpu(self, now_s: float) -> Reading[Gpu]:
        """A game, or next to nothing."""
        wall = self.clock.wall
        game = self._gpu.now(wall)
        if game is None:
            return Reading(Gpu(1 + 4 * _wobble(wall, 1), 0.6 + 0.5 * _wobble(wall, 2)), "", self.name, now_s)
        _, _, percent, vram_gb, program = game
        return Reading(
            Gpu(percent - 9 * _wobble(wall, 3), vram_gb + 0.8 * _wobble(wall, 4), 1, True, (program,)), "", self.name, now_s
        )

    def cpu(self, now_s: float) -> Reading[Cpu]:
        """A load, a person's ordinary use, or next to nothing."""
        wall = self.clock.wall
        load = self._cpu.now(wall)
        if load is not None:
            return Reading(Cpu(load[2]), "", self.name, now_s)
        here = self._there.now(wall) is not None
        return Reading(Cpu(12 + 25 * _wobble(wall, 5) if here else 2 + 6 * _wobble(wall, 6)), "", self.name, now_s)

    def host(self, now_s: float) -> Reading[Host]:
        """Always fit."""
        return Reading(Host(), "", self.name, now_s)


class StillGpu:
    """The GPU's own sensor, which nobody needs to wake: its readings are the story's."""

    own = TaskUse()

    def __init__(self, signs: Signs) -> None:
        self.latest = signs.gpu
        self._signs = signs

    def demand(self, interval_s: float | None) -> None:
        """See LentGpus."""

    async def refresh(self, timeout_s: float) -> Reading[Gpu]:
        """See LentGpus."""
        return self.latest(self._signs.clock.now)


class SimulatedTask(Treeless):
    """A process that lasts as long as it was told to."""

    def __init__(self, seconds: float, stop_s: float, fails: bool, wake: Callable[[], None]) -> None:
        self.alive = True
        self.result: Mapping[str, Any] = {}
        self.error: str | None = None
        self._stop_s, self._fails, self._wake = stop_s, fails, wake
        self._timer = asyncio.get_running_loop().call_later(seconds, self._end)

    def _end(self) -> None:
        self.alive = False
        self.error = "exit status 1" if self._fails else None
        self._wake()

    async def stop(self, grace_s: float) -> tuple[Rung, ...]:
        """See RunningTask."""
        self._timer.cancel()
        await asyncio.sleep(self._stop_s)
        self.alive = False
        return Rung(RungName.FROZEN, 0.001), Rung(RungName.TERM, 0.002), Rung(RungName.GONE, self._stop_s)


@dataclass
class Supply:
    """The control node's queue: `endless` (every poll brings a task of `task_s` seconds, at once), or as people fill it."""

    rng: random.Random
    endless: bool = False
    task_s: float = 1200.0
    ready: list[float] = field(default_factory=list)
    filled_until: float = 0.0

    def take(self, wall: float) -> tuple[float, bool] | None:
        """(seconds that it lasts, whether it fails), or None: nothing is there."""
        if self.endless:
            return self.task_s, False
        while self.filled_until < wall:
            self.filled_until = max(self.filled_until, wall - HOUR) + self.rng.uniform(0.3, 4) * HOUR
            self.ready += [self.rng.uniform(3, 45) * MINUTE for _ in range(self.rng.randint(1, 12))]
            del self.ready[40:]
        return (self.ready.pop(0), self.rng.random() < 0.02) if self.ready else None


class SimulatedSource(Unlinked):
    """The link and the control node. See Source."""

    def __init__(self, story: Story, clock: ManualClock, supply: Supply, wake: Callable[[], None]) -> None:
        self._clock, self._supply, self._wake = clock, supply, wake
        self._down = Spans(story.down)
        self._now_lasts = (0.0, False)
        self.asking = False

    @property
    def status(self) -> LinkStatus:
        """See Source."""
        if self._down.now(self._clock.wall) is not None:
            return LinkStatus(Link.DOWN, 0.0, "connection refused", None, "B", "http://control.example")
        return LinkStatus(Link.UP, 0.0, "", None, "B", "http://control.example")

    def ask(self) -> bool:
        """See Source."""
        if self.asking or self.waiting is not None or self.status.link is not Link.UP:
            return False
        self.asking = True
        asyncio.get_running_loop().call_later(0.05, self._answer)
        return True

    def _answer(self) -> None:
        self.asking = False
        task = self._supply.take(self._clock.wall)
        if task is not None:
            self._now_lasts = task
            rng = self._supply.rng
            self.waiting = Claim(str(uuid.UUID(int=rng.getrandbits(128), version=4)), rng.choice(TYPES))
        self._wake()

    @property
    def lasts(self) -> tuple[float, bool]:
        """How the task in hand will go."""
        return self._now_lasts

    def settle(self, claim: Claim, ending: Ending) -> None:
        """See Source."""

    def hand_back(self, claim: Claim, ending: Ending, on_preempt: str) -> None:
        """See Source."""
        if not self._supply.endless:
            self._supply.ready.append(self._now_lasts[0])


class UnwatchedAttempt(Attempt):
    """Its limits are not watched: that would take real time."""

    def _watch(self, *_: Any) -> None:
        pass


class SimulatedNode(Node):
    """The product's node; its sensors, its link and what runs a task are the story's."""

    attempt_type = UnwatchedAttempt

    def __init__(
        self, config: Config, clock: ManualClock, wake: Callable[[], None], journal: Journal, lifecycle: Lifecycle,
        story: Story, supply: Supply,
    ) -> None:  # fmt: skip
        self._story, self._supply, self._story_clock = story, supply, clock
        super().__init__(config, clock, wake, lambda _: None, journal, lifecycle)
        self.automation.blockers["leftovers"] = ""

    def _build_source(self, config: Config) -> None:
        self.source = SimulatedSource(self._story, self._story_clock, self._supply, lambda: self._wake())

    def _build_sensors(self, config: Config) -> None:
        super()._build_sensors(config)
        signs, sensors = Signs(self._story, self._story_clock), self.sensors
        sensors.observer.presence = (signs,)  # type: ignore[assignment]
        sensors.observer.gpu, sensors.observer.cpu, sensors.observer.host = signs.gpu, signs.cpu, signs.host
        sensors.gpu = StillGpu(signs)  # type: ignore[assignment]

    def _executor(self, task_type: TaskType) -> Any:
        rng = self._supply.rng

        async def start(claim: Claim, folder: Path, wake: Callable[[], None]) -> SimulatedTask:
            seconds, fails = self.source.lasts  # type: ignore[attr-defined]
            return SimulatedTask(seconds, rng.uniform(0.02, 0.35), fails, wake)

        return SimpleNamespace(start=start)
