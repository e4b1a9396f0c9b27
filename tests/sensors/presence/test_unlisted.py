"""Displays and remote logins that no session of logind owns: each is seen by a source, is nobody, or counts as somebody."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.clock import ManualClock
from support.displays import Xvfb, missing
from support.login1 import session

from states.observation import NEVER
from supervisor.config.schema import PresenceSettings
from supervisor.linux.proc import Name
from supervisor.linux.sockets import Connection, Listener, Tcp
from supervisor.sensors.base import Presence
from supervisor.sensors.presence.agent_reports import AgentReports, SessionOwners
from supervisor.sensors.presence.connections import Connections
from supervisor.sensors.presence.session_policy import Session, exception
from supervisor.sensors.presence.unlisted import HIDDEN, LOOK_S, Unlisted

ANNA, BERT, GDM, TASK = 1000, 1001, 120, 61500
SOURCE = "XSync IDLETIME of display :7"
NONE = {"Type": "tty", "TTY": "pts/3"}
X7, X0, WAYLAND = "/tmp/.X11-unix/X7", "@/tmp/.X11-unix/X0", "/run/user/1000/wayland-0"
UNOWNED = "display {} of {}, which no session owns, idle time unknown: "


class World:
    """A machine: what logind and the agents say, its sockets, its processes."""

    def __init__(self, folder: Path, *sessions: dict[str, Any], **settings: Any) -> None:
        self.clock, self.proc, self.sockets = ManualClock(), folder / "proc", list[Listener]()
        self.tcp = Tcp((), frozenset({22, 80, 2222}))
        self.own: frozenset[int] = frozenset()
        settings_ = PresenceSettings(**settings)
        listed = [Session.read("/p", session(**changes), 1000.0, 0.0) for changes in sessions]
        self.sessions = [replace(seen, ignored=exception(seen, Name(), [], settings_)) for seen in listed]
        self.owners = SessionOwners({seen.id: (seen.uid, seen.user) for seen in listed})
        self.owners.ignored_uids = {seen.uid for seen in listed if seen.user in settings_.ignore_users}
        self.reports = AgentReports(self.clock, settings_, self.owners, 60.0)
        self.sensor = Unlisted(
            settings_, lambda: self.sessions, self.reports, self.owners, Connections(lambda: self.tcp),
            own_pids=lambda: self.own, listeners=lambda: list(self.sockets), proc=self.proc,
        )  # fmt: skip
        self.process(1, "systemd")

    def process(self, pid: int, comm: str, *argv: str, uid: int = 0, parent: int = 1, cgroup: str = "/init.scope") -> None:
        folder = self.proc / str(pid)
        (folder / f"task/{pid}").mkdir(parents=True)
        (folder / "comm").write_text(f"{comm}\n")
        (folder / "cmdline").write_text("\0".join(argv or (comm,)) + "\0")
        (folder / "status").write_text(f"Name:\t{comm}\nPPid:\t{parent}\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n")
        (folder / "cgroup").write_text(f"0::{cgroup}\n")
        (folder / f"task/{pid}/children").write_text("")
        if (above := self.proc / f"{parent}/task/{parent}/children").exists():
            above.write_text(f"{above.read_text()}{pid} ")

    def hear(self, uid: int, *entries: dict[str, Any], others: tuple[dict[str, Any], ...] = ()) -> None:
        form = {"source": SOURCE, "idle": 42.5, "inhibitors": [], "why": ""}
        self.reports.receive(uid, {"sessions": [form | e for e in entries], "others": [form | e for e in others]})

    @property
    def now(self) -> Presence:
        return self.sensor.latest(self.clock.now_s())


Change = dict[str, Any]
ANNAS = {"Id": "3", "Name": "anna", "User": (ANNA, "/u")}
GREETER = {"Id": "c1", "Name": "gdm", "User": (GDM, "/u"), "Class": "greeter"}


@pytest.mark.parametrize(
    ("sockets", "sessions", "settings", "present"),
    [
        pytest.param([], [], {}, "", id="no display"),
        pytest.param([(X7, ANNA)], [], {}, UNOWNED.format(":7", "uid 1000") + "end it, or", id="logind missed its login"),
        pytest.param([(WAYLAND, ANNA)], [], {}, UNOWNED.format("wayland-0", "uid 1000"), id="a compositor without a session"),
        pytest.param([("/tmp/rt/wayland-1", ANNA)], [], {}, UNOWNED.format("/tmp/rt/wayland-1", "uid 1000"), id="nor a folder"),
        pytest.param([(X7, 0)], [], {}, UNOWNED.format(":7", "root"), id="root's server without a session"),
        pytest.param([(X7, ANNA)], [{**ANNAS, **NONE}], {}, "display :7 of anna, which no session owns", id="VNC from a shell"),
        pytest.param([(X7, ANNA)], [{**ANNAS, **NONE}], {}, "install the session agent", id="what to do: the agent"),
        pytest.param([(X7, BERT)], [ANNAS], {}, UNOWNED.format(":7", "uid 1001"), id="somebody else's"),
        pytest.param([(X7, ANNA)], [{**ANNAS, "State": "closing", **NONE}], {}, "display :7", id="left behind by a session"),
        pytest.param([(X0, 0)], [{**ANNAS, "Type": "x11", "Display": ":0"}], {}, "", id="its session is judged: X11"),
        pytest.param([(X0, ANNA)], [{**ANNAS, "Type": "x11"}], {}, "", id="its session is judged, without a Display"),
        pytest.param([(X0, ANNA), (X7, ANNA)], [{**ANNAS, "Type": "x11"}], {}, "display :", id="one is not the session's"),
        pytest.param([(WAYLAND, ANNA), (X0, ANNA)], [ANNAS], {}, "", id="its session is judged: Wayland with XWayland"),
        pytest.param([(WAYLAND, ANNA), (X0, ANNA)], [{**ANNAS, **NONE}], {}, "wayland-0 of anna", id="sway from a console"),
        pytest.param([("/run/user/120/wayland-0", GDM), (X0, GDM)], [GREETER], {}, "", id="a login screen"),
        pytest.param([(X0, 0)], [{**GREETER, "Type": "x11", "Display": ":0"}], {}, "", id="a login screen by root's server"),
        pytest.param([(X0, 0)], [{**GREETER, "Type": "x11"}], {}, "", id="a login screen whose display is not told"),
        pytest.param([(X7, GDM)], [], {}, "", id="an account of the system"),
        pytest.param([(X7, TASK)], [], {}, "", id="a task's user"),
        pytest.param([(X7, ANNA)], [{**ANNAS, **NONE}], {"ignore_users": ["anna"]}, "", id="excepted user"),
        pytest.param([(X7, ANNA)], [], {"ignore_users": ["anna"]}, "display :7", id="excepted by a name that nobody knows"),
        pytest.param([("/tmp/.ICE-unix/7", ANNA), ("/run/user/1000/.flatpak/wayland-1", ANNA)], [], {}, "", id="no displays"),
    ],
)
def test_each_display_is_accounted_for(
    tmp_path: Path, sockets: list[tuple[str, int]], sessions: list[Change], settings: Change, present: str
) -> None:
    world = World(tmp_path, *sessions, **settings)
    world.sockets = [Listener(*one) for one in sockets]
    assert bool(world.now.present) == bool(present)
    assert present in world.now.present
    assert world.now.error == ""
    assert world.now.sign == ""


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        ({}, True),
        ({"ignore_commands": ["Xvfb"]}, False),
        ({"ignore_units": ["ci-*.service"]}, False),
        ({"ignore_commands": ["Xorg"], "ignore_units": ["other.service"]}, True),
    ],
)
def test_a_server_is_known_by_its_display_and_may_be_excepted(tmp_path: Path, settings: Change, counts: bool) -> None:
    world = World(tmp_path, **settings)
    world.process(70, "Xvfb", "Xvfb", ":7", "-screen", "0", uid=ANNA, cgroup="/system.slice/ci-7.service")
    world.process(71, "Xvfb", "Xvfb", ":8", uid=ANNA)
    world.process(72, "Xorg", "Xorg", ":7", uid=BERT)
    world.sockets = [Listener(X7, ANNA)]
    assert ("display :7 of uid 1000 (Xvfb), which no session owns" in world.now.present) == counts
    world.own = frozenset({70})
    assert world.now.present == "", "the node's own task has started it"


def test_an_agent_speaks_for_the_displays_of_its_user(tmp_path: Path) -> None:
    world = World(tmp_path, {**ANNAS, **NONE})
    world.sockets = [Listener(X7, ANNA), Listener(X0, ANNA), Listener(WAYLAND, ANNA)]
    seven = {"id": ":7", "displays": [":7"]}
    world.hear(ANNA, {"id": "3", "displays": ["wayland-0", ":0"]}, others=(seven,))
    assert world.now == Presence(
        world.sensor.name, world.clock.now, 957.5, f"display :7 of anna used ({SOURCE})", quality=world.now.quality
    )
    world.hear(ANNA, {"id": "3", "displays": ["wayland-0", ":0"]}, others=(seven | {"idle": "active"},))
    assert world.now.present == f"display :7 of anna active ({SOURCE})"
    world.hear(ANNA, {"id": "3", "displays": ["wayland-0", ":0"]}, others=(seven | {"source": "", "why": "it hangs"},))
    assert "idle time unknown: it hangs" in world.now.present
    world.hear(ANNA, {"id": "3", "displays": ["wayland-0"]}, others=(seven,))
    assert "display :0 of anna" in world.now.present
    assert "the session agent sees nothing of it (systemctl --user restart" in world.now.present
    world.hear(ANNA, {"id": "3", "displays": ["wayland-0", ":0"]}, others=(seven, {"id": ":9", "idle": "active"}))
    assert "display :9 of anna active" in world.now.present, "the kernel does not list it, and the agent sees it"


def test_nobody_speaks_for_the_display_of_another(tmp_path: Path) -> None:
    world = World(tmp_path, {**ANNAS, **NONE}, {**ANNAS, **NONE, "Id": "5", "Name": "bert", "User": (BERT, "/u")})
    world.sockets = [Listener(X7, ANNA)]
    world.hear(BERT, {"id": "5", "displays": [":7"]}, others=({"id": ":7", "displays": [":7"]},))
    assert UNOWNED.format(":7", "anna") in world.now.present
    world.sockets = [Listener(X7, 0)]  # root's server, which may show anybody's desktop
    assert world.now.present
    world.clock.now += LOOK_S
    assert world.now.present == ""


PEER = ip_address("10.0.0.5")
SSHD = "/system.slice/ssh.service"


@pytest.mark.parametrize(
    ("processes", "listed", "login"),
    [
        pytest.param([("dropbear", "-F"), ("dropbear", "-F")], "", "of somebody by dropbear (pid 11)", id="dropbear"),
        pytest.param([("dropbear", "-F")], "", "", id="dropbear waits"),
        pytest.param([("systemd",), ("dropbear", "-i")], "", "by dropbear (pid 11)", id="dropbear by a socket unit"),
        pytest.param([("sshd",), ("sshd", "sshd: anna@notty ")], "", "of anna by sshd (pid 11)", id="sshd without PAM"),
        pytest.param([("sshd",), ("sshd-session", "sshd-session: anna")], "", "of anna by sshd-session", id="ssh -N"),
        pytest.param([("sshd",), ("sshd", "sshd: anna@notty")], "3", "", id="a session of logind's owns it"),
        pytest.param([("sshd",), ("sshd", "sshd: anna [priv]")], "", "", id="not logged in yet"),
        pytest.param([("sshd",), ("sshd", "sshd: [accepted]")], "", "", id="a scanner at the door"),
        pytest.param([("sshd", "sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups")], "", "", id="sshd waits"),
        pytest.param([("bash",), ("python3", "sshd: anna@notty")], "", "", id="only looks like it"),
    ],
)
def test_remote_logins_without_a_session(tmp_path: Path, processes: list[tuple[str, ...]], listed: str, login: str) -> None:
    """R9: bytes that come over the connection are the person's; a login whose connection is not found is there."""
    world = World(tmp_path, *([{**ANNAS, **NONE}] if listed else []))
    for number, (comm, *argv) in enumerate(processes):
        scope = "/user.slice/user-1000.slice/session-3.scope"
        line = argv if argv and argv[0].startswith("sshd") else [comm, *argv]
        world.process(10 + number, comm, *line, parent=9 + number, cgroup=scope if number and listed else SSHD)
    assert bool(world.now.present) == bool(login)
    assert login in world.now.present
    world.tcp = Tcp((Connection(2222, PEER, 30.0, 0),), frozenset({2222}))
    world.clock.now += LOOK_S
    assert world.now.present == ""
    assert world.now.last_sign_at_s == (world.clock.now - 30.0 if login else NEVER)
    assert not login or (login in world.now.sign and "bytes over the connection" in world.now.sign)


