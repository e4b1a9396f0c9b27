"""The one slot for a task: what is claimed, what runs, what is left. Its phase is what the Observation shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from states.observation import NO_TASK, Task, TaskPhase
from supervisor.sources.base import Claim, Source
from supervisor.tasks.executors.base import RunningTask


class Slot:
    """Holds at most one claim, and the process tree that belongs to it or outlived it.

    A tree whose stop failed keeps its place in `tree` after its claim was handed back, until it is seen to be gone.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.claim: Claim | None = None
        self.tree: RunningTask | None = None
        self.workdir: Path | None = None
        self.failure = ""
        self.fault = ""
        self.spoilt = ""
        self.after = ""
        self.why_back = ""
        self.stopped = False

    def condemn(self, fault: str) -> None:
        """The running task has failed by its own fault, in words, and is being stopped for it: it will not be handed back."""
        if self.claim is not None and not self.stopped:  # else it is about to be over, or it is the last one's
            self.fault = self.fault or fault

    def spoil(self, why: str) -> None:
        """The node has spoilt the running task, in words, and is stopping it for that: it will be handed back."""
        if self.claim is not None and not self.stopped:
            self.spoilt = self.spoilt or why

    def task(self) -> Task:
        """The task as the mind sees it: phase, id and type, never the payload (R6)."""
        claim = self.claim or self.source.waiting
        if claim is None:
            return Task(TaskPhase.ASKED) if self.source.asking else NO_TASK
        return Task(self._phase(), claim.id, claim.type)

    def _phase(self) -> TaskPhase:
        if self.claim is None:
            return TaskPhase.CLAIMED
        if self.failure:
            return TaskPhase.FAILED
        if self.stopped:
            return TaskPhase.ENDED
        if self.tree is None:
            return TaskPhase.CLAIMED
        if not self.tree.ended:
            return TaskPhase.RUNNING
        return TaskPhase.FAILED if self.fault or self.spoilt or self.tree.error is not None else TaskPhase.ENDED

    def take(self) -> Claim:
        """The claim in hand, taken from the source if it still waits there.

        Raises:
            LookupError: there is none.
        """
        if self.claim is None:
            self.claim = self.source.take()
        if self.claim is None:
            raise LookupError("no task is in hand")
        return self.claim

    def outcome(self) -> tuple[Mapping[str, Any], str | None]:
        """(result, error) of the task in hand, for settling. Of one that was stopped for its own fault: how its process
        ended, and the end of its stderr."""
        if error := self.failure or self.fault:
            told = {} if self.tree is None or self.tree.error is None else self.tree.result
            return {name: value for name, value in told.items() if name in ("status", "stderr")}, error
        if self.tree is None:
            return {}, "the task never ran"
        return self.tree.result, self.tree.error

    def close(self) -> None:
        """The claim is settled or handed back; what is left of its processes and files stays in place."""
        self.claim = None
        self.failure = self.fault = self.spoilt = self.after = self.why_back = ""
        self.stopped = False
        if self.tree is not None and not self.tree.alive:
            self.tree = None

    def pids(self) -> frozenset[int]:
        """Our task's processes, also of one that would not stop."""
        return frozenset() if self.tree is None else self.tree.pids()

    def cpu_s(self) -> float:
        """CPU seconds that our task has used, of the tree that is there."""
        return 0.0 if self.tree is None else self.tree.cpu_s()

    @property
    def in_hand(self) -> bool:
        """A task is handed over, or alive; a poll in flight is not one, and may last (a fleet's queue lets it wait)."""
        return self.tree is not None or self.claim is not None or self.source.waiting is not None

    @property
    def empty(self) -> bool:
        """Nothing is asked for, in hand, or alive."""
        return not self.in_hand and not self.source.asking
