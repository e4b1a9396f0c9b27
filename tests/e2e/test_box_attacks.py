"""The whole table of tests/support/attacks.py from inside a task of the installed node, on a real systemd (R2, R4, R6): each
attack is refused or harmless, and nothing of it is left. One task tries them all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest
from support import attacks
from support.installed import UNIT, USER, Installed, installed
from support.nvml_standin import nvml_library
from support.waiting import until

from supervisor.tasks.process import landlock

__all__ = ["nvml_library"]
pytestmark = [pytest.mark.slow, pytest.mark.box]
SECRET = f"sentinel-{token_hex(8)}"  # of this run: the tests themselves may lie where the task can read
PROGRAM = "/opt/attacks.py"
X11_ATTACK = "looks at the screen through the abstract socket of the X server"
X11 = "/tmp/.X11-unix/X0"
# Another program of the person: sockets as those of screen, tmux and the X server, a key in her keyrings.
BYSTANDER = f"""
import ctypes, os, socket, time
kept = []
for path in ("/run/screen/S-{USER}/1.pts", f"/tmp/tmux-{{os.getuid()}}/default", "\\0{X11}"):
    if path[0] == "/":
        os.makedirs(os.path.dirname(path), exist_ok=True)
    made = socket.socket(socket.AF_UNIX)
    made.bind(path)
    made.listen()
    kept.append(made)
libc = ctypes.CDLL(None)
keys = [libc.syscall({attacks._ADD_KEY}, b"user", b"rae-attack", b"{SECRET}", {len(SECRET)}, ring) for ring in (-3, -4)]
with open("/home/{USER}/keys.new", "w") as file:
    print(*keys, file=file)
os.rename("/home/{USER}/keys.new", "/home/{USER}/keys")
time.sleep(1000)
"""


@dataclass
class Scene:
    """The node, what came of the attacks, and the node's files before them."""

    node: Installed
    found: dict[str, dict[str, dict[str, str]]]  # by the task's type
    files: str


def settings_of(node: Installed, pid: int) -> str:
    """What an attack on another process would change. The node itself sets the time of its real-time priority."""
    limits = f"grep -v 'realtime timeout' /proc/{pid}/limits"
    return node.box.sh(f"{limits}; grep Cpus_allowed: /proc/{pid}/status; ps -o ni=,cls= -p {pid}")


def files_of(node: Installed) -> str:
    """The node's files and sockets, with kind, mode and owner; the note of a task in flight comes and goes."""
    folders = "/opt/rae-node/agent /var/lib/rae-node /run/rae-node /run/rae-task*.sock"
    return node.box.sh(f"find {folders} -not -name '*in-flight*' -printf '%p %y %m %u\\n' | sort")


def came_of(node: Installed, kind: str, world: dict[str, Any]) -> Any:
    """The result of one task."""
    task = node.add(kind, world)
    until(lambda: node.task(task)["status"] in ("FAILED", "COMPLETED"), lambda: str(node.task(task)), 180)
    assert node.task(task)["status"] == "COMPLETED", node.task(task)
    return node.task(task)["result"]


