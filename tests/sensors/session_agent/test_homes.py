"""Which session a display belongs to: evidence first, then the only one that lacks a display."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisor.sensors.session_agent.homes import Homes, Key, OwnSession

GNOME = OwnSession("2", "wayland", "")
VNC = OwnSession("5", "x11", ":3")
NAMELESS = OwnSession("6", "x11", "")
SSH = OwnSession("7", "tty", "", terminal=True)
SHELL = OwnSession("8", "unspecified", "")
WAYLAND, X0, X3, X7 = ("wayland", "/run/user/1000/wayland-0"), ("x11", ":0"), ("x11", ":3"), ("x11", ":7")
MANAGER = "/user.slice/user-1000.slice/user@1000.service/session.slice/org.gnome.Shell@wayland.service"


def scope(number: str) -> str:
    return f"/user.slice/user-1000.slice/session-{number}.scope"


@pytest.mark.parametrize(
    ("sessions", "displays", "homes"),
    [
        pytest.param([GNOME], {WAYLAND: (MANAGER, "")}, {WAYLAND: "2"}, id="the only one"),
        pytest.param([GNOME, VNC], {WAYLAND: (MANAGER, ""), X3: ("/", "")}, {WAYLAND: "2", X3: "5"}, id="a VNC beside it"),
        pytest.param([GNOME, NAMELESS], {WAYLAND: (MANAGER, ""), X0: ("/", "")}, {WAYLAND: "2", X0: "6"}, id="by their kinds"),
        pytest.param([GNOME, SHELL], {WAYLAND: (scope("8"), "")}, {WAYLAND: "8"}, id="its control group"),
        pytest.param([GNOME, SSH], {WAYLAND: (MANAGER, "7")}, {WAYLAND: "7"}, id="its environment"),
        pytest.param([GNOME], {WAYLAND: (MANAGER, "4")}, {WAYLAND: "2"}, id="the environment of another login"),
        pytest.param([GNOME], {WAYLAND: (scope("4"), "")}, {WAYLAND: ""}, id="left behind by a session that has closed"),
        pytest.param([SSH], {X7: (scope("7"), "")}, {X7: "7"}, id="vncserver from SSH"),
        pytest.param([SSH], {X7: ("/", "")}, {X7: ""}, id="SSH needs no display"),
        pytest.param([SHELL], {X7: ("/", "")}, {X7: "8"}, id="a session without anything else"),
        pytest.param([SHELL, NAMELESS], {X7: ("/", "")}, {X7: "6"}, id="a graphical one first"),
        pytest.param([NAMELESS, OwnSession("9", "x11", "")], {X7: ("/", "")}, {X7: ""}, id="two may be it"),
        pytest.param([GNOME], {X7: ("/", "")}, {X7: ""}, id="an X server is no Wayland session's"),
        pytest.param([OwnSession("2", "wayland", ":7")], {X7: ("/", "")}, {X7: ""}, id="whatever Display says"),
        pytest.param([], {X7: ("/", "")}, {X7: ""}, id="no session"),
    ],
)
def test_homes(
    tmp_path: Path, sessions: list[OwnSession], displays: dict[Key, tuple[str, str]], homes: dict[Key, str]
) -> None:
    for pid, (cgroup, number) in enumerate(displays.values(), 10):
        folder = tmp_path / str(pid)
        folder.mkdir()
        (folder / "cgroup").write_text(f"0::{cgroup}\n")
        (folder / "environ").write_text(f"HOME=/\0XDG_SESSION_ID={number}\0")
    known = Homes({own.id: own for own in sessions}, tmp_path)
    assert known.of({key: pid for pid, key in enumerate(displays, 10)}) == homes


def test_a_process_that_hides_its_environment_says_nothing(tmp_path: Path) -> None:
    """KWin has a file capability."""
    known = Homes({"2": GNOME}, tmp_path)
    assert known.of_process(77) is None
    assert known.of_process(0) is None
    assert known.of({WAYLAND: 77}) == {WAYLAND: "2"}
