"""Runs a task type's command: payload as JSON on stdin, result as a JSON object on stdout (R2, R4, R6, R19, R23).

No shell, no file, no thread: pipes on the loop, and between us and the task its shim, see command_process.py. Exit code 0
with a JSON object, or with nothing, is success; all else is the task's failure.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path

import msgspec

from supervisor.config.schema import TaskType
from supervisor.sources.base import Claim
from supervisor.tasks.executors.base import StartFailed, Wake
from supervisor.tasks.process.command_process import CommandTask
from supervisor.tasks.process.containment import TASK_VARIABLE, Bounds, Containment, task_mark
from supervisor.tasks.process.pipes import Pipes
from supervisor.tasks.process.result import Outcome, judge

_MIB = 1 << 20


class CommandExecutor:
    """Starts the command of one task type.

    Args:
        task_type: argv, environment and limits, from node.yaml.
        containment: what holds the processes.
        environment: further variables for every task, such as CUDA_VISIBLE_DEVICES; the type's own come after.
    """

    def __init__(self, task_type: TaskType, containment: Containment, environment: Mapping[str, str] | None = None) -> None:
        self._type = task_type
        self._containment = containment
        self._environment = dict(environment or {})

    async def start(self, claim: Claim, workdir: Path, wake: Wake) -> CommandTask:
        """See Executor."""
        argv, given, more = self._order(claim, workdir)
        mark = task_mark(workdir)
        variables = {**more, **self._variables(claim, workdir, mark)}
        spare = ""
        if self._type.sandbox == "bubblewrap":
            from supervisor.tasks.process import bubblewrap

            await bubblewrap.must_work(self._type, workdir)
            argv, spare = [*bubblewrap.argv(self._type, workdir), *argv], bubblewrap.NAME
        try:
            cgroup = self._containment.place(mark, self._bounds())
        except OSError as error:
            raise StartFailed(f"no cgroup for the task: {error.strerror}") from None
        task = CommandTask(mark, cgroup, given, int(self._type.max_result_mb * _MIB), wake, self._judge)
        if (most_gb := self._type.max_memory_gb) is not None:
            said = f"limit: memory: the kernel ended it at {most_gb:g} GiB (tasks.{claim.type}.max_memory_gb)"
            task.ended_at["memory"] = said
        notice = self._type.notice
        word = None if notice.signal == "none" else [getattr(signal, f"SIG{notice.signal}"), notice.deadline_sec]
        order = {"argv": argv, "env": variables, "cwd": str(workdir), "spare": spare, "notice": word}
        await task.start(workdir, order)
        return task

    def _order(self, claim: Claim, workdir: Path) -> tuple[list[str], bytes, dict[str, str]]:
        """(argv, what is written to stdin, further variables) for this claim. Raises StartFailed."""
        if not self._type.argv:
            raise StartFailed(f"tasks.{claim.type}.argv is empty; name the command in node.yaml")
        try:
            return self._type.argv, msgspec.json.encode(claim.payload), {}
        except (TypeError, ValueError, RecursionError) as error:
            raise StartFailed(f"the payload cannot be written as JSON ({type(error).__name__})") from None

    def _judge(self, status: int | None, pipes: Pipes, max_result: int) -> Outcome:
        """What becomes of what the command has left, see `judge`."""
        return judge(status, pipes, max_result)

    def _bounds(self) -> Bounds:
        """The limits that the kernel holds where it can; the node looks after them in any case (see minder.py)."""
        memory_gb = self._type.max_memory_gb
        memory_bytes = None if memory_gb is None else int(memory_gb * (1 << 30))
        swap = self._type.checkpoint == "none"
        return Bounds(self._containment.cpu_percent, memory_bytes, self._type.max_processes, swap)

    def _variables(self, claim: Claim, workdir: Path, mark: str) -> dict[str, str]:
        """The task's whole environment: a named few, so that none of the daemon's secrets is among them."""
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": os.environ.get("LANG", "C.UTF-8"),
            "HOME": str(workdir),
            "TMPDIR": str(workdir),
            "RAE_TASK_ID": claim.id,
            "RAE_TASK_TYPE": claim.type,
            **self._environment,
            **self._type.env,
            TASK_VARIABLE: mark,
        }
