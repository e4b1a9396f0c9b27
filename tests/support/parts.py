"""Scripted parts of the body: a source, a task, an executor, an inhibitor, that do and fail what a test tells them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from states.ending import Ending
from supervisor.daemon.inhibitor import LockReport
from supervisor.sources.base import Availability, Claim, LinkStatus, Wake
from supervisor.tasks.executors.base import NodeFault, Rung, StartFailed, StopFailed
from supervisor.tasks.process.rungs import RungName

ID = "3880bb8d-0b6a-4b0b-9f55-3d2f6a1c0001"


def claim(kind: str = "render", task_id: str = ID) -> Claim:
    """A claim with a payload."""
    return Claim(task_id, kind, {"n": 1})


async def for_ever() -> None:
    """Hang until cancelled."""
    await asyncio.Event().wait()


class Unlinked:
    """What a source without a link need not do. See Source."""

    waiting: Claim | None = None

    async def start(self, wake: Wake) -> None:
        """Nothing to start."""

    async def take_over(self, old: Any) -> None:
        """It has nothing to deliver."""

    async def stop(self, deadline_s: float) -> None:
        """Nothing to stop."""

    def take(self) -> Claim | None:
        """See Source."""
        taken, self.waiting = self.waiting, None
        return taken

    def announce(self, availability: Availability) -> None:
        """Nobody hears it."""

    def resume(self) -> None:
        """Nothing was given up."""


class Treeless:
    """What a task without processes says. See RunningTask."""

    alive = True
    state: Any = None

    def pids(self) -> frozenset[int]:
        """None."""
        return frozenset()

    def cpu_s(self) -> float:
        """It costs nothing."""
        return 0.0

    def memory(self, enough: float | None) -> int:
        """It costs nothing."""
        return 0

    async def disk(self) -> int:
        """It costs nothing."""
        return 0

    def freeze_now(self) -> None:
        """At once."""

    async def freeze(self) -> Rung:
        """At once."""
        return Rung(RungName.FROZEN, 0.0)

    async def thaw(self) -> Rung:
        """At once."""
        return Rung(RungName.THAWED, 0.0)


@dataclass
class ScriptedSource(Unlinked):
    """A source without a link; what it is given is in `outbox`."""

    waiting: Claim | None = None
    asking: bool = False
    outbox: list[tuple[Any, ...]] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)  # the count of lost attempts of what was handed back
    fault: Exception | None = None
    status: LinkStatus = field(default_factory=LinkStatus)

    def ask(self) -> bool:
        """A poll that goes on until the test answers it."""
        self.asking = True
        return True

    def settle(self, claim: Claim, ending: Ending) -> None:
        """See Source."""
        self._put("settled", claim.id, dict(ending.result), ending.error)

    def hand_back(self, claim: Claim, ending: Ending, on_preempt: str) -> None:
        """See Source."""
        self._put("handed back", claim.id, ending.error, on_preempt)
        self.lost.append(claim.lost)

    def _put(self, *outcome: Any) -> None:
        if self.fault is not None:
            raise self.fault
        self.outbox.append(outcome)


@dataclass
class ScriptedTask(Treeless):
    """A process tree that is not one."""

    alive: bool = True
    error: str | None = None
    result: Mapping[str, Any] = field(default_factory=dict)
    stop_fails: str = ""
    stop_hangs: bool = False
    graces: list[float] = field(default_factory=list)

    def pids(self) -> frozenset[int]:
        """See RunningTask."""
        return frozenset({7}) if self.alive else frozenset()

    def cpu_s(self) -> float:
        """See RunningTask."""
        return 1.5

    def memory(self, enough: float | None) -> int:
        """See RunningTask."""
        return 0

    async def disk(self) -> int:
        """See RunningTask."""
        return 0

    async def stop(self, grace_s: float) -> tuple[Rung, ...]:
        """See RunningTask."""
        self.graces.append(grace_s)
        if self.stop_hangs:
            await for_ever()
        if self.stop_fails:
            raise StopFailed(self.stop_fails)
        self.alive = False
        return Rung(RungName.FROZEN, 0.001), Rung(RungName.GONE, 0.002)


@dataclass
class ScriptedExecutor:
    """Starts `task`, or fails, or hangs."""

    task: ScriptedTask = field(default_factory=ScriptedTask)
    fails: str = ""
    faulty: str = ""  # this node cannot start it
    hangs: bool = False
    started: list[str] = field(default_factory=list)

    async def start(self, claim: Claim, workdir: Path, wake: Callable[[], None]) -> ScriptedTask:
        """See Executor."""
        self.started.append(claim.id)
        if self.hangs:
            await for_ever()
        if self.fails:
            raise StartFailed(self.fails)
        if self.faulty:
            raise NodeFault(self.faulty)
        (workdir / "file").write_text("x")
        return self.task


@dataclass
class ScriptedInhibitor:
    """A lock that is nobody's."""

    refuses: Exception | None = None
    release_fails: Exception | None = None
    held: bool = False
    lost: str = ""

    async def take(self, why: str) -> LockReport:
        """See Inhibitor."""
        if self.refuses is not None:
            raise self.refuses
        self.held = True
        return LockReport.TAKEN

    async def release(self) -> LockReport:
        """See Inhibitor."""
        if self.release_fails is not None:
            raise self.release_fails
        self.held = False
        return LockReport.RELEASED
