"""The whole daemon in RUNNING on a real systemd, logind and bus: every sign of the person, and every blindness, stops it.

One node for all of them: it works, something happens, it must leave RUNNING by the right row and for the right reason;
then the cause goes away and it works again.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.nvml_standin import build
from support.sysbox import SysBox, unavailable, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.box]

RUNTIME = """\
automation: {enabled: true, auto_start: true}
safety: {detect_active_user: true, idle_required_minutes: 0.02, max_cpu_percent: 100, max_gpu_percent: 90,
  max_vram_gb: 14, cooldown_minutes: 0}
execution: {poll_interval_sec: 0.2, heartbeat_interval_sec: 5, task_timeout_minutes: 60, retry_on_disconnect: true}
"""
NODE = """\
control: {url: "http://127.0.0.1:8000"}
tasks: {long: {argv: [/bin/sleep, "1000"], grace_sec: 0}}
gpu: {presence: required, look_interval_sec: 0.5}
host: {inhibitor: required, min_memory_gb: 0.1}
paths: {logs: /tmp/node/logs, workdir: /tmp/node/work, runtime: /tmp/node/run, state: /tmp/node/state}
"""


class BoxNode:
    """A control node and the daemon inside the box, with the NVML stand-in; `status` asks the daemon."""

    def __init__(self, box: SysBox, library: Path) -> None:
        self.box = box
        self.folder = box.root / "tmp/node"
        (self.folder / "lib").mkdir(parents=True)
        (self.folder / "lib" / library.name).write_bytes(library.read_bytes())
        (self.folder / "runtime.yaml").write_text(RUNTIME)
        (self.folder / "node.yaml").write_text(NODE)
        self.gpu()
        env = {"LD_LIBRARY_PATH": "/tmp/node/lib", "FAKE_NVML_FILE": "/tmp/node/nvml.txt"}
        python = [box.python, "-m"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.control = box.popen(*python, "supervisor.cli.main", "control", "--listen", "127.0.0.1:8000", **quiet)
        self.log = (box.base / "daemon.log").open("wb")
        self.daemon = box.popen(
            *python, "supervisor.service", "--config", "/tmp/node", env=env, stdout=self.log, stderr=self.log
        )
        wait_for(lambda: self.status().get("state"), "the daemon answers")

    def gpu(self, *lines: str) -> None:
        """What NVML shows from now on."""
        new = self.folder / "nvml.new"
        new.write_text("\n".join(lines) + "\n")
        os.replace(new, self.folder / "nvml.txt")

    def post(self) -> None:
        """One more long task for the node."""
        body = json.dumps({"type": "long", "payload": {}})
        code = (
            "import sys,urllib.request as u;"
            "u.urlopen(u.Request('http://127.0.0.1:8000/control/tasks',sys.argv[1].encode(),"
            "{'Content-Type':'application/json'}))"
        )
        self.box.run(self.box.python, "-c", code, body)

    def status(self) -> dict[str, Any]:
        """`rae-node status --json`, over the daemon's socket as seen from outside."""
        from supervisor.control import DaemonDown, DaemonMute, ask

        try:
            return ask(self.folder / "run", "status")
        except (DaemonDown, DaemonMute, OSError):
            return {}

    def works(self) -> None:
        """Wait until it is in RUNNING with a process."""

        def runs() -> bool:
            seen = self.status()
            return seen.get("state") == "RUNNING" and (seen["task"] or {}).get("phase") == "running"

        wait_for(runs, "RUNNING", 30)

    def left_by(self, since: int) -> tuple[str, str]:
        """(row, reason) of the first way out of RUNNING among the decisions after the first `since`."""
        for entry in self.decisions()[since:]:
            if entry["from"] == "RUNNING" and entry["to"] != "RUNNING":
                reasons = [g["reason"] for g in entry["guards"] if g["ok"] is not True]
                return entry["row"], "; ".join(reasons)
        return "", ""

    def decisions(self) -> list[dict[str, Any]]:
        """The journal's decisions so far."""
        lines = [json.loads(x) for p in sorted((self.folder / "logs").glob("*.jsonl")) for x in p.read_text().splitlines()]
        return [entry for entry in lines if entry["kind"] == "decision"]

    def stop(self) -> None:
        for process in (self.daemon, self.control):
            process.terminate()
            process.wait(20)
        self.log.close()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BoxNode]:
    if reason := unavailable():
        pytest.skip(reason)
    try:
        library = build(tmp_path_factory.mktemp("nvml"))
    except FileNotFoundError as error:
        pytest.skip(str(error))
    # A box of its own: buses and loginds are stopped in it.
    with SysBox(tmp_path_factory.mktemp("presence"), logind_conf="IdleAction=ignore") as box:
        running = BoxNode(box, library)
        try:
            yield running
        finally:
            running.stop()


