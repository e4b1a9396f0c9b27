"""Programs beside which nothing may run (host.exclusive_programs), seen at the tick after their start.

An entry is a name, a path, or a pattern of a systemd unit (a sandbox hides a program's path, but not its unit). A tick reads
the processes that are new, and those so young that they may still exec another program. A process may exec at any later time,
so each is read again every `FULL_S`; a tenth of them per second, because all at once would delay the loop. While a task runs,
the ticks are at most a second apart, and a program is seen that late at most.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final

from supervisor.linux.proc import COMM_LENGTH, Name, in_units, name_of
from supervisor.linux.small_files import read_small

YOUNG_S: Final = 10.0
FULL_S: Final = 10.0
SHARES: Final = 10  # of all processes, over that time
UNITS: Final = (".scope", ".service", ".slice")
HIDDEN: Final = "other users' processes are hidden: mount /proc without hidepid (host.exclusive_programs)"


class Programs:
    """The processes of configured programs.

    Args:
        entries: host.exclusive_programs.
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
        self._first_seen_s: dict[int, float] = {}
        self._found: dict[int, Name] = {}
        self._read_at_s: dict[int, float] = {}  # the last of the reads that each process gets every `FULL_S`

    def running(self, now_s: float) -> list[str]:
        """Those that run now, as text.

        Raises:
            OSError: /proc cannot be listed, or shows only our own processes.
        """
        if not self._units and not self._names:
            return []
        if os.path.lexists(self._proc / "self") and not name_of(self._proc, 1).comm:  # process 1 always exists
            raise PermissionError(errno.EPERM, HIDDEN)
        pids = {int(name) for name in os.listdir(self._proc) if name.isdecimal()}
        self._first_seen_s = {pid: self._first_seen_s.get(pid, now_s) for pid in pids}
        read_at_s = {pid: self._read_at_s.get(pid, now_s - FULL_S * (pid % SHARES) / SHARES) for pid in pids}
        due = {pid for pid, at_s in read_at_s.items() if not 0 <= now_s - at_s < FULL_S}
        self._read_at_s = read_at_s | dict.fromkeys(due, now_s)
        young = {pid for pid, seen_s in self._first_seen_s.items() if now_s - seen_s <= YOUNG_S}
        self._found = {pid: found for pid, found in self._found.items() if pid in pids}
        for pid in due | young | self._found.keys():
            name = name_of(self._proc, pid)
            if self._matches(name) and not self._ended(pid):
                self._found[pid] = name
            else:
                self._found.pop(pid, None)
        own = set(self._own_pids()) if self._found else ()
        return [f"{name} (pid {pid})" for pid, name in sorted(self._found.items()) if pid not in own]

    def _matches(self, name: Name) -> bool:
        """Whether either of its names matches: in a Windows layer a program has its own short name and the layer's path."""
        called = {name.comm, os.path.basename(name.exe)} - {""}
        for entry in self._names:
            base = os.path.basename(entry)
            if "/" in entry and name.exe:
                if name.exe == entry:
                    return True
            elif base in called or (len(base) > COMM_LENGTH and name.comm == base[:COMM_LENGTH]):
                return True
        return in_units(name, self._units)

    def _ended(self, pid: int) -> bool:
        """Whether it has ended, also if its parent has not reaped it yet."""
        return read_small(f"{self._proc}/{pid}/stat").rpartition(")")[2].split()[:1] in ([], ["Z"])
