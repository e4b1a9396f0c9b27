"""Outside RUNNING no process of ours has a GPU context: by NVML's list, by what is mapped, by open device nodes (T14, T23).

The task loads a library by the name of CUDA's, opens a stand-in for the device node and is in NVML's list, so that the
look is seen to find something while it runs.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.nvml_standin import StandIn, nvml_library, standin
from support.running import Daemon, NodeFolder, control_node, daemon
from support.waiting import until

__all__ = ["nvml_library", "standin"]  # fixtures

pytestmark = pytest.mark.slow

MAPPED = re.compile(r"/(libcuda|libcudart|libnvcuvid|libOpenCL|libvulkan|libGLX_nvidia|libhsa-runtime64|libze_loader)\S*\.so")
NODE = re.compile(r"^/dev/(nvidia|dri/|kfd|dxg)|/fake-nvidia-node$")
TASK = """
import ctypes, os, sys, time
cuda, node, nvml = sys.argv[1:]
ctypes.CDLL(cuda)
handle = open(node)
with open(nvml + ".task", "w") as file:
    file.write(f"0.proc={os.getpid()}:{2**30}:c\\n0.mem_used={2**30}\\n")
os.replace(nvml + ".task", nvml)
while not os.path.exists(os.environ["END"]):
    time.sleep(0.05)
"""


def ours(root: int) -> Iterator[int]:
    """A process and all below it."""
    yield root
    for thread in Path(f"/proc/{root}/task").glob("*/children"):
        try:
            children = thread.read_text().split()
        except OSError:
            continue
        for child in children:
            yield from ours(int(child))


def contexts(root: int, listed: Path) -> list[str]:
    """What speaks for a GPU context in any of our processes, in words."""
    found = []
    in_list = {int(pid) for pid in re.findall(r"proc=([0-9]+):", listed.read_text())}
    for pid in ours(root):
        if pid in in_list:
            found.append(f"{pid} is in NVML's list")
        try:
            found += [f"{pid} maps {name[0]}" for name in MAPPED.finditer(Path(f"/proc/{pid}/maps").read_text())]
            for fd in os.listdir(f"/proc/{pid}/fd"):
                target = os.readlink(f"/proc/{pid}/fd/{fd}")
                if NODE.search(target):
                    found.append(f"{pid} has {target} open")
        except OSError:
            continue  # gone meanwhile
    return found


def starts(status: dict[str, Any]) -> bool:
    """A task is being started; RUNNING follows."""
    return status["state"] == "READY" and (status["task"] or {}).get("phase") in ("claimed", "running")


class Watch:
    """Looks again and again, and keeps what was found by state; a state that has changed under the look is left out."""

    def __init__(self, node: Daemon, listed: Path) -> None:
        self.found: dict[str, set[str]] = {}
        self.looks: dict[str, int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(node, listed))
        self._thread.start()

    def _watch(self, node: Daemon, listed: Path) -> None:
        while not self._over.wait(0.02):
            before = node.look()
            seen = contexts(node.pid, listed)
            after = node.look()
            if not before or not after or starts(after):
                continue
            if (before["state"], before["since"][:19]) == (after["state"], after["since"][:19]):
                self.looks[before["state"]] = self.looks.get(before["state"], 0) + 1
                self.found.setdefault(before["state"], set()).update(seen)

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


def test_outside_running_no_process_of_ours_has_a_gpu_context(tmp_path: Path, standin: StandIn) -> None:
    cuda, device, listed = tmp_path / "libcuda.so.1", tmp_path / "fake-nvidia-node", Path(standin.env["FAKE_NVML_FILE"])
    device.touch()
    subprocess.run(["gcc", "-shared", "-o", str(cuda), "-x", "c", "/dev/null"], check=True)
    tasks = {
        name: {
            "argv": [sys.executable, "-S", "-c", TASK, str(cuda), str(device), str(listed)],
            "env": {"END": str(tmp_path / f"{name}.end")},
            "on_preempt": "fail",
            "sandbox": "none",  # it writes to the stand-in's list
        }
        for name in ("brief", "long")
    }
    settings = {"tasks": tasks, "gpu": {"presence": "required"}, "work": {"run_minutes": 0}}
    with control_node() as control:
        rest = {"safety": {"cooldown_minutes": 0.05}}
        folder = NodeFolder.make(tmp_path / "node", control.url, rest, settings, look_interval_s=0.2)
        with daemon(folder, env=standin.env) as node:
            node.wait_for("READY")
            watch = Watch(node, listed)
            until(lambda: watch.looks.get("READY", 0) > 5, "looks in READY")
            for name in ("brief", "long"):
                task = control.add(name)
                until(lambda: "proc=" in listed.read_text(), "its context")
                enough = watch.looks.get("RUNNING", 0) + 3
                until(lambda enough=enough: watch.looks.get("RUNNING", 0) > enough, lambda: f"looks at it, not {watch.looks}")
                if name == "brief":
                    (tmp_path / "brief.end").touch()
                else:
                    folder.cli("pause", "4s")
                until(lambda: not node.task_pids(), "its end")
                standin.shows()
                control.settled(task)
                state = "COOLDOWN" if name == "brief" else "DISABLED"
                until(lambda state=state: watch.looks.get(state), lambda: f"a look after it, not {watch.looks}")
            until(lambda: node.state() == "READY", lambda: f"READY, not {node.look()}")
            watch.stop()
            maps = Path(f"/proc/{node.pid}/maps").read_text()
            node.stop()
    print(f"  looks: {watch.looks}")
    assert "libnvidia-ml" not in maps, "NVML lives in its helper alone"
    inside = watch.found.pop("RUNNING")
    assert {what.split(" ", 1)[1] for what in inside} == {
        "is in NVML's list", "maps /libcuda.so", f"has {device} open",
    }
    assert set(watch.found) >= {"READY", "DISABLED", "COOLDOWN"}
    assert watch.found == {state: set() for state in watch.found}
