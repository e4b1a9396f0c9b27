"""What can be known of any process on the machine: its short name, its program, its systemd unit; and lists of such.

Another user's program path may not be read; its short name and its control group may, by everybody.
"""

from __future__ import annotations

import os.path
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from supervisor.linux.text import one_line

MOST: Final = 1 << 16  # bytes of what is read
MAX_NAME: Final = 32  # characters of a name that is shown
COMM_LENGTH: Final = 15  # the kernel cuts a process's name there


@dataclass(frozen=True, slots=True)
class Name:
    """A process's short name, the path of its program where we may read it, and its control group."""

    comm: str = ""
    exe: str = ""
    cgroup: str = ""

    @property
    def gone(self) -> bool:
        """There is no such process (any more)."""
        return not self.comm and not self.exe

    def __str__(self) -> str:
        return one_line(self.comm or os.path.basename(self.exe), MAX_NAME)


def name_of(proc_root: Path, pid: int) -> Name:
    """A process's names; empty ones when it is gone."""
    folder = f"{proc_root}/{pid}"
    try:
        exe = os.readlink(f"{folder}/exe").removesuffix(" (deleted)")
    except OSError:  # another user's process: its short name is readable all the same
        exe = ""
    return Name(_text(f"{folder}/comm"), exe, cgroup_of(_text(f"{folder}/cgroup")))


def cgroup_of(text: str) -> str:
    """The path in the unified hierarchy, else in systemd's own, out of /proc/PID/cgroup."""
    paths = {kind: path for _, kind, path in (line.split(":", 2) for line in text.splitlines() if line.count(":") >= 2)}
    unified = paths.get("", "")
    return unified if unified.strip("/") else paths.get("name=systemd", unified)


def listed(name: Name, entries: Collection[str]) -> bool:
    """Whether a process is one of the configured programs: an entry with a slash is the program's path and needs proof,
    one without is its file name, or its short name (cut by the kernel) where the path may not be read."""
    base = os.path.basename(name.exe)
    for entry in entries:
        if "/" in entry:
            if name.exe == entry:
                return True
        elif base == entry if base else bool(name.comm) and name.comm == entry[:COMM_LENGTH]:
            return True
    return False


def in_units(name: Name, units: Collection[str]) -> bool:
    """Whether a process is in one of the systemd units, or below it; a unit may be a pattern (app-steam-*.scope)."""
    parts = [part for part in name.cgroup.split("/") if part] if units else []
    return any(fnmatchcase(part, unit) for part in parts for unit in units)


def _text(path: str) -> str:
    """A file of /proc, which one read gives whole; not by Path nor open(), which take three times as long."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, MOST).decode(errors="replace").strip()
    except OSError:
        return ""
    finally:
        os.close(fd)
