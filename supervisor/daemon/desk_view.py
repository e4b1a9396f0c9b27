"""What the people at the desk see of the node, by their session agents. It changes only when something has happened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from states.memory import Memory, State

if TYPE_CHECKING:
    from supervisor.daemon.wiring import Node


class DeskView:
    """Counts what the node has lent since it started at `now_s`. Times are seconds of CLOCK_BOOTTIME."""

    def __init__(self, now_s: float) -> None:
        self._began_s = round(now_s, 1)
        self._tasks, self._last_id = 0, ""
        self._lent_s = 0.0
        self._lent_from_s: float | None = None

    def fields(self, node: Node, memory: Memory, now_s: float) -> dict[str, Any]:
        """After a tick. `paused_until`: seconds since the epoch. `lent_s`: whole stays in RUNNING; a stay goes on since
        `lent_from_s`. `last_task`: a pause follows the task in hand."""
        running, task, pause = memory.state is State.RUNNING, node.last.task, node.automation.first
        if running and task.id and task.id != self._last_id:
            self._tasks, self._last_id = self._tasks + 1, task.id
        if not running and self._lent_from_s is not None:
            self._lent_s += now_s - self._lent_from_s
        self._lent_from_s = memory.running_since_s if running else None
        return {
            "state": memory.state, "since_s": memory.since_s, "task": task.type if running else "",
            "paused": pause.paused, "paused_by": pause.paused_by, "paused_until": pause.until, "last_task": pause.finishing,
            "lent_to": _host(node.source.status.url), "began_s": self._began_s, "tasks": self._tasks,
            "lent_s": round(self._lent_s, 1), "lent_from_s": self._lent_from_s,
        }  # fmt: skip


def _host(url: str) -> str:
    """The machine in a URL; empty where it names none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
