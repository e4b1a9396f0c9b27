"""Makes the executor of a task type by its name.

An entry point names a callable that takes (TaskType, Containment) and returns an Executor.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

from supervisor.config.executor_names import BUILT_IN, NoExecutor, installed

if TYPE_CHECKING:
    from supervisor.config.schema import TaskType
    from supervisor.tasks.executors.base import Executor
    from supervisor.tasks.process.containment import Containment


def make(name: str, task_type: TaskType, containment: Containment) -> Executor:
    """The executor of that name for one task type. Raises NoExecutor: it is not installed, or cannot be made."""
    if name not in BUILT_IN:
        make_it = installed(name)
        try:
            return cast("Executor", make_it(task_type, containment))
        except Exception as error:  # noqa: BLE001 - a site's own code
            raise NoExecutor(f"an executor that can be made; {name} cannot ({type(error).__name__})") from None
    module, _, attribute = BUILT_IN[name].partition(":")
    return cast("Executor", getattr(importlib.import_module(module), attribute)(task_type, containment))
