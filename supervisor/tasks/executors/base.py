"""The protocol that every executor implements. An executor knows nothing of the lifecycle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from supervisor.sources.base import Claim
from supervisor.tasks.process.rungs import RungName

Wake = Callable[[], None]


class StopFailed(Exception):
    """Processes of the task are still alive after the kill. The text names them and the reason."""


class StartFailed(Exception):
    """The task could not be started. The text is the task's error; it never holds a payload."""


class NodeFault(StartFailed):
    """It is this node that could not start the task, so the task goes back."""


class FreezeFailed(Exception):
    """The task could not be frozen or thawed; the text says why. After a failed freeze the task runs on."""


class CheckpointFailed(Exception):
    """VRAM was not moved; the text says why. `usable`: the task's processes are unchanged. If not, they must be killed."""

    def __init__(self, text: str, *, usable: bool) -> None:
        super().__init__(text)
        self.usable = usable


@dataclass(frozen=True, slots=True)
class Rung:
    """One step of freezing, thawing or stopping a task. `seconds`: in a stop from the order to the end of this step, else what
    this step took; None: a step without a time. `processes`: how many took part, if more than one is known."""

    name: RungName
    seconds: float | None = None
    processes: int = 1
    detail: str = ""

    def __str__(self) -> str:
        several = f"{self.processes} processes: " if self.processes > 1 else ""
        detail = f" ({self.detail})" if self.detail else ""
        time = "" if self.seconds is None else f" {self.seconds * 1000:.0f} ms"
        return f"{several}{self.name}{detail}{time}"


def describe(*rungs: Rung) -> str:
    """The rungs as the journal has them: `frozen 2 ms, term 40 ms, gone 43 ms`."""
    return ", ".join(map(str, rungs))


class RunningTask(Protocol):
    """A task's process tree. Others only read its attributes."""

    alive: bool
    """A process of the tree exists (observed, not assumed). False: it is gone, and the attributes below are final."""
    error: str | None
    """None: the task succeeded. Else why it failed, in one line, without payload or output."""
    result: Mapping[str, Any]
    """The result object; `{}`: there is none. Of a failed task its `status` and `stderr`, for the control node alone."""
    state: Any
    """What a stopped task saved of its progress, as JSON types; None: nothing. Kept in memory only."""

    def pids(self) -> frozenset[int]:
        """The processes of the tree now. What they use does not count as use by others."""
        ...

    def cpu_s(self) -> float:
        """CPU seconds of the tree so far, of living and of reaped processes."""
        ...

    def memory(self, enough: float | None) -> int:
        """Bytes of memory and swap that the tree uses; an estimate from above if it is not more than `enough`. Blocks."""
        ...

    async def disk(self) -> int:
        """Bytes that the task has written to disk and that are still there."""
        ...

    def freeze_now(self) -> None:
        """Order all processes to stop where they are, and return at once. `freeze` or `stop` must follow, which confirms it.
        Reads and writes no disk. Does nothing for a task that cannot be frozen."""
        ...

    async def freeze(self) -> Rung:
        """Stop all processes where they are, and confirm it. The order is given before the first await. The processes keep
        their memory, VRAM too. A frozen task can be stopped like any other. Takes some seconds at most. Raises FreezeFailed if
        not all stopped in time, or this task cannot be frozen: it runs on."""
        ...

    async def thaw(self) -> Rung:
        """Let the task run on after `freeze`. Does nothing for a task that was not frozen, or is gone. Raises
        FreezeFailed if there was no answer: it is not known whether the task runs."""
        ...

    async def stop(self, grace_s: float) -> tuple[Rung, ...]:
        """Freeze at once; then SIGTERM and thaw; after `grace_s` seconds SIGKILL. Returns when the tree is empty.
        Raises StopFailed if something is still alive."""
        ...


class Executor(Protocol):
    """Runs the tasks of one type."""

    async def start(self, claim: Claim, workdir: Path, wake: Wake) -> RunningTask:
        """Start the claim in the fresh private folder `workdir`. `wake` is called in the loop's thread when the task ends.
        Raises StartFailed."""
        ...
