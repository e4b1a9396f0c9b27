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
from supervisor.tasks.process import command_process
from supervisor.tasks.process.command_process import CommandTask, Launch
from supervisor.tasks.process.containment import TASK_VARIABLE, Bounds, Containment, task_mark
from supervisor.tasks.process.pipes import Pipes
from supervisor.tasks.process.result import CommandResult, judge

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
        argv, payload, more = self._order(claim, workdir)
        mark = task_mark(workdir)
        sandbox = ""
        if self._type.sandbox == "bubblewrap":
            from supervisor.tasks.process import bubblewrap

            await bubblewrap.must_work(self._type, workdir)
            argv, sandbox = [*bubblewrap.argv(self._type, workdir), *argv], bubblewrap.NAME
        try:
            cgroup = self._containment.place(mark, self._bounds())
        except OSError as error:
            raise StartFailed(f"no cgroup for the task: {error.strerror}") from None
        memory_gb, notice = self._type.max_memory_gb, self._type.notice
        launch = Launch(
            argv,
            {**more, **self._variables(claim, workdir, mark)},
            workdir,
            mark,
            cgroup,
            int(self._type.max_result_mb * _MIB),
            sandbox,
            None if notice.signal == "none" else (getattr(signal, f"SIG{notice.signal}"), notice.deadline_sec),
            "" if memory_gb is None else f"the kernel ended it at {memory_gb:g} GiB (tasks.{claim.type}.max_memory_gb)",
        )
        return await command_process.start(launch, payload, wake, self._judge)

    def _order(self, claim: Claim, workdir: Path) -> tuple[list[str], bytes, dict[str, str]]:
        """(argv, what is written to stdin, further variables) for this claim. Raises StartFailed."""
        if not self._type.argv:
            raise StartFailed(f"tasks.{claim.type}.argv is empty; name the command in node.yaml")
        try:
            return self._type.argv, msgspec.json.encode(claim.payload), {}
        except (TypeError, ValueError, RecursionError) as error:
            raise StartFailed(f"the payload cannot be written as JSON ({type(error).__name__})") from None

    def _judge(self, status: int | None, pipes: Pipes, max_result: int) -> CommandResult:
        """The outcome of the command, see `judge`."""
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
