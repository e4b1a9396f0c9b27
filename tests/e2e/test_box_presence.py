"""The installed service in RUNNING on a real systemd, logind and bus: every sign of the person, and every blindness,
stops it, for the right reason in the journal and in `rae-node why`; then the cause goes away, and it works again.

One node for all of them, installed as on a person's machine: for an ordinary user, with the session agent as a user unit
for everybody. Who sits there is somebody else, whose terminals and desktop the service may not look into.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support import desk
from support.displays import missing
from support.installed import UNIT, Installed, boot
from support.nvml_standin import nvml_library
from support.waiting import until

from supervisor.linux.control_socket import DaemonDown, DaemonUnresponsive, ask

__all__ = ["nvml_library"]
pytestmark = [pytest.mark.slow, pytest.mark.box]

DEADLINE_S = 60.0
AGENT = "rae-node-session.service"
FRESH = "systemctl reset-failed dbus.service systemd-logind.service"  # systemd starts nothing too often
Act = Callable[[], object]


class Watched:
    """The installed node at work, and what it says of itself."""

    def __init__(self, node: Installed) -> None:
        self.node, self.box = node, node.box

    def works(self) -> None:
        """Give it a task, and wait until that runs."""

        def runs() -> bool:
            try:
                seen = ask(self.box.root / "run/rae-node", "status")
            except (DaemonDown, DaemonUnresponsive, OSError):
                return False
            return seen["state"] == "RUNNING" and (seen["task"] or {}).get("phase") == "running"

        if not runs():
            self.node.add("sleep")
        until(runs, lambda: f"RUNNING; {self.why()}", DEADLINE_S)
        assert self.node.task_pids()

    def decisions(self) -> list[dict[str, Any]]:
        """The journal's decisions so far."""
        logs = sorted((self.box.root / "opt/rae-node/logs").glob("*.jsonl"))
        lines: list[dict[str, Any]] = []
        for raw in (raw for log in logs for raw in log.read_bytes().splitlines()):
            with suppress(ValueError):  # it is being written
                lines.append(json.loads(raw))
        return [line for line in lines if line["kind"] == "decision"]

    def left_by(self, since: int) -> tuple[str, str]:
        """(row, reasons) of the first way out of RUNNING among the decisions after the first `since`."""
        for entry in self.decisions()[since:]:
            if entry["from"] == "RUNNING" and entry["to"] != "RUNNING":
                return entry["row"], "; ".join(g["reason"] for g in entry["guards"] if g["ok"] is not True)
        return "", ""

    def why(self) -> str:
        """`rae-node why`, as people read it."""
        return self.node.cli("why", "--all").stdout

    def leaves(self, act: Act, row: str, words: str, why: str = "", again: bool = False) -> str:
        """It works; then `act`: it must leave RUNNING by that row for that reason, and `why` must say so, or `why`.
        `again`: what is over in a moment is done again until `why` has been asked in time. What `why` said."""
        self.works()
        before = len(self.decisions())
        act()
        until(lambda: self.left_by(before)[0], lambda: f"out of RUNNING; {self.why()}", DEADLINE_S)
        left = self.left_by(before)
        assert left[0] == row, left
        assert words in left[1], left
        said, wanted = [""], why or words

        def told() -> bool:
            said[0] = self.why()
            if again and wanted not in said[0]:
                act()
            return wanted in said[0]

        until(told, lambda: f"{wanted!r} in {said[0]}", DEADLINE_S)
        until(lambda: not self.node.task_pids(), "the task's end", DEADLINE_S)
        return said[0]


