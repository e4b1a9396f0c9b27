"""One person's own terminals: each read of typed bytes, by inotify, which the daemon may not watch (it is another user).

A terminal belongs to us when its node does. Which ones there are is looked up when one comes or goes, or when a session
does (a login changes the owner of its terminal); nothing is looked at in between.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from supervisor.linux.inotify import Event, Watcher, flags
from supervisor.sensors.session_agent.source import boot_s

CONSOLE: Final = re.compile(r"tty[0-9]+|console|hvc[0-9]+|ttyS[0-9]+")


class OwnTerminals:
    """`typed` is called at each read of typed bytes; `typed_at_s` (CLOCK_BOOTTIME; None: never) and `typed_on` tell."""

    def __init__(self, typed: Callable[[], None], dev: Path = Path("/dev")) -> None:
        self._typed, self._dev, self._uid = typed, dev, os.getuid()
        self._watcher, self._folder = Watcher(self._read), str(dev / "pts")
        self.typed_at_s: float | None = None
        self.typed_on = ""

    def start(self) -> None:
        """Begin to watch; without inotify, of which a user has few, the terminals' own times must do, by the daemon."""
        self._watcher.open()
        self._watcher.add(self._folder, flags.CREATE | flags.ATTRIB)
        self.look()

    def stop(self) -> None:
        """Stop watching."""
        self._watcher.close()

    def look(self) -> None:
        """Watch what is ours by now."""
        if not self._watcher.is_open:
            return
        names: list[str] = []
        with contextlib.suppress(OSError):
            names += [f"pts/{name}" for name in os.listdir(self._dev / "pts") if name.isdecimal()]
        with contextlib.suppress(OSError):
            names += [name for name in os.listdir(self._dev) if CONSOLE.fullmatch(name)]
        for path in {str(self._dev / name) for name in names} - self._watcher.watched:
            with contextlib.suppress(OSError):
                status = os.stat(path)
                if stat.S_ISCHR(status.st_mode) and status.st_uid == self._uid:
                    self._watcher.add(path, flags.ACCESS)

    def _read(self, events: list[Event]) -> None:
        typed = look = False
        for event in events:
            if event.mask & flags.ACCESS:
                typed, self.typed_on = True, event.path.removeprefix(f"{self._dev}/")
            elif event.overflow or not event.gone:  # a terminal came, or has another owner
                look = True
                typed = typed or event.overflow
        if look:
            self.look()
        if typed:
            self.typed_at_s = boot_s()
            self._typed()
