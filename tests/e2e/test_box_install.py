"""The installer on a real systemd: what it changes, by `find` before and after; failing and interrupted at every step."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
from support.installed import INSTALL, RAE_NODE, UNIT, USER, WHEELS, Installed, boot
from support.nvml_standin import nvml_library
from support.sysbox import REPO
from support.waiting import until

from supervisor import VERSION

__all__ = ["nvml_library"]
pytestmark = [pytest.mark.slow, pytest.mark.box]

# What the machine itself writes meanwhile, caches, and what a test put there.
NOISE = r"/etc/systemd/system/rae-node.service.d|/var/log|/var/cache|/var/lib/(systemd|dpkg|apt)|/root|\.pyc$|__pycache__"


# A node with just what the installer asks of it.
TINY = {
    "cli/main.py": "",
    "cli/manual.py": "",
    "config/load.py": "from types import SimpleNamespace as S\n"
    "load = lambda _: S(runtime=S(automation=S(auto_start=True)))\n",
}


@pytest.fixture(scope="module")
def node(wheels: Path, nvml_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """One box that each test leaves without a node."""
    with boot(tmp_path_factory.mktemp("install")) as box:
        yield Installed(box, wheels, nvml_library)


@pytest.fixture
def quick(node: Installed, site: Path) -> Iterator[None]:
    """The node's packages come without pip, which is not what the test is about."""
    with node.without_pip(site):
        yield


Tiny = Callable[[], AbstractContextManager[None]]


@pytest.fixture
def tiny(node: Installed, tmp_path: Path) -> Tiny:
    """While it lasts, the installer has next to nothing to install: a test is about the installer alone."""
    for name, text in TINY.items():
        path = tmp_path / "site/supervisor" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return lambda: node.without_pip(tmp_path / "site")


@pytest.fixture(autouse=True)
def afterwards(node: Installed) -> Iterator[None]:
    yield
    node.box.run(INSTALL, "--uninstall", "--purge")
    node.box.run("rm", "-rf", f"/etc/systemd/system/{UNIT}.d", "/opt/rae-node")


def tree(node: Installed) -> dict[str, str]:
    """Every path that was made, changed or removed where something may be installed: mode, owner and, for a link, where it
    leads."""
    return {
        re.sub("venv-[a-z0-9_]{8}", "venv-X", path): re.sub("venv-[a-z0-9_]{8}", "venv-X", " ".join(what))
        for path, what in node.box.changes("/opt", "/etc", "/usr/local", "/var", "/usr/share/polkit-1").items()
        if not re.search(NOISE, path)
    }


def steps(node: Installed) -> list[str]:
    """What a dry run announces."""
    return node.box.run(INSTALL, "--user", USER, "--wheels", node.wheels, "--dry-run").stdout.splitlines()


def test_a_dry_run_tells_each_step_and_does_none(node: Installed) -> None:
    before = tree(node)
    said = steps(node)
    assert said[0] == f"[1/{len(said)}] make /opt/rae-node"
    assert len(said) >= 13
    assert tree(node) == before


