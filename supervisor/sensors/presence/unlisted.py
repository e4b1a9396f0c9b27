"""What a person can use although logind lists no session for it: a display server that was started from a shell or left behind,
a desktop whose login logind has missed, a remote login without PAM (dropbear).

Every X display and Wayland compositor of the machine is a socket that listens. It belongs to a session that logind lists, or a
session agent says how long it has been idle, or it counts as somebody. A remote login that no session owns is seen by the
bytes that come over its connection, as in `session_policy.py`. A login screen is nobody, and neither is what node.yaml
excepts.

The sensor looks when the loop does, at most once in `LOOK_S`, and wakes nothing: the kernel lists its sockets and processes to
every user. Programs in another network namespace, such as tasks and most containers, are not seen.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from states.observation import NEVER
from supervisor.config.schema import PresenceSettings
from supervisor.linux.proc import COMM_LENGTH, Name, name_of
from supervisor.linux.small_files import read_small
from supervisor.linux.sockets import Connection, Listener, unix_listeners
from supervisor.linux.text import one_line
from supervisor.sensors.base import Presence, PresenceSensor, Quality
from supervisor.sensors.presence.agent_reports import AgentReports, Proof, SessionOwners
from supervisor.sensors.presence.connections import Connections, last_heard_s
from supervisor.sensors.presence.logind_session import LOGIN_SCREENS
from supervisor.sensors.presence.session_policy import Session, SessionSign, excepted, is_host

LOOK_S: Final = 3.0  # a look takes 0.3 ms
X_SOCKET: Final = re.compile(r"@?/tmp/\.X11-unix/X([0-9]+)")
WAYLAND_SOCKET: Final = re.compile(r"/run/user/([0-9]+)/(wayland-[^/]+)")
WAYLAND_ELSEWHERE: Final = re.compile(r"(?!/run/user/).*/wayland-[0-9]+")  # where logind made no folder for the user
XWAYLAND: Final = "xwayland"  # how the names of programs begin that show X windows in a Wayland desktop
SSHD: Final = ("sshd", "sshd-session")
DROPBEAR: Final = "dropbear"
LOGGED_IN: Final = re.compile(r"sshd(?:-session)?: ([^\s@\[]+)(?:@\S*)?")  # not before: "sshd: anna [priv]"
SCOPE: Final = re.compile(r"/session-([^/]+)\.scope(?:/|$)")
CGROUPS: Final = "/sys/fs/cgroup"
HIDDEN: Final = "other users' processes are hidden: mount /proc without hidepid"
NO_PROGRAM: Final = Name()
PEOPLE: Final = 1000  # the first uid of a person's; below it are root and the accounts of the system
DYNAMIC: Final = range(61184, 65520)  # uids of users that systemd makes for a service, such as a task
END_IT: Final = "end it, or except it (presence.ignore_users, presence.ignore_commands)"


@dataclass(frozen=True, slots=True)
class Display:
    """A display server's socket: ":7", "wayland-0", or its whole path in an unusual place. `uid`: whose it is. `server`: its
    process, with its `pid`, if it is found."""

    name: str
    uid: int
    server: Name = NO_PROGRAM
    pid: int = 0

    @property
    def is_x(self) -> bool:
        return self.name.startswith(":")


@dataclass(frozen=True, slots=True)
class Login:
    """A remote login without a session, by the process that serves it. `user`: its name, or uid; empty: not known."""

    pid: int
    server: Name
    user: str


class Unlisted(PresenceSensor):
    """The sensor. `sessions`: those that logind lists. `owners`: their users, and who is no person. `own_pids`: the node's
    own task, which may start a display."""

    name = "displays and remote logins"

    def __init__(
        self,
        settings: PresenceSettings,
        sessions: Callable[[], Sequence[Session]],
        reports: AgentReports,
        owners: SessionOwners,
        connections: Connections,
        *,
        own_pids: Callable[[], frozenset[int]] = frozenset,
        listeners: Callable[[], list[Listener]] = unix_listeners,
        proc: Path = Path("/proc"),
    ) -> None:
        self._settings, self._sessions, self._reports, self._owners = settings, sessions, reports, owners
        self._connections, self._own_pids, self._listeners, self._proc = connections, own_pids, listeners, proc
        self._looked_at_s = NEVER
        self._displays: dict[tuple[str, int], Display] = {}
        self._pids: set[int] = set()
        self._servers: set[int] = set()  # processes of servers for remote logins
        self._logins: list[Login] = []
        self._error = ""

    def latest(self, now_s: float) -> Presence:
        if not 0 <= now_s - self._looked_at_s < LOOK_S:
            self._look(now_s)
        if self._error:
            return Presence(self.name, self._looked_at_s, error=self._error, quality=Quality.UNKNOWN)
        seen = [sign for _, sign in self._judge(now_s)]
        present = next((sign for sign in seen if sign.present), None)
        last = max(seen, key=lambda sign: sign.last_sign_at_s, default=SessionSign())
        return Presence(
            self.name, self._looked_at_s, min(last.last_sign_at_s, now_s), last.sign, present.present if present else "",
            quality=present.quality if present else Quality.POLLED,
        )  # fmt: skip

    def details(self) -> dict[str, list[str]]:
        """Each display and each login with what is said of it."""
        now_s = self._looked_at_s
        lines = [sign.present or sign.sign or f"{what}: {sign.note}" for what, sign in self._judge(now_s)]
        return {"displays and remote logins": lines or ["none beside the sessions"]}

    # --- looking

    def _look(self, now_s: float) -> None:
        self._looked_at_s, self._error = now_s, ""
        try:
            self._find_displays(self._listeners())
            self._find_logins()
        except OSError as error:
            self._error = f"displays and remote logins cannot be seen: {error.strerror or 'the kernel does not tell'}"

    def _find_displays(self, listeners: Sequence[Listener]) -> None:
        found: dict[tuple[str, int], Display] = {}
        for path, uid in listeners:
            if x := X_SOCKET.fullmatch(path):
                found.setdefault((f":{x[1]}", uid), Display(f":{x[1]}", uid))
            elif wayland := WAYLAND_SOCKET.fullmatch(path):
                found[wayland[2], int(wayland[1])] = Display(wayland[2], int(wayland[1]))
            elif uid >= PEOPLE and WAYLAND_ELSEWHERE.fullmatch(path):
                found[path, uid] = Display(path, uid)
        if new := [display for key, display in found.items() if key not in self._displays]:
            servers = list(self._x_servers())
            for display in new:
                for pid, uid, argv in servers:
                    finds_its_number = "-displayfd" in argv and not any(part.startswith(":") for part in argv)
                    if uid == display.uid and (display.name in argv or finds_its_number):
                        found[display.name, uid] = Display(display.name, uid, name_of(self._proc, pid), pid)
        self._displays = {key: self._displays.get(key, display) for key, display in found.items()}

    def _x_servers(self) -> Iterator[tuple[int, int, list[str]]]:
        """The X servers among all processes: pid, uid, the command line."""
        for pid in self._all_pids():
            if read_small(f"{self._proc}/{pid}/comm")[:1] in ("X", "x", "n"):  # Xorg, Xvfb, Xwayland, x2goagent, nxagent
                yield pid, self._uid_of(pid), read_small(f"{self._proc}/{pid}/cmdline").split("\0")

    def _find_logins(self) -> None:
        pids = set(self._all_pids())
        if 1 not in pids or not read_small(f"{self._proc}/1/comm"):
            raise OSError(0, HIDDEN)
        for pid in pids - self._pids:
            if read_small(f"{self._proc}/{pid}/comm") in (*SSHD, DROPBEAR):
                self._servers.add(pid)
        self._servers &= pids
        self._pids = pids
        self._logins = [login for pid in sorted(self._servers) if (login := self._login(pid)) is not None]

    def _login(self, pid: int) -> Login | None:
        """The login that a process serves; None: it waits for one, nobody has logged in yet, or logind knows it."""
        server = name_of(self._proc, pid)
        argv = read_small(f"{self._proc}/{pid}/cmdline").split("\0")
        if SCOPE.search(server.cgroup):
            return None
        if server.comm in SSHD:
            title = LOGGED_IN.fullmatch(argv[0].strip())
            return Login(pid, server, one_line(title[1], 32)) if title else None
        parent = self._status(pid, "PPid")
        if server.comm == DROPBEAR and ("-i" in argv or read_small(f"{self._proc}/{parent}/comm") == DROPBEAR):
            children = read_small(f"{self._proc}/{pid}/task/{pid}/children").split()
            uid = self._uid_of(int(children[0])) if children else -1
            return Login(pid, server, self._user(uid) if uid > 0 else "")
        return None

    def _all_pids(self) -> list[int]:
        return [int(name) for name in os.listdir(self._proc) if name.isdecimal()]

    def _uid_of(self, pid: int) -> int:
        return self._status(pid, "Uid")

    def _status(self, pid: int, field: str) -> int:
        for line in read_small(f"{self._proc}/{pid}/status").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1])
        return -1

    # --- judging

    def _judge(self, now_s: float) -> Iterator[tuple[str, SessionSign]]:
        displays = list(self._displays.values())
        known = {(display.name, display.uid) for display in displays} | {(d.name, -1) for d in displays if d.uid == 0}
        displays += [
            Display(name, uid) for name, uid in self._reports.other_displays()
            if (name, uid) not in known and (name, -1) not in known
        ]  # fmt: skip
        for display in displays:
            if (sign := self._display_sign(display, now_s)) is not None:
                yield self._display_name(display), sign
        for login in self._logins:
            yield self._login_name(login), self._login_sign(login, now_s)

    def _display_sign(self, display: Display, now_s: float) -> SessionSign | None:
        """What a display says; None: it is a session's, whose own source speaks for it."""
        if display.uid in self._owners.ignored_uids:
            return SessionSign(note="not counted: presence.ignore_users")
        if setting := excepted(display.server, self._settings):
            return SessionSign(note=f"not counted: {setting}")
        if any(self._shows(session, display) for session in self._sessions()):
            return None
        if 0 < display.uid < PEOPLE or display.uid in DYNAMIC:
            return SessionSign(note="not a person: an account of the system")
        if display.pid and display.pid in self._own_pids():
            return SessionSign(note="not a person: the node's own task")
        proof = self._proof_of(display, now_s)
        if proof is None:
            return None
        what = self._display_name(display)
        if proof.active:
            return SessionSign(present=f"{what} active ({proof.source})")
        if proof.source:
            return SessionSign(last_sign_at_s=proof.idle_since_s, sign=f"{what} used ({proof.source})")
        return SessionSign(present=f"{what}, which no session owns, idle time unknown: {proof.why}", quality=Quality.INFERRED)

    def _shows(self, session: Session, display: Display) -> bool:
        """Whether the session is judged by what is known of this display, without the help of an agent."""
        if session.kind in LOGIN_SCREENS:
            unnamed = display.uid == 0 and session.type == "x11" and not session.display
            return session.uid == display.uid or session.display == display.name or unnamed
        if not (session.counts or session.ignored) or not session.graphical:
            return False
        if session.display == display.name:
            return session.type == "x11" or self._is_xwayland(display)
        if session.uid in self._reports.users or display.uid not in (0, session.uid):
            return False
        # Without an agent, the session's hints speak for its own display, and for the X windows in a Wayland desktop.
        if session.type == "x11":
            return display.is_x and not session.display and sum(d.is_x for d in self._displays.values()) == 1
        return not display.is_x or self._is_xwayland(display)

    @staticmethod
    def _is_xwayland(display: Display) -> bool:
        """A compositor listens for X programs before it starts a server for them."""
        return not display.server.comm or display.server.comm.lower().startswith(XWAYLAND)

    def _proof_of(self, display: Display, now_s: float) -> Proof | None:
        """What an agent says; None: the display is a session's. Root's display may be shown to any person."""
        if display.uid > 0:
            users = [display.uid]
        else:
            users = [uid for uid in self._reports.users if self._owners.name_of(uid) is not None]
        proofs = [self._reports.display_proof(display.name, uid, now_s) for uid in users]
        if None in proofs:
            return None
        known = [proof for proof in proofs if proof is not None]
        best = next((proof for proof in known if proof.source), known[0] if known else Proof())
        has_session = any(session.counts and session.uid == display.uid for session in self._sessions())
        if best.source or display.uid in self._reports.users or has_session:
            return best
        return Proof(why=END_IT)

    def _login_sign(self, login: Login, now_s: float) -> SessionSign:
        if login.user and login.user in self._settings.ignore_users:
            return SessionSign(note="not counted: presence.ignore_users")
        if setting := excepted(login.server, self._settings):
            return SessionSign(note=f"not counted: {setting}")
        what = self._login_name(login)
        incoming = self._connections.incoming(now_s)
        its = [connection for connection in incoming if connection.cgroup == _cgroup_id(login.server.cgroup)] or incoming
        people = [connection for connection in its if not self._is_excepted(connection)]
        if its and not people:
            return SessionSign(note="not counted: presence.ignore_hosts")
        heard_s = last_heard_s(people, now_s)
        if heard_s is None:
            why = "its connection is not found: " + END_IT
            return SessionSign(present=f"{what}, which no session owns, {why}", quality=Quality.INFERRED)
        return SessionSign(last_sign_at_s=heard_s, sign=f"{what} active (bytes over the connection)", quality=Quality.POLLED)

    def _is_excepted(self, connection: Connection) -> bool:
        return is_host(str(connection.peer), self._settings.ignore_hosts)

    def _display_name(self, display: Display) -> str:
        by = f" ({display.server})" if display.server.comm else ""
        return f"display {display.name} of {self._user(display.uid)}{by}"

    def _login_name(self, login: Login) -> str:
        return f"remote login of {login.user or 'somebody'} by {login.server.comm[:COMM_LENGTH]} (pid {login.pid})"

    def _user(self, uid: int) -> str:
        return "root" if uid == 0 else self._owners.name_of(uid) or f"uid {uid}"


def _cgroup_id(path: str) -> int:
    """The kernel's number of a control group; -1: it is not known."""
    try:
        return os.stat(f"{CGROUPS}{path}").st_ino
    except OSError:
        return -1
