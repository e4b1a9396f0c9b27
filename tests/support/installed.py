"""A box with the node installed in it as on a person's machine: by deploy/install, from wheels, for an ordinary user."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import nvml_standin, running, sysbox
from support.sysbox import REPO, SysBox
from support.waiting import until

USER = "anna"
INSTALL = str(REPO / "deploy/install")
WHEELS = "/mnt/share/wheels"
RAE_NODE = "/usr/local/bin/rae-node"
UNIT = "rae-node.service"
NVML = "/etc/nvml-standin.txt"
CONTROL = "http://127.0.0.1:8000"
# A test need not wait for what people wait for: the times alone are other than in the unit that ships.
Done = subprocess.CompletedProcess[str]
QUICK = "[Service]\nRestartSec=200ms\nWatchdogSec=5\n"


def make_wheels(folder: Path) -> Path:
    """The project as it is now, and all that it needs, as wheels; what $RAE_NODE_WHEELS holds need not be fetched."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder.parent / "source"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "states", "supervisor"):
        to = source / name
        shutil.copytree(REPO / name, to) if (REPO / name).is_dir() else shutil.copy(REPO / name, to)
    given = os.environ.get("RAE_NODE_WHEELS")
    found = ["--find-links", given] if given else []
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", *found]
    done = subprocess.run([*pip, "-w", str(folder), str(source)], capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"the wheels for the box cannot be had: {done.stderr[-500:]}", pytrace=False)
    return folder