@pytest.mark.usefixtures("quick")  # with the real pip: test_box_deb.py, tests/deploy/test_install_staged.py
def test_what_it_lays_out_and_takes_back(node: Installed) -> None:
    before = tree(node)
    done = node.install()
    assert done.stderr == ""
    assert done.stdout.endswith("Nothing was started. Next: `rae-node report`, then `sudo rae-node enable --now`.\n")
    after = tree(node)
    owners = {path: after[f"/opt/rae-node{path}"] for path in ("", "/agent", "/logs", "/workdir", "/venv", "/agent/node.yaml")}
    assert owners == {
        "": "drwxr-xr-x root ", "/agent": "drwxr-xr-x root ", "/logs": f"drwxr-x--- {USER} ", "/workdir": f"drwx------ {USER} ",
        "/venv": "lrwxrwxrwx root versions/venv-X", "/agent/node.yaml": "-rw-r--r-- root ",
    }
    for name in ("auto_runner.py", "check_user_idle.py", "check_gpu_load.py"):
        assert after[f"/opt/rae-node/agent/{name}"] == "-rwxr-xr-x root "
    assert not [path for path, what in after.items() if path not in before and what.split()[0][8] == "w" and what[0] != "l"]
    assert node.show("ActiveState", "UnitFileState", "User") == {
        "ActiveState": "inactive", "UnitFileState": "enabled", "User": USER,
    }
    assert "rae-node" in node.box.run("man", "-w", "rae-node").stdout
    assert "status" in node.box.sh(f"COMP_WORDS='rae-node sta' COMP_CWORD=1 _RAE_NODE_COMPLETE=complete_bash {RAE_NODE}")
    assert node.cli("--version").stdout.startswith("rae-node ")
    rule = node.box.sh("cat /etc/polkit-1/rules.d/50-rae-node.rules")
    assert f'subject.user == "{USER}"' in rule
    assert "inhibit-block-sleep" in rule
    node.install()
    assert tree(node) == after, "a second time changes nothing"
    node.box.sh(f"echo kept > /opt/rae-node/logs/decisions-2026-01-01.jsonl; chown {USER} /opt/rae-node/logs/*")
    node.box.run(INSTALL, "--uninstall")
    logs = {path for path in tree(node) if path.startswith("/opt/rae-node")}
    assert logs == {"/opt/rae-node", "/opt/rae-node/logs", "/opt/rae-node/logs/decisions-2026-01-01.jsonl"}
    assert {path for path in tree(node) if path not in logs} == set(before)
    node.box.run(INSTALL, "--uninstall", "--purge")
    assert tree(node) == before
    assert node.show("LoadState") == {"LoadState": "not-found"}


@pytest.mark.parametrize(
    ("name", "text"),
    [("runtime.yaml", "automation: {enabled: perhaps}\n"), ("node.yaml", "logs: {keep_days: soon}\n")],
)
@pytest.mark.usefixtures("quick")
def test_a_broken_configuration_stops_it_before_anything_is_changed(node: Installed, name: str, text: str) -> None:
    node.box.sh(f"mkdir -p /opt/rae-node/agent; cp {REPO}/config/*.yaml /opt/rae-node/agent/")
    node.put(f"/opt/rae-node/agent/{name}", text)
    before = tree(node)
    done = node.install(check=False)
    assert done.returncode == 2
    assert re.search(rf"^{name}:1:\d+: ", done.stderr, re.MULTILINE), done.stderr
    assert "Traceback" not in done.stderr
    assert tree(node) == before


@pytest.mark.usefixtures("quick")
def test_an_upgrade_keeps_the_configuration_and_the_operators_word(node: Installed, site: Path) -> None:
    old = make_old_site(node, site)
    node.box.run(INSTALL, "--user", USER, "--wheels", old)
    assert node.cli("--version").stdout == "rae-node 0.0.9\n"
    node.configure()
    kept = node.box.sh("cat /opt/rae-node/agent/*.yaml")
    node.box.run(RAE_NODE, "disable")
    done = node.box.run(INSTALL, "--wheels", node.wheels)  # the user is the one of the unit that is there
    assert node.cli("--version").stdout != "rae-node 0.0.9\n"
    assert node.box.sh("cat /opt/rae-node/agent/*.yaml") == kept
    assert node.show("ActiveState", "UnitFileState", "User") == {
        "ActiveState": "inactive", "UnitFileState": "disabled", "User": USER,
    }
    assert node.box.sh("ls /opt/rae-node/versions").count("\n") == 1
    node.cli("enable", "--now", check=True)
    pid = node.main_pid()
    done = node.install()
    assert "The node still runs its old version" in done.stdout
    assert node.main_pid() == pid
    assert node.box.sh("ls /opt/rae-node/versions").count("\n") == 2, "a running node keeps its files"
    node.box.sh("chown root /run/rae-task.sock")  # as after an upgrade with another user
    node.box.run("systemctl", "restart", UNIT)
    until(lambda: node.status().get("state"), "the new one answers")
    assert node.box.sh("stat -c '%U %a' /run/rae-task.sock /run/rae-task-network.sock") == f"{USER} 600\n" * 2
    connect = "import socket, time; s = socket.socket(socket.AF_UNIX); s.connect('/run/rae-task.sock'); time.sleep(600)"
    node.box.popen("runuser", "-u", USER, "--", "/usr/bin/python3", "-c", connect)
    until(lambda: "rae-task@" in units(node), lambda: f"a unit for a task, not only {units(node)}")
    node.box.run(INSTALL, "--uninstall")
    assert (units(node), node.box.sh("ls -d /run/rae* /sys/fs/cgroup/rae* || true")) == ("", "")


