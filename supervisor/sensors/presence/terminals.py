"""Terminals as signs of the person: when somebody last typed at one, and terminals that come and go.

The kernel updates a terminal's access time only when typed bytes are read from it, in steps of 8 seconds. Where we may read
the node (our own terminals; all, as root), inotify reports each read of typed bytes at once.

Access times are wall-clock times, and the wall clock may jump. The first look turns them into seconds of CLOCK_BOOTTIME. A
change seen later happened between the last look and now, whatever the time says. A time in the future or from before the
boot proves that the clock was set since, and counts as now. One exception: most consoles have the time at which the kernel
made their nodes, often before the clock was set. So an access time near that of /dev/full stands for the boot.

Terminals are pseudo-terminals in /dev/pts, virtual consoles, /dev/console, and serial lines, except those of group dialout
or uucp: getty gives its line to group tty, and a line with a UPS or a GPS is read all day by a program. The terminal in which
the node was started counts too: a person typed the command. A task that makes a pseudo-terminal looks like a person.

A terminal of a user whom node.yaml takes for no person does not count. A login makes its terminal as root's, and gives it to
its user a moment later. So where node.yaml makes exceptions, a new terminal counts once it is clear whose it is.
"""

from __future__ import annotations

import asyncio
import grp
import os
import re
import stat
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Final

from states.observation import NEVER
from supervisor.linux.clock import Clock
from supervisor.linux.inotify import Event, Watcher, flags
from supervisor.sensors.base import Presence, PresenceSensor, Quality, Wake
from supervisor.sensors.presence.agent_reports import DROPPED, SessionOwners

QUIET_S: Final = 1.0  # typing wakes the loop no more often
CLAIM_S: Final = 1.0  # a login gives its terminal to its user within this time, and logind knows of it
MAKING_NS: Final = 5_000_000_000  # the kernel makes all nodes within this time
CONSOLE: Final = re.compile(r"console|tty[0-9]+|hvc[0-9]+")
SERIAL: Final = re.compile(r"tty(S|AMA|USB|ACM)[0-9]+")
REMEDY: Final = "mount devpts there, or set presence.terminals to false in node.yaml"
MACHINES: Final = frozenset({"dialout", "uucp"})


