"""A bench for executors that run processes: starts real tasks in both kinds of containment, and proves that nothing is left.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.trees import marked_with, until_async

from supervisor.config.schema import TaskType
from supervisor.sources.base import Claim
from supervisor.tasks.executors.command import CommandExecutor
from supervisor.tasks.process.command_process import CommandTask
from supervisor.tasks.process.containment import CgroupContainment, Containment, TreeContainment, detect
from supervisor.tasks.process.sandbox import Offer
from supervisor.tasks.workdir import Workdir

DETECTED = detect()


@pytest.fixture(params=["cgroup", "tree"])
def contained(request: pytest.FixtureRequest) -> Containment:
    """Both kinds of containment."""
    if request.param == "tree":
        return TreeContainment("by choice")
    if not isinstance(DETECTED, CgroupContainment):
        pytest.skip(DETECTED.summary())
    DETECTED.offer = Offer()  # no sandbox, unless a test says otherwise
    return DETECTED


class Bench:
    """Starts tasks, and knows their folders. `make`: the executor, the command's by default."""

    make: Any = CommandExecutor

    def __init__(self, contained: Containment, root: Path) -> None:
        self.contained = contained
        self.work = Workdir(root)
        self.ended = asyncio.Event()
        self.folder = Path()
        self.tasks: list[CommandTask] = []

    async def start(self, *argv: str, payload: Any = None, **fields: Any) -> CommandTask:
        self.folder = self.work.fresh("one")
        executor = self.make(TaskType(argv=list(argv), **fields), self.contained)
        task = await executor.start(Claim("id-1", "kind", payload or {}), self.folder, self.ended.set)
        self.tasks.append(task)
        return task

    async def outcome(self, *argv: str, **fields: Any) -> tuple[str | None, Any]:
        task = await self.start(*argv, **fields)
        async with asyncio.timeout(60):  # at idle priority, on a busy machine
            await self.ended.wait()
        assert not task.alive
        assert task.pids() == frozenset()
        return task.error, task.result


@asynccontextmanager
async def bench(contained: Containment, root: Path) -> AsyncIterator[Bench]:
    """A bench that leaves no process, no cgroup and no open file behind, and proves it."""
    files = len(os.listdir("/proc/self/fd"))
    made = Bench(contained, root)
    try:
        yield made
    finally:
        for task in made.tasks:
            await task.stop(0)
    await until_async(lambda: not marked_with(str(made.folder)), what="the shim has gone")
    await until_async(lambda: len(os.listdir("/proc/self/fd")) <= files, what="our files are closed")
    assert not made.folder.exists() or not any(made.folder.iterdir())
    if isinstance(contained, CgroupContainment):
        assert not [name for name in os.listdir(contained.base) if made.folder.name in name]


def run(contained: Containment, tmp_path: Path, body: Callable[[Bench], Awaitable[None]]) -> None:
    """Run `body` on a loop of its own."""

    async def go() -> None:
        async with bench(contained, tmp_path / "work") as made:
            await body(made)

    asyncio.run(go())


def py(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]
