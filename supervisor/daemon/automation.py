"""What switches automation on or off: a pause, the fleet's order, runtime.yaml, a broken configuration, a fault of the node."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from states.observation import Automation
from supervisor.linux.clock import Clock, iso
from supervisor.linux.small_files import read_plain, read_small, replace_plain
from supervisor.linux.text import error_text, one_line
from supervisor.sources.desired import Order, Want

PAUSE_FILE: Final = "pause.json"
FLEET_FILE: Final = "fleet-pause.json"
YEAR_S: Final = 365 * 86400.0
LONGEST_S: Final = 10 * YEAR_S
MAX_NAME: Final = 60
BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"


class Pause:
    """A pause, kept in a file of the state folder, so that it survives a restart.

    It ends at a time of day, by the wall clock, or after so many seconds. These are counted by CLOCK_BOOTTIME while this boot
    lasts, for a wall clock may be set. A pause "after the task" lets the task in hand finish and starts no other; a restart
    hands the task back, and the pause begins. `ends_it`: the command that ends it.
    """

    def __init__(self, path: Path, clock: Clock, ends_it: str) -> None:
        self._path = path
        self._clock = clock
        self._ends_it = ends_it
        self._until: float | None = None  # seconds since the epoch
        self._until_boot_s: float | None = None  # seconds of CLOCK_BOOTTIME: the end of a pause for so many seconds
        self.paused_by = ""
        self.paused = False
        self._unreadable = ""  # why nobody knows until when the node is paused
        self._after_task = False  # the pause waits for the task in hand
        self._load()

    def pause_now(self, now_s: float, *, task_in_hand: bool) -> Automation | None:
        """Off by this pause at `now_s` (seconds of CLOCK_BOOTTIME), with the reason; None: not off by it."""
        if not self.paused:
            return None
        left_s = self._left_s()
        self._after_task = self._after_task and task_in_hand
        if left_s is not None and left_s <= 0:
            with contextlib.suppress(OSError):  # the file says when the pause ended, so it may stay
                self.resume()
            return None
        if self.finishing:
            return None
        if left_s is None:
            why = f" ({self._unreadable})" if self._unreadable else ""
            return Automation(False, f"paused{self._by()}, until `{self._ends_it}`{why}", "operator")
        return Automation(False, f"paused{self._by()} until {self._end()}", "operator", now_s + left_s)

    @property
    def finishing(self) -> bool:
        """The task in hand is the last one before a pause, by the last reading."""
        return self.paused and self._after_task

    def pause(self, until: float | None, by: str, *, for_s: float | None = None, after_task: bool = False) -> None:
        """Pause until a wall-clock time (seconds since the epoch), for `for_s` seconds, or, with None for both, until resumed;
        at once, or after the task in hand.

        Raises:
            ValueError: the end is not in the future, or too far away.
            OSError: the pause cannot be kept over a restart; until then it holds all the same.
        """
        now, boot_s = self._clock.wall_s(), None
        if for_s is not None:
            until, boot_s = now + for_s, self._clock.now_s() + for_s
        if until is not None and not now < until <= now + LONGEST_S:
            raise ValueError(f"a pause ends in the future, within {LONGEST_S / YEAR_S:g} years, or not at all")
        self.paused, self._until, self._until_boot_s, self.paused_by, self._after_task = True, until, boot_s, by, after_task
        self._unreadable = ""
        kept: dict[str, Any] = {"v": 1, "until": until, "by": by}  # after a restart no task is in hand: paused
        if boot_s is not None:
            kept |= {"until_boot_s": boot_s, "boot": read_small(BOOT_ID)}
        self._write(kept)

    def resume(self) -> None:
        """End the pause.

        Raises:
            OSError: its file cannot be removed; until the next restart the pause is over all the same.
        """
        self._forget()
        self._path.unlink(missing_ok=True)

    def _forget(self) -> None:
        self.paused, self._until, self._until_boot_s, self.paused_by, self._after_task = False, None, None, "", False
        self._unreadable = ""

    def _kept(self) -> dict[str, Any]:
        """What the file holds beside the pause."""
        return {}

    def _write(self, kept: dict[str, Any]) -> None:
        self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        replace_plain(self._path, json.dumps(kept | self._kept()).encode())

    def _read(self, kept: dict[str, Any]) -> None:
        """Read what the file holds beside the pause."""

    @property
    def note(self) -> str:
        """For `status`: the pause that follows the task in hand; empty without one."""
        if not self.finishing:
            return ""
        end = f"until `{self._ends_it}`" if self._until is None else f"until {self._end()}"
        return f"finishes the task in hand, takes no other, then pauses {end}"

    @property
    def until(self) -> float | None:
        """When it ends, by the wall clock that it was given by (seconds since the epoch); None: no end, or no pause."""
        return self._until

    def paused_end(self) -> str | None:
        """When the pause ends (ISO 8601); `until resumed` without an end; None without a pause."""
        if not self.paused:
            return None
        left_s = self._left_s()
        return "until resumed" if left_s is None else iso(self._clock.wall_s() + left_s)

    def _load(self) -> None:
        try:
            kept = json.loads(read_plain(self._path))
            until = None if kept["until"] is None else float(kept["until"])
            if until is not None and not abs(until) < self._clock.wall_s() + LONGEST_S:
                raise ValueError
            same_boot = "until_boot_s" in kept and kept["boot"] == read_small(BOOT_ID) != ""
            boot_s = float(kept["until_boot_s"]) if same_boot else None
            if boot_s is not None and not abs(boot_s) < self._clock.now_s() + LONGEST_S:
                raise ValueError
            self.paused, self._until, self._until_boot_s = True, until, boot_s
            self.paused_by = one_line(str(kept["by"]), MAX_NAME)
            self._read(kept)
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            # Somebody paused the node, and its end cannot be read: the node stays paused until it is resumed.
            self.paused, self._until, self._until_boot_s, self.paused_by = True, None, None, ""
            what = f"cannot be read: {error_text(error)}" if isinstance(error, OSError) else "is damaged"
            self._unreadable = f"{self._path} {what}"

    def _left_s(self) -> float | None:
        """Seconds until the pause is over; None: it has no end."""
        if self._until_boot_s is not None:
            return self._until_boot_s - self._clock.now_s()
        return None if self._until is None else self._until - self._clock.wall_s()

    def _by(self) -> str:
        return f" by {self.paused_by}" if self.paused_by else ""

    def _end(self) -> str:
        end = time.localtime(self._clock.wall_s() + (self._left_s() or 0.0))
        today = time.localtime(self._clock.wall_s())
        same_day = (end.tm_year, end.tm_yday) == (today.tm_year, today.tm_yday)
        return time.strftime("%H:%M" if same_day else "%a %d %b %H:%M", end)


class FleetPause(Pause):
    """The pause that the fleet's operator asked for. Its file also says when the last order was given, for none is obeyed
    twice, and none that is older."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self.at = 0.0  # of the last order, in seconds since the epoch
        self.off = False  # until `fleet enable`, not `fleet resume`
        super().__init__(path, clock, "rae-node fleet resume")

    def obey(self, order: Order) -> bool:
        """Do what is asked for. False: it was obeyed before, or is older than one that was. Raises OSError as `pause`."""
        if order.at <= self.at:
            return False
        self.at, self.off = order.at, order.want is Want.OFF
        self._ends_it = f"rae-node fleet {'enable' if self.off else 'resume'}"
        if order.want is Want.RUN or (order.until is not None and order.until <= self._clock.wall_s()):
            self.resume()
        else:
            until = None if order.until is None else min(order.until, self._clock.wall_s() + LONGEST_S)
            self.pause(until, order.by, after_task=order.after_task)
        return True

    def _by(self) -> str:
        return f"{super()._by()} over the fleet"

    def _kept(self) -> dict[str, Any]:
        return {"at": self.at, "off": self.off, "paused": self.paused}

    def resume(self) -> None:
        """End the pause, and remember the order. Raises OSError as `pause`."""
        self._forget()
        self._write({"v": 1, "until": None, "by": ""})

    def _read(self, kept: dict[str, Any]) -> None:
        self.at, self.off = float(kept["at"]), kept["off"] is True
        self._ends_it = f"rae-node fleet {'enable' if self.off else 'resume'}"
        if kept["paused"] is False:
            self._forget()