def _session(node: BoxNode) -> Callable[[], None]:
    unit, session = node.box.open_session("anna", "wayland")
    return lambda: node.box.close_session(unit, session)


def _ssh(node: BoxNode) -> Callable[[], None]:
    unit, session = node.box.open_session("anna", "tty", seat="")
    return lambda: node.box.close_session(unit, session)


def _terminal(node: BoxNode) -> Callable[[], None]:
    process = node.box.popen("script", "-qfc", "sleep 1000", "/dev/null", stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    return lambda: (process.kill(), process.wait(), None)[-1]  # type: ignore[func-returns-value]


def _game(node: BoxNode) -> Callable[[], None]:
    pid = node.box.run("sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!").stdout.strip()
    node.gpu(f"0.proc={pid}:1073741824:g")
    return lambda: (node.gpu(), node.box.sh(f"kill {pid}"), None)[-1]  # type: ignore[func-returns-value]


def _busy_gpu(node: BoxNode) -> Callable[[], None]:
    node.gpu("0.mem_used=16106127360")
    return node.gpu


def _hung_nvml(node: BoxNode) -> Callable[[], None]:
    node.gpu("delay.nvmlDeviceGetCount=60000", "delay.nvmlDeviceGetUtilizationRates=60000")
    return node.gpu


def _lost_gpu(node: BoxNode) -> Callable[[], None]:
    node.gpu("0.err=15")
    return node.gpu


def _bus_gone(node: BoxNode) -> Callable[[], None]:
    node.box.run("systemctl", "stop", "dbus.socket", "dbus.service")
    back = "systemctl start dbus.socket dbus.service; systemctl restart systemd-logind"  # 257 does not come back by itself
    return lambda: (node.box.sh(back), None)[-1]


def _logind_gone(node: BoxNode) -> Callable[[], None]:
    node.box.run("systemctl", "reset-failed")
    node.box.run("systemctl", "stop", "systemd-logind")
    return lambda: (node.box.run("systemctl", "start", "systemd-logind"), None)[-1]


CASES: dict[str, tuple[Callable[[BoxNode], Callable[[], None]], str, str]] = {
    "a new graphical session": (_session, "user-returned", "anna"),
    "a login on a terminal, as over SSH": (_ssh, "user-returned", "anna"),
    "a new terminal": (_terminal, "user-returned", "pts/"),
    "a game on the GPU": (_game, "user-returned", "GPU used by"),
    "VRAM above its limit": (_busy_gpu, "gpu-taken", "VRAM 15 GiB"),
    "an NVML call that hangs": (_hung_nvml, "gpu-taken", "GPU unknown"),
    "a GPU that fell off the bus": (_lost_gpu, "gpu-taken", "GPU"),
    "the bus goes": (_bus_gone, "user-returned", "user unknown"),
    "logind goes": (_logind_gone, "user-returned", "user unknown"),
}


@pytest.mark.parametrize("case", CASES)
def test_it_leaves_running_for_the_right_reason_and_comes_back(node: BoxNode, case: str) -> None:
    happen, row, words = CASES[case]
    node.post()
    node.works()
    assert node.box.run("pgrep", "-f", "sleep 1000", check=False).stdout
    before = len(node.decisions())
    undo = happen(node)
    try:
        wait_for(lambda: node.left_by(before)[0], f"{case}: out of RUNNING", 20)
        left = node.left_by(before)
        assert left[0] == row, left
        assert words in left[1], left
    finally:
        undo()
    node.works()
