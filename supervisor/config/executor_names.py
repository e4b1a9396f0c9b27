"""The executors that a task type may name: built-in ones, and those of the entry point group `rae_node.executors`.

A name that is not built in costs a search of all entry points (8 ms), so only such a name starts it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

from supervisor.linux.text import one_line

GROUP: Final = "rae_node.executors"
BUILT_IN: Final = {
    "command": "supervisor.tasks.executors.command:CommandExecutor",
    "ollama_api": "supervisor.tasks.executors.ollama:OllamaExecutor",
    "shell_command": "supervisor.tasks.executors.shell:ShellExecutor",
}


class NoExecutor(Exception):
    """There is no such executor, or it cannot be loaded; the text says what is allowed."""


def installed(name: str) -> Callable[..., Any]:
    """Load the entry point of that name, or raise NoExecutor."""
    from importlib.metadata import entry_points

    found = entry_points(group=GROUP)
    if name not in found.names:
        raise NoExecutor(", ".join([*BUILT_IN, *sorted(found.names - BUILT_IN.keys())]))
    try:
        loaded = found[name].load()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - foreign code may raise anything
        why = one_line(f"{type(error).__name__}: {error}", 500)
        raise NoExecutor(f"an executor that can be loaded; {found[name].value} cannot: {why}") from None
    if not callable(loaded):
        raise NoExecutor(f"an executor; {found[name].value} is not one: it cannot be called")
    return cast("Callable[..., Any]", loaded)
