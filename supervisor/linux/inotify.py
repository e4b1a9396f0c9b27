"""The only file that knows inotify: watches files and folders from the event loop.

A user has few inotify instances and a limited number of watches. Where the kernel refuses one, nothing fails: `add` returns
False, and no events come. The caller must then look at intervals.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Set
from typing import NamedTuple, Self

from inotify_simple import INotify, flags

__all__ = ["Event", "Watcher", "flags"]


class Event(NamedTuple):
    """Something that happened at `path`: the watched file, or an entry of the watched folder.

    gone: the watched path itself is no longer watched, because it was removed or unmounted.
    overflow: the kernel dropped events; `path` is empty, and anything may have happened.
    """

    path: str
    mask: int
    gone: bool = False
    overflow: bool = False


class Watcher:
    """One inotify instance. `on_events` gets the new events, at least one, in the loop's thread."""

    def __init__(self, on_events: Callable[[list[Event]], None]) -> None:
        self._on_events = on_events
        self._inotify: INotify | None = None
        self._paths: dict[int, str] = {}

    def open(self) -> None:
        """Begin; must be called in the running event loop."""
        with contextlib.suppress(OSError):
            self._inotify = INotify(nonblocking=True)
            asyncio.get_running_loop().add_reader(self._inotify.fileno(), self._ready)

    def close(self) -> None:
        """End all watches; may be called more than once."""
        inotify, self._inotify = self._inotify, None
        if inotify is not None:
            asyncio.get_running_loop().remove_reader(inotify.fileno())
            inotify.close()
            self._paths.clear()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_open(self) -> bool:
        return self._inotify is not None

    @property
    def watched(self) -> Set[str]:
        """The watched paths, as given to `add`."""
        return set(self._paths.values())

    def add(self, path: str | os.PathLike[str], mask: int) -> bool:
        """Watch a path for the events of `mask` (`flags`); returns False where that is not possible."""
        if self._inotify is None:
            return False
        try:
            self._paths[self._inotify.add_watch(path, mask)] = os.fspath(path)
        except OSError:
            return False
        return True

    def remove(self, path: str | os.PathLike[str]) -> None:
        """End the watch of a path, also if another file has this name now."""
        for wd in [wd for wd, known in self._paths.items() if known == os.fspath(path)]:
            del self._paths[wd]
            with contextlib.suppress(OSError):
                self._inotify.rm_watch(wd)  # type: ignore[union-attr]

    def read(self) -> list[Event]:
        """The events since the last time, which `on_events` then does not get; never waits."""
        events = []
        with contextlib.suppress(OSError):
            for wd, mask, _, name in self._inotify.read(timeout=0) if self._inotify is not None else ():
                if mask & flags.Q_OVERFLOW:
                    events.append(Event("", mask, overflow=True))
                elif mask & (flags.IGNORED | flags.DELETE_SELF):
                    if path := self._paths.pop(wd, ""):
                        events.append(Event(path, mask, gone=True))
                elif path := self._paths.get(wd, ""):
                    events.append(Event(os.path.join(path, name) if name else path, mask))
        return events

    def _ready(self) -> None:
        if events := self.read():
            self._on_events(events)
