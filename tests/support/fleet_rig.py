"""Members of a fleet in one process: the product's loop, lifecycle, performer and JetStream source; signs and tasks simulated.

A member's person comes and goes as told, its task lasts as long as its payload says, its link is real.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
from support.nats_rig import cut
from support.simulated import SimulatedNode, SimulatedTask
from support.stories import Story
from support.weeks import settings

from states.lifecycle import Lifecycle
from states.memory import Memory, State
from states.observation import NEVER, Cpu, Gpu, Host, Reading
from supervisor.config.load import Config
from supervisor.config.schema import TaskType
from supervisor.daemon.loop import Daemon, Inbox
from supervisor.journal.decision_log import Journal
from supervisor.linux.clock import SystemClock
from supervisor.linux.sd_notify import Notifier
from supervisor.sensors.base import Presence, PresenceSensor
from supervisor.sensors.observer import Observer
from supervisor.sources.base import Claim
from supervisor.sources.factory import make_source
from supervisor.sources.nats.source import NatsSource

KIND = "work"


class WallClock(SystemClock):
    """Real time, also in the form that simulated signs read."""

    @property
    def now(self) -> float:
        """Seconds of CLOCK_BOOTTIME."""
        return self.now_s()

    @property
    def wall(self) -> float:
        """Seconds since the epoch."""
        return self.wall_s()


@dataclass
class Log:
    """What happened in the fleet, by monotonic seconds."""

    starts: dict[str, list[tuple[float, str]]] = field(default_factory=dict)
    delivered: Counter[str] = field(default_factory=Counter)  # results that this process knows to be stored, by task
    events: Counter[str] = field(default_factory=Counter)
    left: list[tuple[float, str, str]] = field(default_factory=list)  # when a task lost its node, its id, and by what

    def started(self, task_id: str, member: str) -> None:
        """A task begins to run there."""
        self.starts.setdefault(task_id, []).append((time.monotonic(), member))

    def gaps(self, why: str = "") -> list[float]:
        """Seconds from each loss of a node ("return", "death") to the same task's next start, where it did start again."""
        found = []
        for when, task_id, by in self.left:
            if why not in ("", by):
                continue
            after = [at for at, _ in self.starts.get(task_id, []) if at > when]
            if after:
                found.append(min(after) - when)
        return found


class Desk(PresenceSensor):
    """One machine's signs: nobody is there until somebody comes."""

    name = "simulated"

    def __init__(self, clock: WallClock) -> None:
        self._clock = clock
        self.there = False
        self.last_s = NEVER

    def latest(self, now_s: float) -> Presence:
        """See PresenceSensor."""
        return Presence(self.name, now_s, now_s if self.there else self.last_s, "user active on seat0")

    def gpu(self, now_s: float) -> Reading[Gpu]:
        """Free."""
        return Reading(Gpu(1, 0.5), "", self.name, now_s)

    def cpu(self, now_s: float) -> Reading[Cpu]:
        """Free."""
        return Reading(Cpu(3), "", self.name, now_s)

    def host(self, now_s: float) -> Reading[Host]:
        """Always fit."""
        return Reading(Host(), "", self.name, now_s)


class Lasting(NatsSource):
    """Knows how long the task in hand lasts."""

    lasts: tuple[float, bool] = (0.0, False)

    def take(self) -> Claim | None:
        """See Source."""
        claim = super().take()
        if claim is not None:
            self.lasts = (float(claim.payload.get("seconds", 0.0)), bool(claim.payload.get("fails")))
        return claim


class MemberNode(SimulatedNode):
    """The product's node with a real link."""

    def __init__(
        self, config: Config, clock: WallClock, wake: Callable[[], None], journal: Journal, lifecycle: Lifecycle,
        desk: Desk, log: Log,
    ) -> None:  # fmt: skip
        self._desk, self._log = desk, log
        supply = SimpleNamespace(rng=None)
        super().__init__(config, clock, wake, journal, lifecycle, Story(0, 0), supply)  # type: ignore[arg-type]

    def _build_source(self, config: Config) -> None:
        source = make_source(config, self.clock, None, self)
        assert isinstance(source, NatsSource)
        source.__class__ = Lasting
        self.source = source

    def _build_sensors(self, config: Config) -> None:
        super()._build_sensors(config)
        desk = self._desk
        self.sensors.observer = Observer([desk], desk.gpu, desk.cpu, desk.host, NEVER)

    def link_event(self, event: str, fields: Mapping[str, Any]) -> None:
        """See SourceEvents."""
        self._log.events[event] += 1
        if event == "delivered":
            self._log.delivered[fields["task"]] += 1
        super().link_event(event, fields)

    def _executor(self, task_type: TaskType) -> Any:
        async def start(claim: Claim, folder: Path, wake: Callable[[], None]) -> SimulatedTask:
            self._log.started(claim.id, self.config.node_id)
            seconds, fails = self.source.lasts  # type: ignore[attr-defined]
            return SimulatedTask(seconds, 0.005, fails, wake)

        return SimpleNamespace(start=start)


