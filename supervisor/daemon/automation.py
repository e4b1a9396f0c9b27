"""What switches automation on or off: the operator's pause, runtime.yaml, a broken configuration, a fault of the node."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from states.observation import Automation
from supervisor.linux.clock import Clock, iso
from supervisor.linux.small_files import read_plain, replace_plain
from supervisor.linux.text import error_text, one_line

PAUSE_FILE: Final = "pause.json"
YEAR_S: Final = 365 * 86400.0
LONGEST_S: Final = 10 * YEAR_S
MAX_NAME: Final = 60


class AutomationSwitch:
    """Automation is off for the first of these that holds: the node stops, broken files, a pause, the setting, a blocker.

    A pause is kept in the state folder and survives a restart. Its end is a wall-clock time, because people mean one. A pause
    "after the task" lets the task in hand finish and starts no other; a restart hands the task back, and the pause begins.
    """

    def __init__(self, state_dir: Path, clock: Clock) -> None:
        self._path = state_dir / PAUSE_FILE
        self._clock = clock
        self.stopping = ""
        self.blockers: dict[str, str] = {}  # what keeps the node from working at all, by subject
        self.problems: tuple[str, ...] = ()
        self.enabled = False
        self.paused_until: float | None = None
        self.paused_by = ""
        self.paused = False
        self._unreadable = ""  # why nobody knows until when the node is paused
        self._after_task = False  # the pause waits for the task in hand
        self._load()

    def reading(self, now_s: float, *, task_in_hand: bool) -> Automation:
        """On or off at `now_s` (seconds of CLOCK_BOOTTIME), with the reason."""
        if self.stopping:
            return Automation(False, self.stopping, "operator")
        if self.problems:
            more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            return Automation(False, self.problems[0] + more, "configuration")
        if self.paused:
            left_s = None if self.paused_until is None else self.paused_until - self._clock.wall_s()
            self._after_task = self._after_task and task_in_hand
            if left_s is not None and left_s <= 0:
                with contextlib.suppress(OSError):  # the file says when the pause ended, so it may stay
                    self.resume()
            elif self.finishing:
                pass
            elif left_s is None:
                why = f" ({self._unreadable})" if self._unreadable else ""
                return Automation(False, f"paused{self._by()}, until `rae-node resume`{why}", "operator")
            else:
                return Automation(False, f"paused{self._by()} until {self._end()}", "operator", now_s + left_s)
        if not self.enabled:
            return Automation(False, "automation.enabled is false in runtime.yaml", "runtime.yaml")
        if blocker := next(filter(None, self.blockers.values()), ""):
            return Automation(False, blocker, "node")
        return Automation(True, source="runtime.yaml")

    @property
    def finishing(self) -> bool:
        """The task in hand is the last one before a pause, by the last reading."""
        return self.paused and self._after_task

    def pause(self, until: float | None, by: str, *, after_task: bool = False) -> None:
        """Pause until a wall-clock time (seconds since the epoch), or until resumed (None); at once, or after the task in hand.

        Raises:
            ValueError: the time is not in the future, or too far away.
            OSError: the pause cannot be kept over a restart; until then it holds all the same.
        """
        now = self._clock.wall_s()
        if until is not None and not now < until <= now + LONGEST_S:
            raise ValueError(f"a pause ends in the future, within {LONGEST_S / YEAR_S:g} years, or not at all")
        self.paused, self.paused_until, self.paused_by, self._after_task = True, until, by, after_task
        self._unreadable = ""
        self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        kept = json.dumps({"v": 1, "until": until, "by": by})  # after a restart no task is in hand: paused
        replace_plain(self._path, kept.encode())

    def resume(self) -> None:
        """End the pause.

        Raises:
            OSError: its file cannot be removed; until the next restart the pause is over all the same.
        """
        self.paused, self.paused_until, self.paused_by, self._after_task = False, None, "", False
        self._unreadable = ""
        self._path.unlink(missing_ok=True)

    @property
    def note(self) -> str:
        """For `status`: the pause that follows the task in hand; empty without one."""
        if not self.finishing:
            return ""
        end = "until `rae-node resume`" if self.paused_until is None else f"until {self._end()}"
        return f"finishes the task in hand, takes no other, then pauses {end}"

    def paused_end(self) -> str | None:
        """When the pause ends (ISO 8601); `until resumed` without an end; None without a pause."""
        if not self.paused:
            return None
        return "until resumed" if self.paused_until is None else iso(self.paused_until)

    def configure(self, enabled: bool, problems: Sequence[str] = ()) -> None:
        """The files were read. `problems`: what is wrong with them."""
        self.problems = tuple(problems)
        self.enabled = enabled

    def _load(self) -> None:
        try:
            kept = json.loads(read_plain(self._path))
            until = None if kept["until"] is None else float(kept["until"])
            if until is not None and not abs(until) < self._clock.wall_s() + LONGEST_S:
                raise ValueError
            self.paused, self.paused_until, self.paused_by = True, until, one_line(str(kept["by"]), MAX_NAME)
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            # Somebody paused the node, and its end cannot be read: the node stays paused until it is resumed.
            self.paused, self.paused_until, self.paused_by = True, None, ""
            what = f"cannot be read: {error_text(error)}" if isinstance(error, OSError) else "is damaged"
            self._unreadable = f"{self._path} {what}"

    def _by(self) -> str:
        return f" by {self.paused_by}" if self.paused_by else ""

    def _end(self) -> str:
        end = time.localtime(self.paused_until)
        today = time.localtime(self._clock.wall_s())
        same_day = (end.tm_year, end.tm_yday) == (today.tm_year, today.tm_yday)
        return time.strftime("%H:%M" if same_day else "%a %d %b %H:%M", end)
