"""Executors by name: built-in ones, and those that a site installs under the entry point group `rae_node.executors`.

Nothing is imported before it is named in node.yaml: entry points are searched (8 ms) only for a name that is not built in.
An entry point names what is called with (TaskType, Containment) and returns an Executor.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from pathlib import Path

    from supervisor.config.schema import TaskType
    from supervisor.sources.base import Claim
    from supervisor.tasks.executors.base import Executor, RunningTask, Wake
    from supervisor.tasks.process.containment import Containment

GROUP: Final = "rae_node.executors"
BUILT_IN: Final = {
    "command": "supervisor.tasks.executors.command:CommandExecutor",
    "ollama_api": "supervisor.tasks.executors.ollama:OllamaExecutor",
    "shell_command": "supervisor.tasks.executors.shell:ShellExecutor",
}


class NoExecutor(Exception):
    """There is no such executor, or it cannot be loaded; the text says what would be allowed."""


def check(name: str) -> None:
    """Whether there is such an executor; one that is not built in is loaded for that.

    Raises:
        NoExecutor: see there.
    """
    if name not in BUILT_IN:
        _installed(name)


def make(name: str, task_type: TaskType, containment: Containment) -> Executor:
    """The executor of that name for one task type.

    Raises:
        NoExecutor: see there.
    """
    if name not in BUILT_IN:
        make_it = _installed(name)
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


def _installed(name: str) -> Callable[..., Any]:
    from importlib.metadata import entry_points

    found = entry_points(group=GROUP)
    if name not in found.names:
        raise NoExecutor(", ".join([*BUILT_IN, *sorted(found.names - BUILT_IN.keys())]))
    try:
        loaded = found[name].load()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - somebody else's code: whatever it raises is told in words
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise NoExecutor(f"an executor that can be loaded; {found[name].value} cannot: {why}") from None
    if not callable(loaded):
        raise NoExecutor(f"an executor; {found[name].value} is not one: it cannot be called")
    return cast("Callable[..., Any]", loaded)
