"""Makes the executor of a task type by its name.

An entry point names what is called with (TaskType, Containment) and returns an Executor.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

from supervisor.config.executor_names import BUILT_IN, NoExecutor, installed

if TYPE_CHECKING:
    from pathlib import Path

    from supervisor.config.schema import TaskType
    from supervisor.sources.base import Claim
    from supervisor.tasks.executors.base import Executor, RunningTask, Wake
    from supervisor.tasks.process.containment import Containment


def make(name: str, task_type: TaskType, containment: Containment) -> Executor:
    """The executor of that name for one task type.

    Raises:
        NoExecutor: see there.
    """
    if name not in BUILT_IN:
        make_it = installed(name)
        try:
            return cast("Executor", make_it(task_type, containment))
        except Exception as error:  # noqa: BLE001 - somebody else's code
            raise NoExecutor(f"an executor that can be made; {name} cannot ({type(error).__name__})") from None
    module, _, attribute = BUILT_IN[name].partition(":")
    return cast("Executor", getattr(importlib.import_module(module), attribute)(task_type, containment))


class Guarded:
    """An executor, whose every failure to start is one in words: what else it raises would not end the claim, which would
    then be started again and again."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    async def start(self, claim: Claim, workdir: Path, wake: Wake) -> RunningTask:
        """See Executor."""
        from supervisor.tasks.executors.base import StartFailed  # here: a configuration is read without it

        try:
            return await self._executor.start(claim, workdir, wake)
        except (StartFailed, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - its words may hold the payload (R6)
            raise StartFailed(f"its executor failed ({type(error).__name__})") from None
