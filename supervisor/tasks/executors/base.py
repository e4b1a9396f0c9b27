"""What runs a task: one small protocol that every executor keeps. An executor does not know the lifecycle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from supervisor.sources.base import Claim

Wake = Callable[[], None]


class StopFailed(Exception):
    """Processes of the task are still alive after the kill; the text says which and why."""


class StartFailed(Exception):
    """The task could not be started; the text is the task's error, never a payload."""


class FreezeFailed(Exception):
    """The task could not be frozen or thawed; the text says why. Where freezing failed, it runs on."""


class CheckpointFailed(Exception):
    """VRAM was not moved; the text says why. `usable`: the task's processes are as they were. Else they must be killed."""

    def __init__(self, text: str, *, usable: bool) -> None:
        super().__init__(text)
        self.usable = usable


class RunningTask(Protocol):
    """A task's process tree."""

    @property
    def alive(self) -> bool:
        """A process of the tree exists (observed, not assumed)."""
        ...

    @property
    def ended(self) -> bool:
        """The task's own process has ended, its tree is gone, and its outcome has been read."""
        ...

    @property
    def error(self) -> str | None:
        """None: the task succeeded. Else why it failed, in one line, without payload or output."""
        ...

    @property
    def result(self) -> Mapping[str, Any]:
        """The result object; `{}` while there is none."""
        ...

    @property
    def state(self) -> Any:
        """What a task that was stopped has saved of its place, JSON types; None: nothing. In memory only (R6)."""
        ...

    def pids(self) -> frozenset[int]:
        """The processes of the tree now; what they use is not held against the node itself (R11)."""
        ...

    def cpu_s(self) -> float:
        """CPU seconds used by the tree so far, of living and of reaped processes."""
        ...

    async def freeze(self) -> str:
        """Stop all of its processes where they are, and see them stopped; in words ("frozen 2 ms"). They keep their memory,
        VRAM too. A frozen task may be stopped like any other. Bounded by some seconds.

        Raises:
            FreezeFailed: not all of them stopped in time, or it is none that can be frozen: it runs on.
        """
        ...

    async def thaw(self) -> str:
        """Let it run on after `freeze`; in words. Of a task that was not frozen, or is gone: nothing happens.

        Raises:
            FreezeFailed: nobody answered; whether it runs is not known.
        """
        ...

    async def stop(self, grace_s: float) -> str:
        """Freeze at once, then SIGTERM (thawed), `grace_s` seconds, then SIGKILL; returns when the tree is empty, with the
        rungs and their times in words ("frozen 2 ms, term 40 ms, gone 43 ms").

        Raises:
            StopFailed: something is still alive.
        """
        ...


class Executor(Protocol):
    """How a task type is run."""

    async def start(self, claim: Claim, workdir: Path, wake: Wake) -> RunningTask:
        """Start the claim in the fresh private folder `workdir`; `wake` is called in the loop's thread when it ends.

        Raises:
            StartFailed: it did not start.
        """
        ...