def test_a_dropbear_login_is_named_by_its_shell_and_may_be_excepted(tmp_path: Path) -> None:
    for settings in ({}, {"ignore_users": ["anna"]}, {"ignore_commands": ["dropbear"]}, {"ignore_hosts": ["10.0.0.*"]}):
        folder = tmp_path / "-".join(settings or ["none"])
        world = World(folder, {**ANNAS, **NONE}, **settings)
        world.process(10, "dropbear", "dropbear", "-F")
        world.process(11, "dropbear", "dropbear", "-F", parent=10)
        world.process(12, "bash", "-bash", uid=ANNA, parent=11)
        world.tcp = Tcp((Connection(2222, PEER, 0.5, 0),), frozenset({2222}))
        login = "remote login of anna by dropbear (pid 11)"
        assert world.now.sign == ("" if settings else f"{login} active (bytes over the connection)")
        (line,) = world.sensor.details()["displays and remote logins"]
        assert line.startswith(login)
        assert (f"not counted: presence.{next(iter(settings), '-')}" in line) == bool(settings)


def test_hidden_processes_and_a_silent_kernel_are_unknown(tmp_path: Path) -> None:
    world = World(tmp_path)
    (world.proc / "1/comm").unlink()
    assert world.now.error == f"displays and remote logins cannot be seen: {HIDDEN}"

    def fail() -> list[Listener]:
        raise OSError(2, "the kernel does not list its sockets")

    world.sensor._listeners = fail
    world.clock.now += LOOK_S
    assert world.now.error.endswith("the kernel does not list its sockets")


