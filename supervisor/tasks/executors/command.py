"""Runs a task type's command: payload as JSON on stdin, result as a JSON object on stdout.

No shell, no file, no thread: pipes on the loop, and a shim between us and the task (see process/command_process.py). Success
is exit code 0 with a JSON object or with nothing on stdout; everything else is the task's failure.
"""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from supervisor.config.daemon_clients import daemon_client
from supervisor.config.schema import TaskType
from supervisor.sources.base import Claim
from supervisor.tasks.executors.base import NodeFault, StartFailed, Wake
from supervisor.tasks.process import bubblewrap, command_process, sandbox, unit
from supervisor.tasks.process.command_process import CommandTask, Launch
from supervisor.tasks.process.containment import TASK_VARIABLE, Bounds, Containment, task_mark
from supervisor.tasks.process.pipes import Pipes
from supervisor.tasks.process.result import CommandResult, judge

_MIB, _GIB = 1 << 20, 1 << 30
_ACCOUNT: Final = "rae-task"


class CommandExecutor:
    """Starts the command of one task type."""

    def __init__(self, task_type: TaskType, containment: Containment) -> None:
        self._type = task_type
        self._containment = containment

    async def start(self, claim: Claim, workdir: Path, wake: Wake) -> CommandTask:
        """See Executor."""
        offer, gpus, outer, judge_it = self._containment.offer, self._containment.gpus, "", self._judge
        argv, payload, variables = self._order(claim)
        try:
            chosen = sandbox.choose(self._type, offer)
        except sandbox.NoSandbox as refused:
            raise StartFailed(str(refused)) from None
        folder = Path(unit.WORKDIR) if chosen.kind is sandbox.Kind.UNIT else workdir  # as the task sees it
        mark = task_mark(workdir)
        if chosen.kind is sandbox.Kind.BUBBLEWRAP:
            argv = [*bubblewrap.argv(self._type, workdir, offer.bubblewrap, offer.hidden, gpus.nodes), *argv]
            outer, judge_it = bubblewrap.NAME, self._judge_inside
        memory_gb, notice = self._type.max_memory_gb, self._type.notice
        # Limits by the kernel, if it has the controllers; the node checks them in any case (see monitor.py).
        bounds = Bounds(
            self._containment.cpu_percent,
            None if memory_gb is None else int(memory_gb * _GIB),
            self._type.max_processes,
            swap=self._type.checkpoint == "none",
        )
        limit = "ended by the kernel"
        if memory_gb is not None:
            limit = f"the kernel ended it at {memory_gb:g} GiB (tasks.{claim.type}.max_memory_gb)"
        launch = Launch(
            argv,
            {**variables, **self._variables(claim, folder, mark, chosen.kind)},
            str(folder),
            mark,
            None,
            int(self._type.max_result_mb * _MIB),
            outer,
            None if notice.signal == "none" else (getattr(signal, f"SIG{notice.signal}"), notice.deadline_sec),
            limit,
            gpus.closed if chosen.kind is sandbox.Kind.UNIT else gpus.other_gpus,
        )
        if chosen.kind is sandbox.Kind.UNIT:
            shim = await unit.connect(bounds, network=self._type.sandbox_network)
            launch = replace(launch, cgroup=shim.tree.path)
            return await command_process.begin(unit.UnitTask, shim, launch, payload, wake, judge_it)
        try:
            launch = replace(launch, cgroup=self._containment.place(mark, bounds))
        except OSError as error:
            raise NodeFault(f"no cgroup for the task: {error.strerror}") from None
        return await command_process.start(launch, payload, wake, judge_it)

    def _order(self, claim: Claim) -> tuple[list[str], bytes, dict[str, str]]:
        """For this claim: argv, the bytes for stdin, further variables. Raises StartFailed."""
        if not self._type.argv:
            raise StartFailed(f"tasks.{claim.type}.argv is empty; name the command in node.yaml")
        if why := daemon_client(self._type.argv):
            raise StartFailed(f"tasks.{claim.type}.argv: {why}")
        try:
            return self._type.argv, msgspec.json.encode(claim.payload), {}
        except (TypeError, ValueError, RecursionError) as error:
            raise StartFailed(f"the payload cannot be written as JSON ({type(error).__name__})") from None

    def _judge(self, status: int | None, pipes: Pipes, memory_limit: str) -> CommandResult:
        return judge(status, pipes, memory_limit)

    def _judge_inside(self, status: int | None, pipes: Pipes, memory_limit: str) -> CommandResult:
        return self._judge(bubblewrap.inner_status(status), pipes, memory_limit)

    def _variables(self, claim: Claim, workdir: Path, mark: str, kind: sandbox.Kind) -> dict[str, str]:
        """The task's whole environment: a few named variables, so that none of the daemon's secrets is among them."""
        gpus = self._containment.gpus
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": os.environ.get("LANG", "C.UTF-8"),
            "HOME": str(workdir),
            "TMPDIR": str(workdir),
            "USER": _ACCOUNT,  # some programs want a name, which the user of a unit has for nobody else
            "LOGNAME": _ACCOUNT,
            "RAE_TASK_ID": claim.id,
            "RAE_TASK_TYPE": claim.type,
            **(gpus.open_variables if kind is sandbox.Kind.NONE else gpus.variables),
            **self._type.env,
            TASK_VARIABLE: mark,
        }
