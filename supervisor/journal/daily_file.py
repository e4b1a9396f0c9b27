"""One file a day in one folder, kept for some days. Whole lines are appended; a new file begins at local midnight.

Before each line it is checked whether the file was deleted or moved, and whether the day has changed. A line that cannot be
written is an OSError; it is not tried again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from datetime import date
from math import inf
from pathlib import Path

from supervisor.linux.small_files import check_plain


class DayFile:
    """Appends to `folder`/`stem`-YYYY-MM-DD`suffix`; the newest `keep_days` of them stay."""

    def __init__(self, folder: Path, stem: str, suffix: str, keep_days: int) -> None:
        self.folder = folder
        self._stem, self._suffix = stem, suffix
        self._keep_days = keep_days
        self._name = pattern(stem, suffix)
        self._fd: int | None = None
        self._day = ""

    def append(self, wall_s: float, raw: bytes) -> None:
        """Write one line, with its line end, into the file of that time (seconds since the epoch).

        Raises:
            OSError: it is not there, or only a part of it.
        """
        try:
            self._open(wall_s)
            assert self._fd is not None
            if os.write(self._fd, raw) != len(raw):
                raise OSError(errno.ENOSPC, "only a part of the line was written")
        except OSError:
            self.close()
            raise

    def begun(self, wall_s: float) -> bool:
        """The file of that day has been written to."""
        return self._fd is not None and self._day == day_of(wall_s)

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            with contextlib.suppress(OSError):  # the write has reported a broken disk already
                os.close(fd)

    def _open(self, wall_s: float) -> None:
        day = day_of(wall_s)
        path = self.folder / f"{self._stem}-{day}{self._suffix}"
        if self._fd is not None and day == self._day and _same(self._fd, path):
            return
        self.close()
        self.folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o640)
        size = check_plain(self._fd, path).st_size
        if not size:
            os.fchmod(self._fd, 0o640)  # the node's group may read it, whatever the service's umask
        if size and os.pread(self._fd, 1, size - 1) != b"\n":
            os.write(self._fd, b"\n")  # end a line that a power cut has torn
        if day != self._day:
            self._day = day
            self._forget_old(day)

    def _forget_old(self, today: str) -> None:
        """Keep the newest `keep_days` days that exist. A clock that is wrong for a moment must not delete the others. So days
        after today are counted by themselves, and twice as many stay there, and after a leap over more days than are kept."""
        days = sorted(match[1] for name in os.listdir(self.folder) if (match := self._name.match(name)))
        past, future = [day for day in days if day <= today], [day for day in days if day > today]
        leap = len(past) > 1 and _days_between(past[-2], today) > self._keep_days
        for day in past[: -self._keep_days * (2 if leap else 1)] + future[: -self._keep_days * 2]:
            with contextlib.suppress(OSError):  # tried again tomorrow
                os.unlink(self.folder / f"{self._stem}-{day}{self._suffix}")


def pattern(stem: str, suffix: str) -> re.Pattern[str]:
    """What the names of such files match; its group is the day."""
    return re.compile(rf"^{re.escape(stem)}-(\d{{4}}-\d{{2}}-\d{{2}}){re.escape(suffix)}$")


def day_of(wall_s: float) -> str:
    """The local day of a time in seconds since the epoch."""
    return time.strftime("%Y-%m-%d", time.localtime(wall_s))


def _days_between(earlier: str, later: str) -> float:
    """How many days lie between two; infinite where one is no day of the calendar."""
    try:
        return (date.fromisoformat(later) - date.fromisoformat(earlier)).days
    except ValueError:
        return inf


def _same(fd: int, path: Path) -> bool:
    """The open file is still the one at this path: a deleted or moved file would take lines silently."""
    try:
        here, there = os.fstat(fd), path.lstat()
    except FileNotFoundError:
        return False
    return (here.st_ino, here.st_dev) == (there.st_ino, there.st_dev)