class Terminals(PresenceSensor):
    """The newest sign of all terminals. No timer, but for new terminals where node.yaml makes exceptions; events wake the loop.

    owners: whose terminals do not count. exceptions: whether node.yaml makes any.
    """

    name = "terminals"

    def __init__(
        self, clock: Clock, dev_root: Path = Path("/dev"), owners: SessionOwners | None = None, *, exceptions: bool = False
    ) -> None:
        self._clock, self._dev = clock, dev_root
        self._owners, self._exceptions = owners or SessionOwners(), exceptions
        self._ignored: set[str] = set()  # terminals that are no person's
        self._unclaimed: dict[str, float] = {}  # new ones, and when they came
        self._known: dict[str, int] = {}  # terminals of the last look, with their access times in ns
        self._looked_at_s = NEVER
        self._sign_at_s, self._sign, self._quality = NEVER, "", Quality.POLLED
        self._prefix = f"{dev_root}/"
        self._consoles: list[str] = []
        self._listed_ns = -1  # the time of /dev's last change when `_consoles` was made
        self._wake: Wake = lambda: None
        self._watcher = Watcher(self._touched)
        self._watch_again = True
        self._woke_at_s = NEVER
        self._event_at_s = NEVER  # when an event was last a sign

    async def start(self, wake: Wake) -> None:
        self._wake = wake
        self._watcher.open()  # without inotify, only the look of each tick finds signs
        # No OPEN: every program that lists the folder opens it. Of a terminal, only typed bytes count.
        self._watcher.add(self._prefix + "pts", flags.CREATE | flags.DELETE)
        self.latest(self._clock.now_s())

    async def stop(self) -> None:
        self._watcher.close()

    def latest(self, now_s: float) -> Presence:
        """The newest sign. Costs one `stat` a terminal."""
        try:
            self._look(now_s)
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            reason = f"terminals cannot be seen: {error.strerror or error}{where}: {REMEDY}"
            return Presence(self.name, now_s, self._sign_at_s, self._sign, error=reason, quality=Quality.UNKNOWN)
        return Presence(self.name, now_s, self._sign_at_s, self._sign, quality=self._quality, hands=True)

    def details(self) -> dict[str, list[str]]:
        """The terminals, and which of them report each key at once."""
        watched = self._watched()
        parts = (self._known.keys() & watched, "each key at once"), (self._known.keys() - watched, "in steps of 8 s")
        return {"terminals": [f"{_names(names)}: {how}" for names, how in parts if names] or ["no terminal"]}

    def sees(self, name: str) -> bool:
        """Whether typing at a terminal, such as "pts/3", is seen."""
        return name in self._known or os.path.exists(self._prefix + name)

    # --- looking

    def _look(self, now_s: float) -> None:
        first = self._looked_at_s == NEVER
        offset_s = self._clock.wall_s() - now_s  # wall time = boot time + offset, now
        made_ns = self._made_ns()
        # Right after an event a console can only repeat the sign. Without the consoles the look takes a third of the time, and
        # what was typed on one keeps its time for the next look.
        short = not first and 0 <= now_s - self._event_at_s < QUIET_S
        seen = {name: at_ns for name, at_ns in self._known.items() if not name.startswith("pts/")} if short else {}
        for name in self._terminals() if short else [*self._nodes(), *self._terminals()]:
            try:
                st = os.stat(self._prefix + name)  # not by Path: this is the most expensive part of a tick
            except FileNotFoundError:
                continue
            if not stat.S_ISCHR(st.st_mode) or (SERIAL.fullmatch(name) and _group(st.st_gid) in MACHINES):
                continue
            seen[name] = st.st_atime_ns
            known = self._known.get(name)
            if self._exceptions and self._is_excepted(name, st.st_uid, now_s, new=known is None and not first):
                continue
            if known == st.st_atime_ns:
                continue
            at_s = st.st_atime_ns / 1e9 - offset_s
            if first and abs(st.st_atime_ns - made_ns) <= MAKING_NS and not name.startswith("pts/"):
                at_s = 0.0
            elif not 0.0 <= at_s <= now_s or (known is None and not first):
                at_s = now_s  # the clock was set, or the terminal is new, which is a sign at once
            how = f"terminal {name} was opened" if known is None and not first else f"user active on {name}"
            self._note(name, max(at_s, self._looked_at_s), how)
        for name in self._known.keys() - seen.keys():
            if name not in self._unclaimed:
                self._note(name, now_s, f"terminal {name} was closed")  # closing a terminal is a sign as much as opening one
            self._forget(name)
        self._watch(seen)
        self._known, self._looked_at_s = seen, now_s
        self._take_events(self._watcher.read(), now_s)  # what this look has seen must not wake the loop again

    def _nodes(self) -> list[str]:
        """Nodes that may be consoles or serial lines, relative to /dev. Raises OSError when /dev cannot be listed."""
        changed_ns = os.stat(self._prefix).st_mtime_ns
        if changed_ns != self._listed_ns:
            self._consoles = [name for name in os.listdir(self._prefix) if CONSOLE.fullmatch(name) or SERIAL.fullmatch(name)]
            self._listed_ns = changed_ns
        return self._consoles

    def _terminals(self) -> list[str]:
        """Pseudo-terminals, relative to /dev. Raises OSError when they cannot be listed."""
        return [f"pts/{name}" for name in os.listdir(self._prefix + "pts") if name.isdecimal()]

    def _made_ns(self) -> int:
        """When the kernel made the nodes in /dev, by the wall clock of that moment; the time of /dev/full never changes."""
        try:
            return os.stat(self._dev / "full").st_mtime_ns
        except OSError:
            return -2 * MAKING_NS  # no access time is near that

    def _note(self, name: str, at_s: float, sign: str, quality: Quality = Quality.POLLED) -> None:
        if at_s >= self._sign_at_s and name not in self._ignored:
            self._sign_at_s, self._sign, self._quality = at_s, sign, quality

    def _is_excepted(self, name: str, uid: int, now_s: float, *, new: bool) -> bool:
        """Whether a terminal does not count, or not yet: it is new, and may become somebody's who is no person."""
        if uid in self._owners.ignored_uids or name in self._owners.ignored_terminals:
            self._ignored.add(name)
            self._unclaimed.pop(name, None)
            return True
        if new and name.startswith("pts/"):
            self._unclaimed[name] = now_s
            asyncio.get_running_loop().call_later(CLAIM_S + 0.05, self._wake)
        came_s = self._unclaimed.get(name)
        if came_s is not None and 0 <= now_s - came_s < CLAIM_S:
            return True
        if uid != 0:
            self._ignored.discard(name)  # a login that ends gives its terminal back to root first
        if came_s is not None:
            del self._unclaimed[name]
            self._note(name, came_s, f"terminal {name} was opened")
        return name in self._ignored

    def _forget(self, name: str) -> None:
        self._unclaimed.pop(name, None)
        self._ignored.discard(name)

    # --- events

    def _watch(self, terminals: dict[str, int]) -> None:
        if not self._watcher.is_open or (terminals.keys() == self._known.keys() and not self._watch_again):
            return
        self._watch_again = False
        for name in terminals.keys() - self._watched():
            self._watcher.add(self._prefix + name, flags.ACCESS)  # may be refused: then its access time must do

    def _watched(self) -> set[str]:
        return {path.removeprefix(self._prefix) for path in self._watcher.watched}

    def _touched(self, events: list[Event]) -> None:
        now_s = self._clock.now_s()
        if self._take_events(events, now_s):
            self._woke_at_s = now_s
            self._wake()

    def _take_events(self, events: list[Event], now_s: float) -> bool:
        """Note the signs among the events; returns whether the loop should look."""
        wake = False
        for event in events:
            if event.gone:
                self._watch_again = True
                continue
            name = "" if event.overflow else event.path.removeprefix(self._prefix)
            typed = bool(event.mask & flags.ACCESS)
            if name and self._exceptions and (name in self._ignored | self._unclaimed.keys() or name not in self._known):
                wake = wake or not typed  # the look decides, or has decided
                if event.mask & flags.DELETE:  # another terminal may get its name before the look
                    self._known.pop(name, None)
                    self._forget(name)
                continue
            came = "opened" if event.mask & flags.CREATE else "closed"
            how = DROPPED if not name else f"user active on {name}" if typed else f"terminal {name} was {came}"
            self._note(name, now_s, how, Quality.EVENT)
            self._event_at_s = now_s
            wake = wake or not typed or now_s - self._woke_at_s >= QUIET_S
        return wake


@lru_cache
def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return ""


def _names(terminals: Iterable[str]) -> str:
    """The pseudo-terminals by name; the consoles are about sixty, so only their number."""
    ours = sorted(name for name in terminals if name.startswith("pts/"))
    consoles = len(set(terminals)) - len(ours)
    return ", ".join(ours[:8] + ["…"] * (len(ours) > 8) + [f"{consoles} consoles"] * bool(consoles))
