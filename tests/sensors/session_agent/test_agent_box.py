"""The session agent as it is installed: a user unit under a real user manager, a real logind, a real compositor."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from support.desk import leave, pty_login, session, sway, xvfb
from support.displays import missing
from support.sysbox import REPO, SysBox
from support.waiting import eventually, until

from supervisor.config.schema import PresenceSettings
from supervisor.linux.clock import SystemClock
from supervisor.linux.control_socket import ControlServer
from supervisor.linux.dbus import SystemBus
from supervisor.sensors.base import Presence
from supervisor.sensors.presence.agent_reports import INSTALL_AGENT, AgentReports, SessionOwners
from supervisor.sensors.presence.logind import Sessions

CLOCK = SystemClock()
UNIT = "rae-node-session.service"
INSTALLED = "/opt/rae-node/venv/bin/python"


@pytest.fixture(scope="module")
def _installed(box: SysBox) -> Iterator[None]:
    """The unit, switched on for everybody, as the installer does it; only its interpreter and the socket lie elsewhere."""
    text = (REPO / "deploy" / UNIT).read_text()
    assert INSTALLED in text
    (box.root / "etc/systemd/user" / UNIT).write_text(text.replace(INSTALLED, box.python))
    drop_in = box.root / f"etc/systemd/user/{UNIT}.d/test.conf"
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nEnvironment=RAE_NODE_SOCKET=/mnt/share/node/control.sock\n")
    box.run("systemctl", "--global", "enable", UNIT)
    leave(box, str(box.add_user("anna")))  # a manager that an earlier test has left does not know of it
    yield
    box.run("systemctl", "--global", "disable", UNIT)
    for path in (drop_in, box.root / "etc/systemd/user" / UNIT):
        path.unlink()


class Node:
    """The daemon's sensors and its socket, outside the box."""

    def __init__(self, box: SysBox, max_age_s: float) -> None:
        settings = PresenceSettings()
        self.bus = SystemBus(box.bus_address, backoff_s=(0.01, 0.1))
        self.agent_reports = AgentReports(CLOCK, settings, owners := SessionOwners(), max_age_s)
        self.sessions = Sessions(
            self.bus, CLOCK, settings, owners, max_age_s=max_age_s, delay_locks=False, start_is_sign=False,
            proof=self.agent_reports.proof,
        )
        path: Path = box.share / "node" / "control.sock"
        self.server = ControlServer(path, {}, frozenset(), {"presence": self.agent_reports.connect})

    @property
    def now(self) -> Presence:
        return self.sessions.latest(CLOCK.now_s())

    async def until(self, condition: Callable[[Presence], bool], what: str) -> None:
        await eventually(lambda: condition(self.now), lambda: f"{what}; {self.now}; {self.agent_reports.details()}")


def beside(box: SysBox, story: Callable[[Node], Awaitable[None]], max_age_s: float = 60.0) -> None:
    async def run() -> None:
        node = Node(box, max_age_s)
        await node.server.start()
        await node.sessions.start(lambda: None)
        await node.agent_reports.start(lambda: None)
        try:
            await asyncio.wait_for(story(node), 180)
        finally:
            await node.server.stop()
            await node.sessions.stop()
            await node.bus.stop()

    asyncio.run(run())


@pytest.mark.skipif(bool(missing("sway", "swaymsg", "wtype")), reason=missing("sway", "swaymsg", "wtype"))
@pytest.mark.usefixtures("_installed")
def test_a_wayland_login_is_watched_by_itself(box: SysBox) -> None:
    async def story(node: Node) -> None:
        with session(box, "anna", "wayland") as (number, env):
            await node.until(lambda p: "idle time unknown: the session agent finds no display" in p.present, "the agent")
            with sway(box, "anna", env) as press:
                await node.until(lambda p: not p.present and "org_kde_kwin_idle on wayland-1" in p.sign, "away")
                await asyncio.to_thread(press)
                await node.until(lambda p: f"session {number} of anna active on seat0 (org_kde" in p.present, "a key")
                await node.until(lambda p: not p.present, "away again")
                box.run("systemctl", "--user", "-M", "anna@", "kill", "-sKILL", UNIT)
                await node.until(lambda p: p.present.endswith(f"idle time unknown: {INSTALL_AGENT}"), "the agent killed")
                await node.until(lambda p: not p.present, "and started again by its manager")
                assert box.show(UNIT, "NRestarts", user="anna")["NRestarts"] == "1"
                security = box.run("systemd-analyze", "--user", "-M", "anna@", "verify", UNIT, check=False)
                assert "Unknown" not in security.stderr
            await node.until(lambda p: "idle time unknown" in p.present, "the compositor's end")
            box.run("systemctl", "--user", "-M", "anna@", "stop", UNIT)
            await node.until(lambda p: p.present.endswith(f"idle time unknown: {INSTALL_AGENT}"), "the agent stopped")

    beside(box, story)


