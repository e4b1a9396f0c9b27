"""A person's own terminals: inotify reports each read of typed bytes. The daemon may not watch another user's terminals.

A terminal is ours when its node belongs to us. The terminals are listed when one comes or goes, or when a session does (a
login changes the owner of its terminal), and not in between.
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
    """Calls `typed` at each read of typed bytes. `typed_at_s` (seconds of CLOCK_BOOTTIME; None: never) and `typed_on` say
    when and where that was last."""

    def __init__(self, typed: Callable[[], None], dev: Path = Path("/dev")) -> None:
        self._typed, self._dev, self._uid = typed, dev, os.getuid()
        self._watcher, self._folder = Watcher(self._read), str(dev / "pts")
        self.typed_at_s: float | None = None
        self.typed_on = ""

    def start(self) -> None:
        """Begin to watch. Without inotify the daemon still reads the terminals' access times."""
        self._watcher.open()
        self._watcher.add(self._folder, flags.CREATE | flags.ATTRIB)
        self.look()

    def stop(self) -> None:
        self._watcher.close()

    def look(self) -> None:
        """Watch the terminals that are ours now."""
        if not self._watcher.is_open:
            return
        names: list[str] = []
        with contextlib.suppress(OSError):
            names += [f"pts/{name}" for name in os.listdir(self._folder) if name.isdecimal()]
        with contextlib.suppress(OSError):
            names += [name for name in os.listdir(self._dev) if CONSOLE.fullmatch(name)]
        for path in {str(self._dev / name) for name in names} - self._watcher.watched:
            with contextlib.suppress(OSError):
                status = os.stat(path)
                if stat.S_ISCHR(status.st_mode) and status.st_uid == self._uid:
                    self._watcher.add(path, flags.ACCESS)

    def _read(self, events: list[Event]) -> None:
        reads = [event for event in events if event.mask & flags.ACCESS]
        overflow = any(event.overflow for event in events)
        if overflow or any(not event.gone for event in events if event not in reads):
            self.look()  # a terminal came, or has another owner
        if reads:
            self.typed_on = reads[-1].path.removeprefix(f"{self._dev}/")
        if reads or overflow:
            self.typed_at_s = boot_s()
            self._typed()
