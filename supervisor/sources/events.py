"""The journal as sources use it."""

from __future__ import annotations

import contextlib
from typing import Any, Protocol

from supervisor.sources.base import SourceEvents


class TaskRef(Protocol):
    """What names a task: a claim, an outcome, a task in flight."""

    @property
    def id(self) -> str: ...

    @property
    def type(self) -> str: ...


class EventLog:
    """Writes events of the link. A journal that fails does not end the link."""

    def __init__(self, events: SourceEvents) -> None:
        self._events = events

    def __call__(self, event: str, about: TaskRef | None = None, /, **fields: Any) -> None:
        """Write one event, about a task or about the link. No field holds a payload or a result."""
        named = {} if about is None else {"task": about.id, "type": about.type}
        with contextlib.suppress(Exception):
            self._events.link_event(event, {**named, **fields})
