"""One person's own terminals: each read of typed bytes, by inotify, which the daemon may not watch (it is another user).

A terminal belongs to us when its node does. Which ones there are is looked up when one comes or goes, or when a session
does (a login changes the owner of its terminal); nothing is looked at in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from inotify_simple import INotify, flags

from supervisor.sensors.session_agent.source import boot_s

CONSOLE: Final = re.compile(r"tty[0-9]+|console|hvc[0-9]+|ttyS[0-9]+")


class OwnTerminals:
    """`typed` is called at each read of typed bytes; `typed_at_s` (CLOCK_BOOTTIME; None: never) and `typed_on` tell."""

    def __init__(self, typed: Callable[[], None], dev: Path = Path("/dev")) -> None:
        self._typed, self._dev, self._uid = typed, dev, os.getuid()
        self._inotify: INotify | None = None
        self._names: dict[int, str] = {}
        self._folder = -1
        self.typed_at_s: float | None = None
        self.typed_on = ""

    def start(self) -> None:
        """Begin to watch; without inotify, of which a user has few, the terminals' own times must do, by the daemon."""
        with contextlib.suppress(OSError):
            self._inotify = INotify(nonblocking=True)
            asyncio.get_running_loop().add_reader(self._inotify.fileno(), self._read)
            self._folder = self._inotify.add_watch(self._dev / "pts", flags.CREATE | flags.ATTRIB)
        self.look()

    def stop(self) -> None:
        """Stop watching."""
        if self._inotify is not None:
            asyncio.get_running_loop().remove_reader(self._inotify.fileno())
            self._inotify.close()
            self._inotify = None

    def look(self) -> None:
        """Watch what is ours by now."""
        if self._inotify is None:
            return
        names: list[str] = []
        with contextlib.suppress(OSError):
            names += [f"pts/{name}" for name in os.listdir(self._dev / "pts") if name.isdecimal()]
        with contextlib.suppress(OSError):
            names += [name for name in os.listdir(self._dev) if CONSOLE.fullmatch(name)]
        for name in set(names) - set(self._names.values()):
            with contextlib.suppress(OSError):
                status = os.stat(self._dev / name)
                if stat.S_ISCHR(status.st_mode) and status.st_uid == self._uid:
                    self._names[self._inotify.add_watch(self._dev / name, flags.ACCESS)] = name

    def _read(self) -> None:
        typed = look = False
        for event in self._inotify.read(timeout=0) if self._inotify is not None else ():
            if event.mask & flags.IGNORED:
                self._names.pop(event.wd, None)
            elif event.wd == self._folder or event.mask & flags.Q_OVERFLOW:
                look = True
                typed = typed or bool(event.mask & flags.Q_OVERFLOW)
            elif event.mask & flags.ACCESS:
                typed, self.typed_on = True, self._names.get(event.wd, self.typed_on)
        if look:
            self.look()
        if typed:
            self.typed_at_s = boot_s()
            self._typed()
