"""A process's short name, program path and control group, and whether configured names match them.

Every user may read the short name and the control group of every process, but not another user's program path.
"""

from __future__ import annotations

import os.path
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from supervisor.linux.small_files import read_small
from supervisor.linux.text import one_line

MAX_NAME: Final = 32  # characters of a name that is shown
COMM_LENGTH: Final = 15  # the kernel cuts a process's name there


@dataclass(frozen=True, slots=True)
class Name:
    """A process's short name, its program's path if we may read it, and its control group."""

    comm: str = ""
    exe: str = ""
    cgroup: str = ""

    @property
    def gone(self) -> bool:
        """Whether there is no such process."""
        return not self.comm and not self.exe

    def __str__(self) -> str:
        return one_line(self.comm or os.path.basename(self.exe), MAX_NAME)


def name_of(proc_root: Path, pid: int) -> Name:
    """A process's names; empty ones when it is gone."""
    folder = f"{proc_root}/{pid}"
    try:
        exe = os.readlink(f"{folder}/exe").removesuffix(" (deleted)")
    except OSError:  # another user's process
        exe = ""
    return Name(read_small(f"{folder}/comm"), exe, cgroup_of(read_small(f"{folder}/cgroup")))


def cgroup_of(text: str) -> str:
    """The path in the unified hierarchy, or else in systemd's own, from the text of /proc/PID/cgroup."""
    paths = {kind: path for _, kind, path in (line.split(":", 2) for line in text.splitlines() if line.count(":") >= 2)}
    unified = paths.get("", "")
    return unified if unified.strip("/") else paths.get("name=systemd", unified)


def listed(name: Name, entries: Collection[str]) -> bool:
    """Whether a process is one of the configured programs. An entry with a slash must be the program's path. Any other entry
    is the program's file name, or the short name (which the kernel cuts) if the path may not be read."""
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