def units(node: Installed) -> str:
    """What systemd knows of the node."""
    return node.box.run("systemctl", "list-units", "--all", "--no-legend", "--plain", "rae*").stdout


def make_old_site(node: Installed, site: Path) -> str:
    """The packages, with the project's own of an older version; where they are in the box."""
    there = node.box.share / "old"
    shutil.copytree(site, there / "site", dirs_exist_ok=True)
    init = there / "site/supervisor/__init__.py"
    init.write_text(init.read_text().replace(VERSION, "0.0.9"))
    (there / "rae_node-0.0.9-py3-none-any.whl").touch()
    return "/mnt/share/old"


def test_interrupted_at_every_step_and_run_again(node: Installed, tiny: Tiny) -> None:
    before = tree(node)
    with tiny():
        for step in range(1, len(steps(node)) + 1):
            how = signal.SIGKILL if step % 2 else signal.SIGINT
            interrupted_at(node, step, how)
            assert node.show("ActiveState")["ActiveState"] == "inactive"
        node.install()
        whole = tree(node)
        assert node.show("UnitFileState") == {"UnitFileState": "enabled"}
        node.box.run(INSTALL, "--uninstall")
        assert tree(node) == before, "also what the interrupted runs had made"
        node.install()
        assert tree(node) == whole


@pytest.mark.parametrize("step", [2, 5, 9])
def test_an_interrupted_installation_can_be_taken_back(node: Installed, tiny: Tiny, step: int) -> None:
    before = tree(node)
    with nullcontext() if step == 2 else tiny():  # with the real pip, in its middle
        interrupted_at(node, step, signal.SIGKILL)
    node.box.run(INSTALL, "--uninstall")
    assert tree(node) == before


