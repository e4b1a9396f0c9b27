"""The plain text log for people, beside the journal: `rae-node-YYYY-MM-DD.log`, one file a day.

Each day begins with the state in which the night ended.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from supervisor.journal.daily_file import DayFile
from supervisor.journal.summary import LONGEST
from supervisor.linux.clock import iso
from supervisor.linux.text import escaped, one_line

STEM: Final = "rae-node"
SUFFIX: Final = ".log"


class TextLog:
    """Appends lines to today's file. A failure is kept in `trouble` and never raised."""

    def __init__(self, folder: Path, keep_days: int = 7) -> None:
        self._file = DayFile(folder, STEM, SUFFIX, keep_days)
        self._lost = 0
        self.trouble = ""

    def append(self, wall_s: float, text: str) -> None:
        """Write one line with its time (seconds since the epoch)."""
        lines = [text]
        if self._lost:
            lines.insert(0, f"({'a line is' if self._lost == 1 else f'{self._lost} lines are'} missing here: {self.trouble})")
        try:
            for line in lines:
                self._file.append(wall_s, f"{iso(wall_s)}  {escaped(line, 2 * LONGEST)}\n".encode())
                self._lost = 0
            self.trouble = ""
        except OSError as error:
            self._lost += 1
            self.trouble = f"the text log cannot be written in {self._file.folder}: {error.strerror or error}"

    def day(self, wall_s: float, status: str) -> None:
        """Write the first line of a day, if nothing was written today."""
        if not self._file.begun(wall_s):
            self.append(wall_s, one_line(status, LONGEST))

    def close(self) -> None:
        """Close the file."""
        self._file.close()