@pytest.fixture(scope="module")
def scene(wheels: Path, site: Path, nvml_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """The installed node, its person's programs, and one task that tries everything."""
    with installed(tmp_path_factory.mktemp("attacks"), wheels, site, nvml_library) as node:
        box = node.box
        node.put(PROGRAM, Path(attacks.__file__).read_text())
        secrets = ["/opt/rae-node/agent/key", f"/home/{USER}/diary", "/var/lib/rae-node/secret", "/opt/rae-node/logs/secret"]
        box.sh("mkdir -p /var/lib/rae-node; mkdir -m 777 -p /run/screen")
        for path in secrets:
            box.sh(f"echo {SECRET} > {path}; chown {USER} {path}; chmod 600 {path}")
        person = ["systemd-run", "-q", "--unit=bystander", f"-pUser={USER}", "-pKeyringMode=shared", f"-ETOKEN={SECRET}"]
        box.run(*person, "/usr/bin/python3", "-c", BYSTANDER)
        argv = ["/usr/bin/python3", "-I", "-S", PROGRAM]
        types = {
            kind: {"argv": [*argv], "sandbox_network": kind == "network", "on_preempt": "fail"} for kind in ("alone", "network")
        }
        node.configure(node={"tasks": types, "work": {"run_minutes": 30}, "control": {"token": {"file": secrets[0]}}})
        node.start_control()
        assert node.cli("enable", "--now").returncode == 0
        until(lambda: (box.root / f"home/{USER}/keys").exists(), "the person's programs run")
        node.wait_for("READY")
        daemon, bystander = node.main_pid(), int(box.show("bystander", "MainPID")["MainPID"])
        folders = ["/opt/rae-node/agent", "/opt/rae-node/logs", "/var/lib/rae-node", "/run/rae-node", "/opt/rae-node/venv/bin"]
        cgroups = ["", "/system.slice", "/rae.slice", f"/system.slice/{UNIT}", "/system.slice/bystander.service", "/user.slice"]
        world = {
            "cgroups": [f"/sys/fs/cgroup{path}" for path in cgroups],
            "control": ["/run/rae-node/control.sock", "/run/rae-task.sock", "/run/rae-task-network.sock"],
            "uid": node.uid, "sockets": [f"/run/screen/S-{USER}/1.pts"], "abstract": [X11], "key_name": "rae-attack",
            "keys": [int(key) for key in box.sh(f"cat /home/{USER}/keys").split() if int(key) > 0],
            "pids": [1, daemon, bystander], "secrets": [*secrets, "/opt/rae-node/agent/node.yaml"], "secret": SECRET,
            "large": ["/work", "/mnt", "/opt/rae-node/versions"], "folders": folders,
            "files": [*secrets, "/opt/rae-node/agent/node.yaml"], "workroot": "/opt/rae-node/workdir",
            "homes": [f"/home/{USER}"], "port": 8000,
        }  # fmt: skip
        before, files = [settings_of(node, pid) for pid in (daemon, bystander)], files_of(node)
        found = {kind: came_of(node, kind, world) for kind in types}
        assert [settings_of(node, pid) for pid in (daemon, bystander)] == before
        assert node.main_pid() == daemon
        yield Scene(node, found, files)


@pytest.mark.parametrize("kind", ["alone", "network"])
@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_it_gets_nowhere(scene: Scene, kind: str, name: str) -> None:
    if kind == "network":
        if name == "uses the network":
            pytest.skip("that is what it may do")
        if name == X11_ATTACK and landlock.abi() < 6:
            pytest.skip("with the network, abstract sockets are open before Linux 6.12")
    assert [f"{what}: {came}" for what, came in scene.found[kind][name].items() if came.startswith(attacks.DONE)] == []


def test_nothing_is_left_and_all_is_as_before(scene: Scene) -> None:
    box = scene.node.box
    assert box.run("pgrep", "-f", attacks.LEFT, check=False).stdout == ""
    there = "/tmp /var /run /dev /home /root /opt /srv /usr/local /etc /"
    assert box.sh(f"find {there} -xdev -maxdepth 3 -name '*{attacks.LEFT}*' 2>/dev/null || true") == ""
    assert f"0x{attacks.KEY:08x}" not in box.sh("cat /proc/sysvipc/shm /proc/sysvipc/sem /proc/sysvipc/msg; ipcs")
    # A key would stay in the keyring of the user's number, which another task may get; root does not see it in /proc/keys.
    keys = [what for found in scene.found.values() for what in found["leaves keys in the keyrings of the user"]]
    assert [what for what in keys if "refused" not in what] == []
    assert box.sh("ls -A /opt/rae-node/workdir") == ""
    until(lambda: box.sh("ls -d /sys/fs/cgroup/rae.slice/rae-task* 2>/dev/null || true") == "", "the unit is gone")
    assert files_of(scene.node) == scene.files
    status = json.loads(scene.node.cli("status", "--json").stdout)
    assert status["state"] in ("READY", "COOLDOWN", "IDLE_WAIT"), status
