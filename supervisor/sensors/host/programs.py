"""Programs beside which nothing may run (host.exclusive_programs): seen at the tick that follows their start.

A name, a path, or a pattern of a systemd unit (what a sandbox hides of a program's path, its unit still tells). A look
reads only what is new since the last one, and what is so young that it may still become another program; all of it is
read once in `FULL_S`, for a program may start another in its place at any time, but not all at once: that would hold the
loop up. While a task runs the ticks are a second apart at most, which is then how long a program may go unseen.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final

from supervisor.linux.proc import COMM_LENGTH, Name, in_units, name_of

YOUNG_S: Final = 10.0
FULL_S: Final = 10.0
SHARES: Final = 10  # of all processes, over that time
UNITS: Final = (".scope", ".service", ".slice")
HIDDEN: Final = "other users' processes are hidden: mount /proc without hidepid (host.exclusive_programs)"


class Programs:
    """The processes of configured programs.

    Args:
        entries: the configuration.
        own_pids: processes of the node's task, which may be such a program itself.
    """

    def __init__(
        self,
        entries: Sequence[str],
        own_pids: Callable[[], Collection[int]] = tuple,
        *,
        proc_root: Path = Path("/proc"),
    ) -> None:
        self._units = [entry for entry in entries if entry.endswith(UNITS)]
        self._names = [entry for entry in entries if not entry.endswith(UNITS)]
        self._own_pids, self._proc = own_pids, proc_root
        self._since: dict[int, float] = {}  # when each process was first seen
        self._found: dict[int, Name] = {}
        self._read_at_s: dict[int, float] = {}  # when each was last read, as far as that is once in `FULL_S`

    def running(self, now_s: float) -> list[str]:
        """Those that run now, in words.

        Raises:
            OSError: /proc cannot be listed, or shows our own processes alone.
        """
        if not self._units and not self._names:
            return []
        if os.path.lexists(self._proc / "self") and not name_of(self._proc, 1).comm:  # the first one is always there
            raise PermissionError(errno.EPERM, HIDDEN)
        pids = {int(name) for name in os.listdir(self._proc) if name.isdecimal()}
        self._since = {pid: self._since.get(pid, now_s) for pid in pids}
        read_at_s = {pid: self._read_at_s.get(pid, now_s - FULL_S * (pid % SHARES) / SHARES) for pid in pids}
        due = {pid for pid, at_s in read_at_s.items() if not 0 <= now_s - at_s < FULL_S}
        self._read_at_s = read_at_s | dict.fromkeys(due, now_s)
        look_at = [p for p, since_s in self._since.items() if p in due or p in self._found or now_s - since_s <= YOUNG_S]
        self._found = {pid: found for pid, found in self._found.items() if pid in pids}
        for pid in look_at:
            name = name_of(self._proc, pid)
            if self._matches(name) and not self._over(pid):
                self._found[pid] = name
            else:
                self._found.pop(pid, None)
        own = set(self._own_pids()) if self._found else ()
        return [f"{name} (pid {pid})" for pid, name in sorted(self._found.items()) if pid not in own]

    def _matches(self, name: Name) -> bool:
        """By either of its names: what runs in a Windows layer has its own short name and the layer's path."""
        called = {name.comm, os.path.basename(name.exe)} - {""}
        for entry in self._names:
            base = os.path.basename(entry)
            if "/" in entry and name.exe:
                if name.exe == entry:
                    return True
            elif base in called or (len(base) > COMM_LENGTH and name.comm == base[:COMM_LENGTH]):
                return True
        return in_units(name, self._units)

    def _over(self, pid: int) -> bool:
        """It has ended, and only its parent has not taken note."""
        try:
            status = (self._proc / str(pid) / "stat").read_text(errors="replace")
        except OSError:
            return True
        return status.rpartition(")")[2].split()[:1] == ["Z"]
