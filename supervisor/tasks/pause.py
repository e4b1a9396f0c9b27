"""Puts the running task on hold at a sign that may be a false alarm, and lets it go on: the yield ladder's first rung (R23).

A frozen task takes no processor; what it holds of the GPU it would keep, so one that is on the GPU is held only where its
VRAM can be moved out before (`checkpoint: cuda`). Then the order is: out, freeze; thaw, back (T22), each pair at once: a
process that uses its GPU in between may crash. The mind decides when
(rows on-hold and false-alarm); what fails here makes it stop the task at its next tick.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from supervisor.sensors.gpu.ownership import Own
from supervisor.tasks.executors.base import CheckpointFailed, FreezeFailed, RunningTask, describe

if TYPE_CHECKING:
    from supervisor.tasks.cuda_checkpoint import Checkpointer

CHECKPOINT_S: Final = 3.0  # for VRAM out or back: logind waits five seconds for a sleep, and a kill must have its time (T26)


def _checkpointer() -> Checkpointer:
    """The real one: it costs memory, and most nodes never need it."""
    from supervisor.tasks.cuda_checkpoint import Checkpointer

    return Checkpointer()


class Hold:
    """Of one task after the other.

    Args:
        own: what the task does on the GPU, by the last look.
        make: makes the checkpointer, when the first type asks for it.
    """

    def __init__(self, own: Callable[[], Own], make: Callable[[], Checkpointer] = _checkpointer) -> None:
        self._own, self._make = own, make
        self._checkpointer: Checkpointer | None = None
        self._asked: Checkpointer | None = None  # by this task's type
        self._tree: RunningTask | None = None
        self._job: asyncio.Task[None] | None = None
        self.held = False
        self.out = False  # its VRAM is not on the GPU
        self._broken = False

    def begin(self, tree: RunningTask, checkpoint: str) -> None:
        """A task starts; `checkpoint` is its type's (none, cuda)."""
        self.end()
        self._tree = tree
        if checkpoint == "cuda":
            self._asked = self._checkpointer = self._checkpointer or self._make()
            self._job = asyncio.get_running_loop().create_task(self._asked.begin())

    def end(self) -> None:
        """It is over."""
        if self._asked is not None:
            if self._job is not None:
                self._job.cancel()
                self._job = None
            self._asked.end()
        self._tree = self._asked = None
        self.held = self.out = self._broken = False

    @property
    def pinned(self) -> bool:
        """The task is on the GPU, and what it holds there cannot be moved out."""
        movable = self._asked is not None and not self._asked.problem
        return self._own().processes > 0 and not movable

    @property
    def why_pinned(self) -> str:
        """Why a type's wish for a checkpoint cannot be met, for people; nothing where it can, or there is none."""
        problem = "" if self._asked is None else self._asked.problem
        return f"a task on the GPU is stopped, not held: {problem}" if problem else ""

    @property
    def graceless(self) -> bool:
        """What is left of the task would not obey SIGTERM: it waits for a GPU that it will not get back."""
        return self.out or self._broken

    async def take(self) -> str:
        """Freeze it, its VRAM out of the way; in words.

        Raises:
            FreezeFailed: it is not on hold, and must be stopped.
        """
        tree = self._held_tree()
        words = []
        if self._own().processes:
            words.append(await self._move_out(tree))
        self.held = True
        try:
            words.append(describe(await tree.freeze()))
        except FreezeFailed:
            self.held = False
            raise
        return ", ".join(words)

    async def let_go(self) -> str:
        """Let it go on where it was; in words.

        Raises:
            FreezeFailed: it does not, and must be stopped.
        """
        tree = self._held_tree()
        words = [describe(await tree.thaw())]
        if self.out:
            assert self._asked is not None
            try:
                words.append(describe(*await self._asked.back(tree.pids(), CHECKPOINT_S)))
            except CheckpointFailed as failed:
                self._broken = True
                raise FreezeFailed(f"its VRAM could not be given back: {failed}") from None
        self.held = self.out = False
        return ", ".join(words)

    async def before_stop(self) -> str:
        """It is about to be stopped. One that got its VRAM back must not end with it (see Checkpointer.restored)."""
        tree, checkpointer = self._tree, self._asked
        if tree is None or checkpointer is None or not checkpointer.restored or self.graceless or not tree.alive:
            return ""
        try:
            return await self._move_out(tree)
        except FreezeFailed as failed:
            return str(failed)

    async def _move_out(self, tree: RunningTask) -> str:
        own = self._own()
        if self._asked is None:
            raise FreezeFailed("it is on the GPU, and frozen would keep its VRAM (tasks.<type>.checkpoint)")
        try:
            words = describe(*await self._asked.out(tree.pids(), CHECKPOINT_S, own.vram_gb))
        except CheckpointFailed as failed:
            self._broken = not failed.usable
            raise FreezeFailed(f"its VRAM could not be moved out: {failed}") from None
        self.out = True
        return words

    def _held_tree(self) -> RunningTask:
        if self._tree is None:
            raise FreezeFailed("no task is there")
        return self._tree