@pytest.mark.skipif(bool(missing("sway", "swaymsg")), reason=missing("sway", "swaymsg"))
@pytest.mark.usefixtures("_installed")
def test_a_hung_compositor_is_no_proof(box: SysBox) -> None:
    async def story(node: Node) -> None:
        with session(box, "anna", "wayland") as (_, env), sway(box, "anna", env):
            await node.until(lambda p: not p.present and "org_kde" in p.sign, "away")
            box.run("systemctl", "kill", "-sSTOP", "sway")
            await node.until(lambda p: "does not answer" in p.present, "unknown")
            box.run("systemctl", "kill", "-sCONT", "sway")
            await node.until(lambda p: not p.present, "away again")

    beside(box, story, max_age_s=3.0)


@pytest.mark.skipif(bool(missing("Xvfb", "xdotool")), reason=missing("Xvfb", "xdotool"))
@pytest.mark.usefixtures("_installed")
def test_an_x_display_is_seen_whatever_logind_calls_its_session(box: SysBox) -> None:
    """startx, VNC from a shell, X2Go: logind knows neither the type nor the display. The X server's socket is the user's."""

    async def story(node: Node) -> None:
        with session(box, "anna", "unspecified", "") as (number, env):
            missing = "without a terminal, and without a display"
            await node.until(lambda p: missing in p.present, "no display")
            with xvfb(box, "anna", env) as press:
                await node.until(lambda p: not p.present and "XSync IDLETIME of display :7" in p.sign, "away")
                await asyncio.to_thread(press)
                await node.until(lambda p: f"session {number} of anna active " in p.present and "(XSync" in p.present, "a key")
                await node.until(lambda p: not p.present, "away again")
                box.run("pkill", "-STOP", "-x", "Xvfb")
                await node.until(lambda p: "idle time unknown: display :7 does not answer" in p.present, "it hangs")
                box.run("pkill", "-CONT", "-x", "Xvfb")
                await node.until(lambda p: not p.present, "away again")
            await node.until(lambda p: missing in p.present or "idle time unknown: display :7" in p.present, "its end")

    beside(box, story, max_age_s=3.0)


@pytest.mark.usefixtures("_installed")
def test_typing_over_ssh_is_seen_at_once(box: SysBox) -> None:
    """A login on a pty of its own, as sshd makes it; the agent comes with it."""

    async def story(node: Node) -> None:
        with pty_login(box, "anna") as type_line:

            def typed(since_s: float) -> bool:
                now = node.agent_reports.latest(CLOCK.now_s())
                return now.sign.startswith("anna active on pts/") and now.last_sign_at_s >= since_s - 0.01

            # The shell has begun to read, and the agent to watch.
            await eventually(lambda: type_line() or typed(0.0), lambda: f"a keystroke; {node.agent_reports.details()}")
            for _ in range(2):
                await asyncio.sleep(1.1)  # reported once a second at most
                begun_s = CLOCK.now_s()
                type_line()
                await eventually(lambda begun_s=begun_s: typed(begun_s), f"a keystroke; {node.agent_reports.details()}", 20)
        box.run("systemctl", "stop", "user-*.slice")  # or logind keeps the user's manager for ten seconds
        await eventually(lambda: not node.agent_reports._reports, "the agent's end with the last session", 30)

    beside(box, story)
    until(lambda: not box.sessions(), "no session")