@pytest.fixture(scope="module")
def node(wheels: Path, site: Path, nvml_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A box of its own: buses and loginds are stopped in it."""
    with boot(tmp_path_factory.mktemp("presence")) as box:
        installed = Installed(box, wheels, nvml_library)
        box.sh("touch /dev/nvidia0")
        with installed.without_pip(site):
            installed.install()
        installed.configure(
            {"safety": {"detect_active_user": True, "idle_required_minutes": 0.02, "cooldown_minutes": 0}},
            {"gpu": {"presence": "required"}, "host": {"inhibitor": "required"}},
        )
        installed.start_control()
        box.run("systemctl", "start", UNIT)
        yield Watched(installed)


# --- what happens; each sets its scene, and returns what is done while the task runs. Undone by the stack.


def _session(node: Watched, undo: ExitStack) -> Act:
    return lambda: undo.enter_context(desk.session(node.box, "bert", "wayland"))


def _ssh(node: Watched, undo: ExitStack) -> Act:
    return lambda: undo.enter_context(desk.pty_login(node.box, "bert"))


def _idle_detect(node: Watched, undo: ExitStack) -> Act:
    """BOINC's helper, outside of the service's own folders. It tells whole seconds."""
    segment = "open('/dev/shm/idle_detect_shmem', 'wb')"
    write = f"import struct, time; {segment}.write(struct.pack('qq', *[int(time.time() + 1.5)] * 2))"
    undo.callback(node.box.sh, "rm -f /dev/shm/idle_detect_shmem")
    return lambda: node.box.run(node.box.python, "-c", write)


def _terminal(node: Watched, undo: ExitStack) -> Act:
    def act() -> None:
        argv = ["script", "-qfc", "sleep 600", "/dev/null"]
        process = node.box.popen(*argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        undo.callback(process.wait)
        undo.callback(process.kill)

    return act


def _key_in_x(node: Watched, undo: ExitStack) -> Act:
    _, env = undo.enter_context(desk.session(node.box, "bert", "x11"))
    press = undo.enter_context(desk.xvfb(node.box, "bert", env))
    desk.tell_manager(node.box, "bert", DISPLAY=":7")
    return press


def _key_in_wayland(node: Watched, undo: ExitStack) -> Act:
    _, env = undo.enter_context(desk.session(node.box, "bert", "wayland"))
    return undo.enter_context(desk.sway(node.box, "bert", env))


def _key_on_a_pty(node: Watched, undo: ExitStack) -> Act:
    type_line = undo.enter_context(desk.pty_login(node.box, "bert"))
    # The agent came with the login, which was a sign too; both are over when that is told.
    until(lambda: type_line() or "bert active on pts/" in node.why(), lambda: f"the agent; {node.why()}", DEADLINE_S)
    return type_line


def _bytes_without_a_terminal(node: Watched, undo: ExitStack) -> Act:
    send = undo.enter_context(desk.remote_login(node.box, "bert"))
    until(lambda: "from 127.0.0.7" in node.why(), lambda: f"the login, which is a sign too; {node.why()}", DEADLINE_S)
    return send


def _x_of_no_session(node: Watched, undo: ExitStack) -> Act:
    """A desktop whose login logind has missed."""
    node.box.add_user("bert")
    undo.callback(node.box.run, "script", "-qfc", "true", "/dev/null")  # no event tells of its end: the next look sees it
    return lambda: undo.enter_context(desk.xvfb(node.box, "bert", {"HOME": "/home/bert"}))


def _game(node: Watched, undo: ExitStack) -> Act:
    def act() -> None:
        pid = node.box.run("sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!").stdout.strip()
        undo.callback(node.box.run, "kill", pid)
        gpu(node, undo, f"0.proc={pid}:1073741824:g")()
        node.box.sh(": < /dev/nvidia0")  # every context begins with an open of the node

    return act


def gpu(node: Watched, undo: ExitStack, *lines: str) -> Act:
    """NVML says something else."""

    def act() -> None:
        undo.callback(node.node.gpu)
        node.node.gpu(*lines)

    return act


def _bus_gone(node: Watched, undo: ExitStack) -> Act:
    # 257's logind does not come back to a new bus by itself
    undo.callback(node.box.sh, f"{FRESH}; systemctl start dbus.socket dbus.service; systemctl restart systemd-logind")
    return lambda: node.box.sh(f"{FRESH}; systemctl stop dbus.socket dbus.service")


def _bus_restarts(node: Watched, undo: ExitStack) -> Act:
    undo.callback(node.box.sh, f"{FRESH}; systemctl restart systemd-logind")
    return lambda: node.box.sh(f"{FRESH}; systemctl restart dbus.service")


def _logind_gone(node: Watched, undo: ExitStack) -> Act:
    undo.callback(node.box.sh, f"{FRESH}; systemctl start systemd-logind")
    return lambda: node.box.sh(f"{FRESH}; systemctl stop systemd-logind")


def _logind_restarts(node: Watched, undo: ExitStack) -> Act:
    return lambda: node.box.sh(f"{FRESH}; systemctl restart systemd-logind")


@dataclass(frozen=True)
class Case:
    """`why`: what `rae-node why` says, if that is not `words`: a restart is over before it can be asked. `again`: a touch
    is, too."""

    happen: Callable[[Watched, ExitStack], Act]
    row: str
    words: str
    needs: tuple[str, ...] = ()
    again: bool = False
    why: str = ""


UNTIL_NOW = "logind could not be asked until just now; who left meanwhile is not known"
HANG = [f"delay.{call}=60000" for call in ("nvmlDeviceGetCount", "nvmlDeviceGetUtilizationRates")]
CASES = {
    "a key in X": Case(_key_in_x, "user-returned", "of bert active on seat0 (XSync IDLETIME", ("Xvfb", "xdotool"), True),
    "a key in Wayland": Case(
        _key_in_wayland, "user-returned", "of bert active on seat0 (org_kde_kwin_idle", ("sway", "wtype"), True
    ),
    # Every 8 s the terminal's access time tells of a key too, and may do so before the agent: it says "user".
    "a key on another's pty": Case(_key_on_a_pty, "user-returned", " active on pts/", again=True, why="bert active on pts/"),
    "a new graphical session": Case(_session, "user-returned", "of bert on seat0, idle time unknown"),
    "a login on a terminal, as over SSH": Case(_ssh, "user-returned", "pts/"),
    "bytes over SSH without a terminal": Case(
        _bytes_without_a_terminal, "user-returned", "bert active from 127.0.0.7 (bytes over the connection)", again=True
    ),
    "a display that no session owns": Case(
        _x_of_no_session, "user-returned", "display :7 of ", ("Xvfb",), why="(Xvfb), which no session owns"
    ),
    "a new terminal": Case(_terminal, "user-returned", "pts/", again=True),
    "a touch that only idle_detect saw": Case(_idle_detect, "user-returned", "user active by idle_detect", again=True),
    "a game on the GPU": Case(_game, "user-returned", "GPU used by"),
    "VRAM above its limit": Case(lambda n, undo: gpu(n, undo, "0.mem_used=16106127360"), "gpu-taken", "15 GiB of VRAM"),
    "an NVML call that hangs": Case(lambda n, undo: gpu(n, undo, *HANG), "gpu-taken", "GPU unknown"),
    "a GPU that fell off the bus": Case(lambda n, undo: gpu(n, undo, "0.err=15"), "gpu-taken", "the GPU is lost"),
    "the bus goes": Case(_bus_gone, "user-returned", "user unknown: "),
    "the bus restarts": Case(_bus_restarts, "user-returned", "user unknown: ", why=UNTIL_NOW),
    "logind goes": Case(_logind_gone, "user-returned", "user unknown: logind is not running"),
    "logind restarts": Case(_logind_restarts, "user-returned", "user unknown: logind", why=UNTIL_NOW),
}


@pytest.mark.parametrize("case", CASES)
def test_it_leaves_running_for_the_right_reason_and_comes_back(node: Watched, case: str) -> None:
    known = CASES[case]
    if reason := missing(*known.needs):
        pytest.skip(reason)
    with ExitStack() as undo:
        act = known.happen(node, undo)
        node.leaves(act, known.row, known.words, known.why, known.again)
    node.works()


@pytest.mark.skipif(bool(missing("sway", "swaymsg", "wtype")), reason=missing("sway", "swaymsg", "wtype"))
def test_who_has_no_agent_is_there_until_what_why_says_is_done(node: Watched) -> None:
    """`why` names the command that mends it; done as it stands there, by that person, the node works beside the session,
    and sees its person from then on."""
    box = node.box
    with ExitStack() as undo:
        box.run("systemctl", "--global", "disable", AGENT)
        undo.callback(box.run, "systemctl", "--global", "enable", AGENT)
        opened: list[tuple[str, dict[str, str]]] = []
        said = node.leaves(
            lambda: opened.append(undo.enter_context(desk.session(box, "carla", "wayland"))),
            "user-returned", "idle time unknown: install the session agent",
        )  # fmt: skip
        number, env = opened[0]
        assert f"graphical session {number} of carla on seat0, idle time unknown: install the session agent" in said
        press = undo.enter_context(desk.sway(box, "carla", env))
        mend = re.search(r"install the session agent \((systemctl [^)]+)\)", said)
        assert mend
        box.run(*shlex.split(mend[1]), user="carla", env=env)
        node.leaves(press, "user-returned", f"session {number} of carla active on seat0 (org_kde_kwin_idle", again=True)
        stop = ["systemctl", "--user", "disable", "--now", AGENT]
        node.leaves(lambda: box.run(*stop, user="carla", env=env), "user-returned", "install the session agent")
    node.works()


def test_nothing_fell_over_meanwhile(node: Watched) -> None:
    """Through lost buses and killed desktops: one life, and no traceback of the node or of an agent."""
    assert node.node.show("NRestarts", "ActiveState") == {"NRestarts": "0", "ActiveState": "active"}
    journal = node.box.run("journalctl", "--no-pager", "-o", "cat").stdout
    assert "rae-node" in journal
    at = journal.find("Traceback")
    assert at < 0, journal[at : at + 3000]