class Quiet(Journal):
    """A journal that keeps nothing: a thousand of them on one disk would be measured, and nothing else."""

    def write(self, kind: str, **fields: Any) -> None:
        """Nothing."""


@dataclass
class Member:
    """One node of the fleet."""

    config: Config
    log: Log
    keep_journal: bool = False
    clock: WallClock = field(default_factory=WallClock)

    def __post_init__(self) -> None:
        self.name = self.config.node_id
        self.desk = Desk(self.clock)
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """As supervisor/daemon/main.py does it, but for the process around it."""
        for path in (self.config.paths.logs, self.config.paths.state, self.config.paths.workdir):
            path.mkdir(parents=True, exist_ok=True)
        self.journal = (Journal if self.keep_journal else Quiet)(self.config.paths.logs, self.clock, keep_days=7)
        inbox = Inbox()
        lifecycle = Lifecycle(self.config.limits, memory=Memory(since_s=self.clock.now_s()))
        self.node = node = MemberNode(self.config, self.clock, inbox.wake, self.journal, lifecycle, self.desk, self.log)
        node.automation.configure(True)
        self.daemon = Daemon(node, lifecycle, self.journal, self.clock, Notifier({}), inbox)
        self._running = asyncio.create_task(self.daemon.run())

    @property
    def state(self) -> State:
        """Its state."""
        return self.daemon.lifecycle.state

    @property
    def task(self) -> str:
        """The id of the task that runs here, or nothing."""
        attempt = self.node.attempts.current
        return attempt.claim.id if attempt is not None and attempt.process is not None else ""

    def person_comes(self) -> None:
        """Somebody sits down."""
        if self.task and self.state is State.RUNNING:
            self.log.left.append((time.monotonic(), self.task, "return"))
        self.desk.there = True
        self.daemon.wake()

    def person_goes(self) -> None:
        """And leaves."""
        self.desk.there, self.desk.last_s = False, self.clock.now_s()
        self.daemon.wake()

    async def stop(self) -> None:
        """In order."""
        self.daemon.stop("the test is over")
        if self._running is not None:
            await self._running
        await self.node.source.stop(5.0)
        self.journal.close()

    async def die(self) -> None:
        """As by a power cut."""
        if self.task:
            self.log.left.append((time.monotonic(), self.task, "death"))
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        if self.node.attempts.process is not None:
            self.node.attempts.process._timer.cancel()  # type: ignore[attr-defined]
        assert isinstance(self.node.source, NatsSource)
        await cut(self.node.source)
        self.journal.close()


def configs(folder: Path, names: list[str], url: str, **changes: float) -> list[Config]:
    """Configurations of members, all read from one file; `changes` to runtime.yaml and node.yaml, dots as two underscores."""
    quick = {
        "safety.idle_required_minutes": 0.01, "safety.cooldown_minutes": 0.01, "execution.poll_interval_sec": 5,
        "execution.heartbeat_interval_sec": 10, "work.run_minutes": 30,
    }
    base = settings(folder, folder / "logs", {**quick, **{name.replace("__", "."): value for name, value in changes.items()}})
    made = []
    for name in names:
        node = msgspec.structs.replace(
            base.node,
            node=msgspec.structs.replace(base.node.node, id=name),
            tasks={KIND: next(iter(base.node.tasks.values()))},
            control=msgspec.structs.replace(base.node.control, source="nats", url=url),
        )
        place = folder / "members" / name
        paths = replace(base.paths, logs=place / "logs", state=place / "state", workdir=place / "work", runtime=place / "run")
        made.append(replace(base, node=node, node_id=name, paths=paths))
    return made