def interrupted_at(node: Installed, step: int, how: int) -> None:
    """Install, and end it by a signal as soon as it says that it begins this step."""
    process = node.box.popen(
        INSTALL, "--user", USER, "--wheels", node.wheels, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    for line in process.stdout:
        if line.startswith(f"[{step}/"):
            break
    inside = node.box.run("pgrep", "-f", f"^/usr/bin/python3 -I {INSTALL}", check=False).stdout.split()
    if inside:
        node.box.run("kill", f"-{int(how)}", inside[0], check=False)
    _, complaint = process.communicate(timeout=120)
    # Its children end with it, as at a power cut: without their venv they would write into the system's packages.
    node.box.run("pkill", "-KILL", "-f", "^/opt/rae-node/versions/", check=False)
    assert "Traceback" not in complaint, complaint


@pytest.mark.parametrize(
    ("options", "prepare", "says"),
    [
        (["--wheels", WHEELS], "mount -t tmpfs -o size=6m tmpfs /opt", " MiB are free, 150 MiB are needed"),
        ([], "true", "failed: "),  # no network, and an index that nobody serves
    ],
)
def test_what_fails_half_way_says_so_in_a_line_and_goes_again(
    node: Installed, tiny: Tiny, options: list[str], prepare: str, says: str
) -> None:
    node.box.sh(prepare)
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": "/dev/null"}
    done = node.box.run(INSTALL, "--user", USER, *options, check=False, env=nowhere)
    assert done.returncode == 1
    assert done.stderr.startswith("install: ")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert "run it again when that is fixed" in done.stderr
    assert node.box.sh("ls -A /opt") == "" or "rae-node" not in node.box.sh("ls -A /opt")
    node.box.sh("umount /opt 2>/dev/null || true")
    with tiny():
        node.install()
    assert node.show("UnitFileState") == {"UnitFileState": "enabled"}


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--user", "root"], 2, "--user root: the node and its tasks would be root; name a person"),
        (["--user", "nobody-of-that-name"], 2, "there is no user nobody-of-that-name here"),
        (["--wheels", "/nowhere"], 2, "holds no rae_node-*.whl"),
        (["--purge"], 2, "--purge goes with --uninstall"),
    ],
)
def test_wrong_usage(node: Installed, options: list[str], code: int, says: str) -> None:
    done = node.box.run(INSTALL, *options, check=False)
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("quick")
def test_a_root_shell_gets_an_account_of_its_own_also_for_a_node_that_ran_as_root(node: Installed) -> None:
    def from_a_root_shell() -> None:
        said = node.box.run(INSTALL, "--wheels", node.wheels).stderr
        assert said == "install: no person called sudo: the service gets the account rae-node, or --user NAME\n"
        assert node.show("User") == {"User": "rae-node"}
        assert node.box.sh("stat -c %U /opt/rae-node/workdir /opt/rae-node/logs") == "rae-node\n" * 2

    from_a_root_shell()
    account = node.box.sh("getent passwd rae-node").strip()
    assert account.endswith(":/nonexistent:/usr/sbin/nologin")
    node.box.sh(f"sed -i s/^User=.*/User=root/ /etc/systemd/system/{UNIT}; chown root /opt/rae-node/workdir")
    node.box.run("systemctl", "daemon-reload")
    assert "the service runs as root (User=root)" in node.cli("report").stdout
    from_a_root_shell()
    node.box.run(INSTALL, "--uninstall")
    assert node.box.sh("getent passwd rae-node").strip() == account, "the logs are its own"
    node.box.run(INSTALL, "--uninstall", "--purge")
    assert node.box.run("getent", "passwd", "rae-node", check=False).stdout == ""


@pytest.mark.usefixtures("quick")
def test_who_called_sudo_stays_and_is_warned_of_groups_that_are_roots_equal(node: Installed) -> None:
    node.box.sh(f"groupadd --system --force docker; gpasswd -a {USER} docker")
    done = node.box.run(INSTALL, "--wheels", node.wheels, env={"SUDO_USER": USER})
    assert node.show("User") == {"User": USER}
    warning = f"{USER} is in the group docker, which starts containers as root: as good as root; `gpasswd -d {USER} docker`"
    assert done.stderr == f"install: warning: {warning}, or install with --user rae-node\n"
    assert f"[PASS] service's account: warning, {warning}" in node.cli("verify").stdout
    node.box.sh("groupdel docker")


def test_it_needs_root(node: Installed) -> None:
    done = node.box.run(INSTALL, user=USER, check=False)
    assert (done.returncode, "run it with sudo" in done.stderr) == (1, True)


@pytest.mark.usefixtures("quick")
def test_auto_start_false_is_not_switched_on(node: Installed) -> None:
    node.configure(runtime={"automation": {"auto_start": False}})
    node.install()
    assert node.show("UnitFileState") == {"UnitFileState": "disabled"}
    assert node.cli("report").returncode == 1
    assert node.cli("enable").returncode == 1
    once = node.cli("enable", "--now")
    assert once.returncode == 0
    assert node.show("ActiveState", "UnitFileState") == {"ActiveState": "active", "UnitFileState": "disabled"}