DISPLAYS = st.lists(st.tuples(st.integers(0, 5), st.sampled_from([ANNA, BERT])), unique=True)


@given(DISPLAYS, st.sets(st.integers(0, 5)), st.sampled_from(["active", 42.5, ""]))
def test_no_display_of_a_person_is_passed_over(listening: list[tuple[int, int]], seen: set[int], idle: str | float) -> None:
    """Each is proven idle by its user's agent, or somebody is there."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        world.sockets = [Listener(f"/tmp/.X11-unix/X{number}", uid) for number, uid in listening]
        said = {"source": SOURCE if idle else "", "idle": idle or "active"}
        world.hear(ANNA, others=tuple({"id": f":{number}", **said} for number in sorted(seen)))
        unproven = [(number, uid) for number, uid in listening if uid != ANNA or number not in seen]
        assert bool(world.now.present) == (bool(unproven) or (bool(seen) and idle != 42.5))


@pytest.mark.skipif(bool(missing("Xvfb")), reason=missing("Xvfb"))
def test_a_real_x_server_is_found(tmp_path: Path) -> None:
    """By the kernel's own list, and by its process, which chose its number itself."""
    world = World(tmp_path)
    with Xvfb() as x:
        sensor = Unlisted(PresenceSettings(), list, world.reports, world.owners, Connections(lambda: world.tcp))
        found = sensor.latest(world.clock.now)
        lines = sensor.details()["displays and remote logins"]
        assert found.present.startswith("display :"), found
        whose = "root" if os.getuid() == 0 else f"uid {os.getuid()}"
        assert any(line.startswith(f"display {x.name} of {whose} (Xvfb), which no session owns") for line in lines), lines
