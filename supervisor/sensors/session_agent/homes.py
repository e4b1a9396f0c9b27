"""Which of a user's sessions a display belongs to.

Evidence of its own comes first: logind names the display with the session, or the server runs in the session's control group
or has its number in the environment. A service of the user's manager (GNOME's shell) may have neither. Then it belongs to the
only session that lacks such a display, if there is just one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from supervisor.linux.small_files import read_small
from supervisor.sensors.presence.logind_session import TERMINAL_TYPES

SCOPE: Final = re.compile(r"/session-([^/]+)\.scope")
FOREIGN: Final = {"wayland": "x11", "x11": "wayland"}  # a display of one kind is not what a session of the other kind shows
Key = tuple[str, str]  # "wayland" and the socket's path, or "x11" and the display


@dataclass(frozen=True, slots=True)
class OwnSession:
    """A session of this user, by logind. `terminal`: it has one, or is a remote login, so it needs no display."""

    id: str
    type: str
    display: str
    terminal: bool = False

    @property
    def graphical(self) -> bool:
        return self.type not in TERMINAL_TYPES


class Homes:
    """What is known of the sessions and the processes, for one look at them: a process is read once."""

    def __init__(self, sessions: Mapping[str, OwnSession], proc: Path = Path("/proc")) -> None:
        self._sessions, self._proc = sessions, proc
        self._found: dict[int, str | None] = {}

    def of(self, displays: Mapping[Key, int]) -> dict[Key, str]:
        """The session of each display, by its server's process (0: not known); empty: none of the user's."""
        known = {key: self._named(key) or self.of_process(pid) for key, pid in displays.items()}
        taken = {home for home in known.values() if home}
        return {key: self.only(key[0], taken) if home is None else home for key, home in known.items()}

    def of_process(self, pid: int) -> str | None:
        """The session in which a process runs; empty: in one that is not listed; None: nothing tells."""
        if pid not in self._found:
            self._found[pid] = self._evidence(pid) if pid else None
        return self._found[pid]

    def only(self, kind: str, taken: Iterable[str] = ()) -> str:
        """The only session that lacks a display of this kind; empty: there is none, or more than one."""
        free = [own for own in self._sessions.values() if own.id not in taken]
        graphical = [own.id for own in free if own.graphical and own.type != FOREIGN.get(kind)]
        found = graphical or [own.id for own in free if not own.graphical and not own.terminal]
        return found[0] if len(found) == 1 else ""

    def _named(self, key: Key) -> str | None:
        for own in self._sessions.values():
            if key == ("x11", own.display) and own.type != "wayland":
                return own.id
        return None

    def _evidence(self, pid: int) -> str | None:
        if scope := SCOPE.search(read_small(f"{self._proc}/{pid}/cgroup")):
            return scope[1] if scope[1] in self._sessions else ""
        variables = read_small(f"{self._proc}/{pid}/environ").split("\0")
        number = next((value.partition("=")[2] for value in variables if value.startswith("XDG_SESSION_ID=")), "")
        return number if number in self._sessions else None
