"""A task on hold, with the real daemon: a short alarm costs it a pause, a long one the task, VRAM allows no hold at all.

The alarm is somebody else's process on the GPU (NVML stand-in).
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.nvml_standin import GIB, StandIn, nvml_library, standin
from support.running import Daemon, NodeFolder, control_node, daemon
from support.task_programs import RESTLESS
from support.waiting import until

__all__ = ["nvml_library", "standin"]  # fixtures

pytestmark = pytest.mark.slow

ON_GPU = {"gpu": {"presence": "required"}}
QUICK = {"look_interval_s": 0.2, "settle_s": 0}


def settings(hold_sec: float) -> dict[str, Any]:
    tasks = {"work": {"argv": [sys.executable, "-I", "-S", "-c", RESTLESS], "grace_sec": 0.5, "on_preempt": "fail"}}
    return {"tasks": tasks, "work": {"hold_sec": hold_sec, "run_minutes": 0}, **ON_GPU}


@pytest.fixture
def stranger() -> Iterator[str]:
    """Somebody else's process, as the stand-in is told of it."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield f"0.proc={process.pid}:{GIB}:g"
        process.kill()


def on_hold(node: Daemon) -> dict[str, Any]:
    """Its status, once the task is on hold to the mind too, which is a moment after it was frozen."""

    def look() -> Any:
        status = node.look()
        return status if " is on hold: " in status.get("reason", "") else None

    status: dict[str, Any] = until(look, lambda: f"a task on hold, not {node.look().get('status')}")
    assert status["task_usage"]["on_hold"]
    return status


def test_a_false_alarm_costs_a_pause(tmp_path: Path, standin: StandIn, stranger: str) -> None:
    with control_node() as control:
        folder = NodeFolder.make(tmp_path / "node", control.url, node=settings(59), **QUICK)
        with daemon(folder, env=standin.env) as node:
            task = control.add("work")
            pid = node.wait_for_task()
            until(lambda: list((folder.path / "work").glob("task-*/up")), "its beginning")
            standin.shows(stranger)
            look = on_hold(node)
            assert look["state"] == "RUNNING"
            assert f"work {task} is on hold: GPU used by 1 process not RAE's" in look["reason"]
            assert re.search(r"; stopped in [0-9]+ s if it stays so$", look["reason"])
            assert look["blocked_by"] == ["gpu_free"]
            assert "on hold" in folder.cli("status").stdout
            assert folder.cli("why").returncode == 0
            before = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
            until(lambda: node.look().get("reason", look["reason"]) != look["reason"], "the time that is left grows less")
            assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13] == before, "it stands still"
            standin.shows()
            until(lambda: "false-alarm" in folder.rows(), lambda: f"a false alarm, not {folder.rows()}")
            until(lambda: (node.look().get("task_usage") or {}).get("on_hold") is False, "it goes on")
            next((folder.path / "work").glob("task-*")).joinpath("end").touch()
            settled = control.settled(task)
            assert settled["status"] == "COMPLETED"
            assert settled["result"]["longest"] > 0.1
            node.stop()
        rows = folder.rows()
        assert rows[rows.index("task-claimed") :][:4] == ["task-claimed", "on-hold", "false-alarm", "task-ended"]
        folder.replays_clean()


def test_a_sign_that_stays_ends_the_task(tmp_path: Path, standin: StandIn, stranger: str) -> None:
    with control_node() as control:
        folder = NodeFolder.make(tmp_path / "node", control.url, node=settings(1), **QUICK)
        with daemon(folder, env=standin.env) as node:
            task = control.add("work")
            node.wait_for_task()
            standin.shows(stranger)
            settled = control.settled(task)
            assert settled["error"].startswith("preempted: the GPU was needed")
            assert not node.task_pids()
            node.stop()
        rows = folder.rows()
        assert rows[rows.index("task-claimed") :][:3] == ["task-claimed", "on-hold", "gpu-taken"]
        took = {d["row"]: d["boot_s"] for d in folder.decisions()}
        assert 0.99 <= took["gpu-taken"] - took["on-hold"] < 5.0
        folder.replays_clean()


def test_a_task_that_holds_vram_is_stopped_at_once(tmp_path: Path, standin: StandIn, stranger: str) -> None:
    with control_node() as control:
        folder = NodeFolder.make(tmp_path / "node", control.url, node=settings(120), **QUICK)
        with daemon(folder, env=standin.env) as node:
            task = control.add("work")
            own = f"0.proc={node.wait_for_task()}:{2 * GIB}:c"
            standin.shows(own, f"0.mem_used={2 * GIB}")
            until(lambda: (node.ask()["task_usage"] or {}).get("vram_gb") == 2, "its VRAM")
            standin.shows(own, stranger, f"0.mem_used={3 * GIB}")
            until(lambda: not node.task_pids(), "the task's end")
            standin.shows()
            assert control.settled(task)["error"].startswith("preempted: the GPU was needed")
            node.stop()
        assert "on-hold" not in folder.rows()
        folder.replays_clean()


def test_a_node_that_dies_on_hold_leaves_nothing_frozen(tmp_path: Path, standin: StandIn, stranger: str) -> None:
    with control_node() as control:
        folder = NodeFolder.make(tmp_path / "node", control.url, node=settings(120), **QUICK)
        with daemon(folder, env=standin.env) as node:
            task = control.add("work")
            node.wait_for_task()
            standin.shows(stranger)
            on_hold(node)
            node.kill()
            until(lambda: not node.task_pids(), "the task's end")
        standin.shows()
        with daemon(folder, env=standin.env) as node:
            node.wait_up()
            assert control.settled(task)["error"].startswith("preempted: node restarted")
            node.stop()
