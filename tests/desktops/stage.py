"""A desktop in a box with the node installed beside it, and the person who sits there: what the cells of the table play on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from support import nvml_standin, shared
from support.installed import UNIT, Installed, boot, make_site, make_wheels
from support.running import merge
from support.sysbox import REPO
from support.waiting import until

from supervisor.linux.control_socket import DaemonDown, DaemonUnresponsive, ask

HERE = Path(__file__).resolve().parent
PERSON = "bert"  # not the service's user: the node may not look into their desktop
AGENT = "rae-node-session.service"
IDLE_S = 6.0  # safety.idle_required_minutes
TASK_S = 60
READY_S = 45.0  # until it works beside a desktop that nobody touches
LEAVES_S = 15.0  # until it stops
STARTED_S = 120.0
SESSIONS = (
    "for s in $(loginctl list-sessions --no-legend | awk '{print $1}'); do for p in Id Name Class Type State Active Remote"
    " Service Display TTY Seat IdleHint LockedHint Leader; do loginctl show-session $s -p $p; done | tr '\\n' ' '; echo; done"
)
Decision = dict[str, Any]


class Fails(Exception):
    """A cell does not hold; the text is what was seen. `evidence`: what helped then, where it is over now."""

    def __init__(self, text: str, evidence: str = "") -> None:
        super().__init__(text)
        self.evidence = evidence


def layer() -> Path:
    """The packages of all desktops, made once and kept in $RAE_DESKTOPS, otherwise in ~/.cache/rae-node. Made anew where the
    list or what is installed on this machine has changed."""
    kept = Path(os.environ.get("RAE_DESKTOPS") or Path.home() / ".cache/rae-node")
    installed = subprocess.run(["dpkg-query", "-W"], capture_output=True, check=True).stdout
    made_of = installed + (HERE / "packages.txt").read_bytes() + (HERE / "layer.sh").read_bytes()
    image = kept / f"desktops-{hashlib.sha256(made_of).hexdigest()[:12]}.ext4"
    if not image.exists():
        for old in kept.glob("desktops-*.ext4*"):
            old.unlink()
        print(f"the packages of the desktops are fetched into {image}, once; minutes", flush=True)
        subprocess.run([HERE / "layer.sh", image], check=True, stdout=subprocess.DEVNULL)
    return image


@dataclass
class Stage:
    """One desktop (`script` with `settings` in its environment) in a box of its own, and the node beside it."""

    node: Installed
    script: str
    settings: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.box = self.node.box
        self._running: list[subprocess.Popen[Any]] = []

    # --- the person

    def act(self, verb: str, *words: str, script: str = "", timeout_s: float = STARTED_S, check: bool = True) -> str:
        """A verb of the desktop's script (see scripts/lib.sh), to its end; what it printed."""
        argv = ["bash", f"/mnt/desktops/{script or self.script}.sh", verb, PERSON, *words]
        done = self.box.run(*argv, env=self.settings, check=False, timeout_s=timeout_s)
        if check and done.returncode:
            raise Fails(f"{verb}: exit {done.returncode}: {(done.stderr or done.stdout).strip()[-300:]}")
        return done.stdout

    def begin(self, verb: str, *words: str) -> subprocess.Popen[Any]:
        """The same, in the background."""
        argv = ["setsid", "bash", f"/mnt/desktops/{self.script}.sh", verb, PERSON, *words]
        process = self.box.popen(*argv, env=self.settings, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self._running.append(process)
        return process

    def tray(self, *words: str) -> str:
        """A verb of tray_click.py, as the person on their own bus; what it printed, or its error."""
        runtime = f"/run/user/{self.box.run('id', '-u', PERSON).stdout.strip()}"
        env = [f"XDG_RUNTIME_DIR={runtime}", f"DBUS_SESSION_BUS_ADDRESS=unix:path={runtime}/bus"]
        argv = ["runuser", "-u", PERSON, "--", "env", *env, "python3", "/mnt/desktops/tray_click.py", *words]
        done = self.box.run(*argv, check=False)
        return done.stdout.strip() or done.stderr.strip()

    def end(self) -> None:
        """What runs in the background has ended, with all that it started."""
        for process in self._running:
            group = "for p in $(pgrep -f 'bash /mnt/desktops/'); do kill -- -$p; done"
            self.box.run("bash", "-c", group, check=False)
            process.wait(20)
        self._running.clear()

    # --- the node

    def status(self) -> dict[str, Any]:
        """What it says of itself; nothing while it cannot be asked."""
        try:
            return ask(self.box.root / "run/rae-node", "status")
        except (DaemonDown, DaemonUnresponsive, OSError):
            return {}

    def said(self) -> str:
        """The first line of its status."""
        return str(self.status().get("status", "no answer"))

    def decisions(self) -> list[Decision]:
        """The journal's decisions so far."""
        lines: list[dict[str, Any]] = []
        for log in sorted((self.box.root / "opt/rae-node/logs").glob("*.jsonl")):
            for raw in log.read_bytes().splitlines():
                with contextlib.suppress(ValueError):  # it is being written
                    lines.append(json.loads(raw))
        return [line for line in lines if line["kind"] == "decision"]

    def runs(self) -> bool:
        """A task runs."""
        seen = self.status()
        return seen.get("state") == "RUNNING" and (seen.get("task") or {}).get("phase") == "running"

    def works(self, within_s: float = READY_S) -> float:
        """It must work in time; seconds until it did."""
        began_s = time.monotonic()
        if not self.runs():
            self.node.add("sleep")
        while not self.runs():
            if time.monotonic() - began_s > within_s:
                raise Fails(f"not READY within {within_s:g} s: {self.said()}")
            time.sleep(0.1)
        return time.monotonic() - began_s

    def goes_on(self, seconds: float, during: str = "") -> None:
        """It must work all this time."""
        before, end_s = len(self.decisions()), time.monotonic() + seconds
        while (left := self.left_by(before)) is None and time.monotonic() < end_s:
            time.sleep(0.5)
        if left is not None:
            raise Fails(f"{during or 'untouched'}: {left['row']}: {reasons(left)}")

    def stays_away(self, seconds: float, during: str) -> None:
        """It must not begin to work in this time."""
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            if self.status().get("state") in ("READY", "RUNNING"):
                raise Fails(f"{during}: {self.said()}")
            time.sleep(0.2)

    def left_by(self, before: int) -> Decision | None:
        """The first way out of RUNNING among the decisions after the first `before`."""
        out = (entry for entry in self.decisions()[before:] if entry["from"] == "RUNNING" and entry["to"] != "RUNNING")
        return next(out, None)

    def leaves(self, act: Callable[[], str | object], within_s: float = LEAVES_S, during: str = "") -> tuple[float, str]:
        """It works; then `act`, which may print the time right before it touched something: milliseconds from there until
        it was decided to stop, and why."""
        self.works()
        before, began_s = len(self.decisions()), time.clock_gettime(time.CLOCK_BOOTTIME)
        printed = act()
        if isinstance(printed, str) and printed.strip():
            began_s = float(printed.split()[-1])
        end_s = time.monotonic() + within_s
        while (left := self.left_by(before)) is None:
            if time.monotonic() > end_s:
                raise Fails(f"{during or 'touched'}: still {self.said()} after {within_s:g} s")
            time.sleep(0.05)
        until(lambda: self.status().get("state") != "RUNNING", "the task's end", 30)
        if left["row"] != "user-returned":
            raise Fails(f"{during}: {left['row']}: {reasons(left)}")
        return (left["boot_s"] - began_s) * 1e3, reasons(left)

    def evidence(self) -> str:
        """What helps whoever looks into a cell that fails."""
        parts = {
            "why": self.node.cli("why", "--all").stdout,
            "sessions": self.box.sh(SESSIONS),
            "agents": self.box.run(
                "journalctl", "--no-pager", "-o", "short-monotonic", f"_SYSTEMD_USER_UNIT={AGENT}", "-n", "12", check=False
            ).stdout,
            "inhibitors": self.box.run("systemd-inhibit", "--list", "--no-pager", check=False).stdout,
        }
        return "".join(f"  {name}:\n" + "".join(f"    {line}\n" for line in text.splitlines()) for name, text in parts.items())


def reasons(decision: Decision) -> str:
    """Why it was decided."""
    return "; ".join(g["reason"] for g in decision["guards"] if g["ok"] is not True and not g["name"].startswith("task_"))


def configure(node: Installed, shipped: bool) -> None:
    """The settings of a stage. Neither what else this machine does nor how warm it is keeps the node from work."""
    if not shipped:
        safety = {"detect_active_user": True, "idle_required_minutes": IDLE_S / 60, "cooldown_minutes": 0}
        settings = {"gpu": {"presence": "required"}, "host": {"inhibitor": "required"}}
        node.configure({"safety": safety, "execution": {"poll_interval_sec": 1}}, settings)
        return
    runtime, settings = (yaml.safe_load((REPO / "config" / name).read_text()) for name in ("runtime.yaml", "node.yaml"))
    host = {"min_memory_gb": 0, "max_temperature_c": 120, "on_battery": "allow"}
    node.put("/opt/rae-node/agent/runtime.yaml", yaml.safe_dump(merge(runtime, {"safety": {"max_cpu_percent": 100}})))
    minute = {"minute": {"argv": ["/bin/sleep", str(TASK_S)]}}
    node.put("/opt/rae-node/agent/node.yaml", yaml.safe_dump(merge(settings, {"host": host, "tasks": minute})))


@contextlib.contextmanager
def stage(base: Path, script: str, settings: Mapping[str, str], *, shipped: bool = False) -> Iterator[Stage]:
    """A box with the layer, the node installed and at work in it; the desktop is not started yet. `shipped`: its settings are
    those that people get."""
    wheels = shared.once("wheels", make_wheels)
    site = shared.once("site", lambda folder: make_site(folder, wheels))
    nvml = shared.once("nvml", nvml_standin.build) / nvml_standin.LIBRARY
    with boot(base, layer=layer(), binds=[f"{HERE / 'scripts'}:/mnt/desktops:ro"]) as box:
        box.sh("mkdir -p /tmp/.X11-unix /tmp/.ICE-unix; chmod 1777 /tmp/.X11-unix /tmp/.ICE-unix")
        node = Installed(box, wheels, nvml)
        box.add_user(PERSON)
        box.run("chpasswd", stdin=f"{PERSON}:{PERSON}\n")
        with node.without_pip(site):
            node.install()
        configure(node, shipped)
        node.start_control()
        box.run("systemctl", "start", UNIT)
        at_work = Stage(node, script, settings)
        until(at_work.status, "the node", 30)
        try:
            yield at_work
        finally:
            at_work.end()