def make_site(folder: Path, wheels: Path) -> None:
    """The packages that an installation has, for `Installed.without_pip`. Each installation compiles them, so what no test
    in a box uses is left out: pictures as PNG, colours of source text, fleets."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-compile"]
    subprocess.run([*pip, "--find-links", str(wheels), "--target", str(folder), "rae-node"], check=True, capture_output=True)
    for unused in ("pygments", "markdown_it", "mdurl", "nats", "resvg_py"):
        shutil.rmtree(folder / unused)


class Installed:
    """One box; `install` puts the node there."""

    def __init__(self, box: SysBox, wheels: Path, nvml_library: Path) -> None:
        self.box = box
        self.wheels = WHEELS  # where the installer finds packages, in the box
        box.sh("rm -rf /opt/rae-node /var/lib/rae-node")  # what a node of the machine around it has left is not the box's
        shutil.copytree(wheels, box.share / "wheels", dirs_exist_ok=True)
        box.sh("for group in input render; do groupadd --system --force $group; done")  # udev brings them, where there is one
        box.sh("for group in video render input; do groupadd -rf $group; done")  # as udev's package does
        self.uid = box.add_user(USER)
        shutil.copy(nvml_library, box.share / "libnvidia-ml.so.1")
        box.sh("cp /mnt/share/libnvidia-ml.so.1 /usr/local/lib/; ldconfig")
        self.gpu()

    def gpu(self, *lines: str) -> None:
        """What the GPU shows from now on; one quiet GPU if nothing is said."""
        self.put(NVML, "\n".join(lines) + "\n")

    def put(self, path: str, text: str) -> None:
        """A file in the box, whole or not at all."""
        there = self.box.root / path.lstrip("/")
        there.parent.mkdir(parents=True, exist_ok=True)
        draft = there.with_name(f".{there.name}.draft")
        draft.write_text(text)
        draft.replace(there)

    def drop_in(self, name: str, text: str) -> None:
        """What `systemctl edit rae-node` would do."""
        self.put(f"/etc/systemd/system/{UNIT}.d/{name}.conf", text)
        self.box.run("systemctl", "daemon-reload")

    def install(self, *options: str, check: bool = True) -> Done:
        """deploy/install, as root, for the user."""
        done = self.box.run(INSTALL, "--user", USER, "--wheels", self.wheels, *options, check=check)
        if (self.box.root / "etc/systemd/system" / UNIT).exists():
            self.drop_in("nvml", f"[Service]\nEnvironment=FAKE_NVML_FILE={NVML}\n")
        return done

    @contextlib.contextmanager
    def without_pip(self, site: Path) -> Iterator[None]:
        """Meanwhile the installer's pip is a stand-in that copies the packages in `site`: a second, not ten."""
        (real,) = (self.box.root / "usr/share/python-wheels").glob("pip-*.whl")
        kept, stub = real.read_bytes(), self.box.share / "stub"
        shutil.copytree(site, stub / "site", dirs_exist_ok=True)
        (stub / "rae_node-0-py3-none-any.whl").touch()
        with zipfile.ZipFile(stub / "pip", "w") as wheel:
            wheel.writestr("pip/__init__.py", "")
            wheel.write(Path(__file__).with_name("stub_pip.py"), "pip/__main__.py")
        real.write_bytes((stub / "pip").read_bytes())
        self.wheels = "/mnt/share/stub"
        try:
            yield
        finally:
            self.wheels = WHEELS
            real.write_bytes(kept)
            shutil.rmtree(stub)

    def cli(self, *words: str, user: str | None = None, check: bool = False, **options: Any) -> Done:
        """`rae-node`, as it is called by people."""
        return self.box.run(RAE_NODE, *words, user=user, check=check, env={"FAKE_NVML_FILE": NVML}, **options)

    def configure(self, runtime: Any = None, node: Any = None) -> None:
        """Settings for a test, laid over the shipped ones that a test can live with."""
        base = {
            "control": {"url": CONTROL},
            # Cut short, it fails: posted anew it would run again at once, here.
            "tasks": running.merge(running.TASKS, {"sleep": {"on_preempt": "fail"}}),
            "host": {"min_memory_gb": 0, "max_temperature_c": 120, "on_battery": "allow"},
            "work": {"run_minutes": 0},
        }
        self.put("/opt/rae-node/agent/node.yaml", yaml.safe_dump(running.merge(base, node or {})))
        self.put("/opt/rae-node/agent/runtime.yaml", yaml.safe_dump(running.merge(running.RUNTIME, runtime or {})))

    def make_ready(self) -> None:
        """What an operator does after the install: name a task type and the control node. The rest stays as shipped."""
        self.box.sh("sed -i 's|^tasks: {}|tasks: {llm_inference: {executor: ollama_api}}|' /opt/rae-node/agent/node.yaml")
        self.box.sh(f"sed -i 's|^  url: .*|  url: {CONTROL}|' /opt/rae-node/agent/node.yaml")
        self.start_control()

    def show(self, *names: str) -> dict[str, str]:
        """Properties of the unit."""
        return self.box.show(UNIT, *names)

    def status(self) -> dict[str, Any]:
        """What the daemon says, or nothing."""
        done = self.cli("status", "--json")
        return json.loads(done.stdout) if done.returncode == 0 else {}

    def status_text(self) -> str:
        """STATUS=, as systemd heard it."""
        return self.show("StatusText")["StatusText"]

    def wait_for(self, state: str, timeout_s: float = 60.0) -> None:
        """Until systemd has heard of that state."""
        until(lambda: self.status_text().startswith(f"{state}:"), lambda: f"{state}, not {self.status_text()}", timeout_s)

    def start_control(self) -> None:
        """A control node in the box."""
        if self.box.run("systemctl", "is-active", "-q", "control-node", check=False).returncode == 0:
            return
        self.box.run(
            "systemd-run", "-q", "--unit=control-node", "-pRestart=always", RAE_NODE, "control", "--listen", CONTROL[7:]
        )
        listens = f": < /dev/tcp/{CONTROL[7:].replace(':', '/')}"
        until(lambda: self.box.run("bash", "-c", listens, check=False).returncode == 0, "a control node that answers")

    def control(self, path: str, body: Any = None) -> Any:
        """One request to it."""
        script = (
            "import json, sys, urllib.request as u\n"
            "url, body = sys.argv[1], sys.argv[2].encode() if sys.argv[2] else None\n"
            "print(u.urlopen(u.Request(url, body, {'content-type': 'application/json'}), timeout=5).read().decode())"
        )
        text = "" if body is None else json.dumps(body)
        return json.loads(self.box.run("/opt/rae-node/venv/bin/python", "-c", script, CONTROL + path, text).stdout)

    def add(self, kind: str, payload: Any = None) -> str:
        """Queue a task; its id."""
        return str(self.control("/control/tasks", {"type": kind, "payload": payload or {}, "priority": 0})["id"])

    def task(self, task_id: str) -> dict[str, Any]:
        """A task as the control node knows it."""
        answer: dict[str, Any] = self.control(f"/control/tasks/{task_id}")
        return answer

    def task_pids(self) -> list[int]:
        """Processes of tasks, by their environment."""
        found = self.box.run("sh", "-c", "grep -lz ^RAE_TASK_ID= /proc/[0-9]*/environ 2>/dev/null", check=False)
        return [int(path.split("/")[2]) for path in found.stdout.split()]

    def left(self) -> list[str]:
        """What stands of tasks in units: units, their private folders, processes."""
        cgroups = "find /sys/fs/cgroup/rae.slice -name '*.service'"
        folders = "ls -d /tmp/*rae-task* /var/tmp/*rae-task*"
        processes = "grep -lz ^RAE_TASK_ID= /proc/[0-9]*/environ"
        return self.box.sh(f"set +e; exec 2>/dev/null; {cgroups}; {folders}; {processes}; true").split()

    def main_pid(self) -> int:
        """The daemon's pid in the box."""
        return int(self.show("MainPID")["MainPID"])


def boot(base: Path, **options: Any) -> SysBox:
    """A box of one's own, not yet started."""
    if reason := sysbox.unavailable():
        sysbox.refuse(reason)
    return SysBox(base, logind_conf="IdleAction=ignore\nInhibitDelayMaxSec=10s", **options)


@contextlib.contextmanager
def installed(base: Path, wheels: Path, site: Path, nvml_library: Path) -> Iterator[Installed]:
    """A box of one's own in which the node is installed, not configured and not started."""
    with boot(base) as box:
        node = Installed(box, wheels, nvml_library)
        with node.without_pip(site):
            node.install()
        yield node


@contextlib.contextmanager
def installed_anew() -> Iterator[Installed]:
    """The same for a bench, with everything that it needs made first."""
    with tempfile.TemporaryDirectory(prefix="installed-") as name:
        folder = Path(name)
        make_site(folder / "site", make_wheels(folder / "wheels"))
        with installed(folder / "box", folder / "wheels", folder / "site", nvml_standin.build(folder)) as node:
            yield node
