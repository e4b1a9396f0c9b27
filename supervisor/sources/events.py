"""The journal as sources use it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol


class TaskRef(Protocol):
    """What names a task: a claim, an outcome, a task in flight."""

    @property
    def id(self) -> str: ...

    @property
    def type(self) -> str: ...


class EventLog:
    """Writes events of the link. A journal that fails does not end the link."""

    def __init__(self, write: Callable[[str, Mapping[str, Any]], None]) -> None:
        self._write = write

    def __call__(self, event: str, about: TaskRef | None = None, /, **fields: Any) -> None:
        """Write one event, about a task or about the link. No field holds a payload or a result."""
        named = {} if about is None else {"task": about.id, "type": about.type}
        with contextlib.suppress(Exception):
            self._write(event, {**named, **fields})
