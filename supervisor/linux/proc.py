"""A process's short name, program path and control group, and whether configured names match them.

Every user may read the short name and the control group of every process, but not another user's program path.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from supervisor.linux.small_files import read_small
from supervisor.linux.text import one_line

MAX_NAME: Final = 32  # characters of a name that is shown
COMM_LENGTH: Final = 15  # the kernel cuts a process's name there
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


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


# Of /proc/PID/cgroup. A desktop's own parts are in session.slice, what it starts for a person in app.slice, in each person's
# user-UID.slice (systemd's "Desktop Environments"). Login screens have users below 1000, or such that systemd makes up.
_DESKTOP_SLICES: Final = frozenset({"session.slice", "background.slice"})
_USER_SLICE: Final = re.compile(r"user-(\d+)\.slice")
_DISPLAY_MANAGER: Final = "/etc/systemd/system/display-manager.service"  # a link to the one that is enabled
_LOGIN_SCREENS: Final = (range(1, 1000), range(60578, 65536))


def draws_desktop(cgroup: str, display_manager: str = "") -> bool:
    """Whether a process that draws is part of a desktop or of a login screen, by its control group: no person has started it
    for its own sake. `display_manager`: see there."""
    parts = [part for part in cgroup.split("/") if part]
    for part in parts:
        if match := _USER_SLICE.fullmatch(part):
            login_screen = any(int(match[1]) in users for users in _LOGIN_SCREENS)
            return login_screen or not _DESKTOP_SLICES.isdisjoint(parts)
    return bool(display_manager) and display_manager in parts


def display_manager() -> str:
    """The unit that starts X servers and login screens here, by the name that systemd has for whichever it is; empty: none."""
    unit = os.path.basename(os.path.realpath(_DISPLAY_MANAGER))
    return "" if unit == os.path.basename(_DISPLAY_MANAGER) else unit


def age_s(proc_root: Path, pid: int) -> float:
    """How many seconds ago a process was started; 0 if that cannot be read."""
    try:
        ticks = int(read_small(f"{proc_root}/{pid}/stat").rpartition(")")[2].split()[19])
    except (ValueError, IndexError):
        return 0.0
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / _TICKS_PER_S)