class AutomationSwitch(Pause):
    """Automation is off for the first of these that holds: the node stops, broken files, a pause of this machine's operator or
    person, one of the fleet's operator, the setting, a blocker."""

    def __init__(self, state_dir: Path, clock: Clock) -> None:
        super().__init__(state_dir / PAUSE_FILE, clock, "rae-node resume")
        self.fleet = FleetPause(state_dir / FLEET_FILE, clock)
        self.stopping = ""
        self.blockers: dict[str, str] = {}  # what keeps the node from working at all, by subject
        self.problems: tuple[str, ...] = ()
        self.enabled = False

    def reading(self, now_s: float, *, task_in_hand: bool) -> Automation:
        """On or off at `now_s` (seconds of CLOCK_BOOTTIME), with the reason."""
        if self.stopping:
            return Automation(False, self.stopping, "operator")
        if self.problems:
            more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            return Automation(False, self.problems[0] + more, "configuration")
        for pause in (self, self.fleet):
            if (off := pause.pause_now(now_s, task_in_hand=task_in_hand)) is not None:
                return off
        if not self.enabled:
            return Automation(False, "automation.enabled is false in runtime.yaml", "runtime.yaml")
        if blocker := next(filter(None, self.blockers.values()), ""):
            return Automation(False, blocker, "node")
        return Automation(True, source="runtime.yaml")

    @property
    def first(self) -> Pause:
        """The pause that counts: this machine's own, else the fleet's."""
        return self if self.paused or not self.fleet.paused else self.fleet

    def for_the_fleet(self) -> dict[str, str]:
        """Whose pause this is, and when it ends; nothing without a pause. The fleet does not get the person's name."""
        pause = self.first
        if not pause.paused:
            return {}
        end = "" if pause._left_s() is None else pause.paused_end() or ""
        return {"paused_by": "person" if pause is self and pause.paused_by else "operator", "paused_until": end}

    def configure(self, enabled: bool, problems: Sequence[str] = ()) -> None:
        """The files were read. `problems`: what is wrong with them."""
        self.problems = tuple(problems)
        self.enabled = enabled
