"""A task's own limits and its VRAM, with the real daemon: timeout, memory, disk, processes, VRAM, and VRAM that stays held.

Each ends in a reason of its own, at the control node and in the journal. The GPU is the NVML stand-in.
"""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.nvml_standin import GIB, StandIn, nvml_library, standin
from support.running import ControlNode, Daemon, NodeFolder, control_node, daemon
from support.waiting import until

__all__ = ["nvml_library", "standin"]  # fixtures

pytestmark = pytest.mark.slow

PYTHON = sys.executable
NUMBER = r"[0-9]+(?:\.[0-9]+)?"
GRUMBLE = "import os, time; os.write(2, b'about to hang \\x00 \\xff' * 1000); os.write(2, b' now'); time.sleep(1000)"
MEMORY = "import sys, time; print('here it comes', file=sys.stderr, flush=True); hog = bytearray(300 << 20); time.sleep(1000)"
FAMILY = "import os, time\nfor _ in range(9):\n    if os.fork() == 0: break\ntime.sleep(1000)"
DISK = "import time; f = open('big', 'wb'); f.write(b'x' * (40 << 20)); f.flush(); time.sleep(1000)"
DELETED = "import os, time; f = open('big', 'wb'); os.unlink('big'); f.write(b'x' * (40 << 20)); f.flush(); time.sleep(1000)"
ON_GPU = {"gpu": {"presence": "required"}}
QUICK = {"look_interval_s": 0.2, "vram_release_s": 0.6}
UNTIL_TOLD = {
    "work": {
        "argv": ["/bin/sh", "-c", "while ! test -e end; do sleep 0.05; done; echo '{}'"],
        "on_yield": "kill",
        "on_preempt": "fail",
    }
}


def python(code: str, **more: Any) -> dict[str, Any]:
    return {"argv": [PYTHON, "-S", "-c", code], "grace_sec": 0.5, **more}


def failed(control: ControlNode, task: str) -> tuple[str, dict[str, Any]]:
    """(error, result) of a task that fails."""
    settled = control.settled(task, 60)  # a polite task beside a busy machine starts late
    print(f"  {settled['type']}: {settled['error']}  {str(settled['result'])[:100]}")
    assert settled["status"] == "FAILED"
    return settled["error"], settled["result"]


def effects(node: Daemon, name: str) -> list[str]:
    """What the journal says of each time that this effect was carried out."""
    return [line["detail"] for line in node.folder.journal() if line.get("effect") == name]


def test_a_task_over_a_limit_fails_by_its_own_fault_and_the_node_goes_on(tmp_path: Path) -> None:
    tasks = {
        "timeout": python(GRUMBLE, timeout_minutes=0.04),
        "memory": python(MEMORY, max_memory_gb=0.1),
        "family": python(FAMILY, max_processes=5),
        "disk": python(DISK, max_disk_gb=0.02),
        "deleted": python(DELETED, max_disk_gb=0.02),
    }
    words = {
        "timeout": r"timeout: stopped after 2 s, the most that this node gives .*",
        "memory": rf"limit: memory {NUMBER} GiB, limit 0\.1 GiB \(tasks\.memory\.max_memory_gb\)",
        "family": r"limit: processes [0-9]+, limit 5 \(tasks\.family\.max_processes\)",
        "disk": rf"limit: disk {NUMBER} GiB, limit 0\.02 GiB \(tasks\.disk\.max_disk_gb\)",
        "deleted": rf"limit: disk {NUMBER} GiB, limit 0\.02 GiB \(tasks\.deleted\.max_disk_gb\)",
    }
    results = {}
    with control_node() as control, daemon(NodeFolder.make(tmp_path, control.url, node={"tasks": tasks})) as node:
        for kind, said in words.items():
            error, results[kind] = failed(control, control.add(kind))
            assert re.fullmatch(said, error)
            assert results[kind]["status"] in (-9, -15)
        assert control.settled(control.add("echo", {"n": 1}))["result"] == {"n": 1}
        until(lambda: not node.task_pids(), "no process")
        until(lambda: not any((tmp_path / "work").iterdir()), "no file")
        node.stop()
    assert results["memory"]["stderr"] == "here it comes"
    assert results["timeout"]["stderr"].endswith("about to hang \ufffd \ufffd now")
    assert len(results["timeout"]["stderr"]) <= 8192
    for said, detail in zip(words.values(), effects(node, "settle"), strict=False):
        assert re.fullmatch(f"failed: {said}", detail)
    assert effects(node, "hand_back") == []
    node.folder.replays_clean()


@pytest.mark.parametrize(
    ("own", "safety", "words"),
    [
        (None, 14, r"limit: VRAM 15 GiB, limit 14 GiB \(safety\.max_vram_gb\)"),
        (8, 14, r"limit: VRAM 15 GiB, limit 8 GiB \(tasks\.sleep\.max_vram_gb\)"),
        (20, 14, ""),
    ],
)
def test_a_task_over_its_vram(tmp_path: Path, standin: StandIn, own: float | None, safety: float, words: str) -> None:
    """The limit of others' VRAM holds for a task too, unless its type has one of its own."""
    with control_node() as control:
        settings = {"tasks": {"sleep": {"max_vram_gb": own}}, **ON_GPU}
        folder = NodeFolder.make(tmp_path / "node", control.url, {"safety": {"max_vram_gb": safety}}, settings, **QUICK)
        with daemon(folder, env=standin.env) as node:
            task = control.add("sleep")
            pid = node.wait_for_task()
            standin.shows(f"0.proc={pid}:{15 * GIB}:c", f"0.mem_used={15 * GIB}")
            if words:
                error, result = failed(control, task)
                assert re.fullmatch(words, error)
                assert result == {"status": -9}
                assert effects(node, "hand_back") == []
            else:
                until(lambda: (node.ask()["task_usage"] or {}).get("vram_gb") == 15, lambda: f"15 GiB, not {node.ask()}")
                assert node.state() == "RUNNING"
            standin.shows()
            node.stop()
        folder.replays_clean()


def test_a_task_on_a_gpu_that_is_not_lent(tmp_path: Path, standin: StandIn) -> None:
    """It was told which one it has, and sits on the person's all the same."""
    with control_node() as control:
        settings = {"gpu": {"presence": "required", "lend": ["GPU-fake-1"]}}
        standin.shows("count=2")
        with daemon(NodeFolder.make(tmp_path / "node", control.url, node=settings, **QUICK), env=standin.env) as node:
            task = control.add("sleep")
            pid = node.wait_for_task()
            told = dict(entry.split("=", 1) for entry in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in entry)
            assert (told["CUDA_VISIBLE_DEVICES"], told["NVIDIA_VISIBLE_DEVICES"]) == ("GPU-fake-1", "GPU-fake-1")
            standin.shows("count=2", f"0.proc={pid}:{20 * GIB}:c", f"0.mem_used={20 * GIB}", "0.util=99")
            assert failed(control, task) == ("limit: GPU GPU-fake-0, which is not lent (gpu.lend)", {"status": -9})
            standin.shows("count=2")
            node.stop()
        node.folder.replays_clean()


def held(node: Daemon, reason: str) -> dict[str, dict[str, Any]]:
    """The guards by name, once one says that VRAM is held."""

    def look() -> Any:
        guards = {guard["name"]: guard for guard in node.look().get("guards", [])}
        return guards if guards.get("task_gone", {}).get("reason", "") == reason else None

    guards: dict[str, dict[str, Any]] = until(look, lambda: f"held VRAM, not {node.look()}")
    return guards


@contextlib.contextmanager
def at_work(place: Path, standin: StandIn, vram_release_s: float) -> Iterator[tuple[ControlNode, Daemon, str, int]]:
    """A control node and a daemon with a task that works until it is told to end: these, the task's id, its pid."""
    settings = {"tasks": UNTIL_TOLD, "work": {"run_minutes": 5}, **ON_GPU}
    quick = {**QUICK, "vram_release_s": vram_release_s}
    with (
        control_node() as control,
        daemon(NodeFolder.make(place, control.url, node=settings, **quick), env=standin.env) as node,
    ):
        task = control.add("work")
        yield control, node, task, node.wait_for_task()


@pytest.mark.parametrize("how", ["killed", "ended", "leaked"])
def test_held_vram_keeps_the_node_from_working_until_it_is_free(tmp_path: Path, standin: StandIn, how: str) -> None:
    release_s = 5 if how == "leaked" else 0.6  # the driver must have forgotten it by then
    with at_work(tmp_path / "node", standin, vram_release_s=release_s) as (control, node, task, pid):
        folder = node.folder
        standin.shows(f"0.proc={pid}:{2 * GIB}:c", f"0.mem_used={3 * GIB}", "0.mem_reserved=0")
        until(lambda: (node.ask()["task_usage"] or {}).get("vram_gb") == 2, "its VRAM")
        if how == "killed":
            folder.cli("pause")
            error, _ = failed(control, task)
            assert error.startswith("preempted: paused")
            folder.cli("resume")
        else:
            if how == "leaked":  # the driver forgets the process, and keeps its memory
                threading.Thread(target=leak, args=(node, standin)).start()
            next((folder.path / "work").glob("task-*")).joinpath("end").touch()
            assert control.settled(task)["status"] == "COMPLETED"
        whose = "by no listed process" if how == "leaked" else f"by pid {pid}, which is gone"
        reason = f"VRAM is still held after the task: 2 GiB {whose}"
        guards = held(node, reason)
        print(f"  {how}: {reason}")
        assert [guards[name]["ok"] for name in ("task_gone", "gpu_free", "user_away")] == [False, False, True]
        assert guards["task_gone"]["reason"] == guards["gpu_free"]["reason"] == reason
        assert reason in " ".join(node.folder.cli("why").stdout.split())
        waiting = control.add("echo")
        assert node.state() in ("DISABLED", "COOLDOWN")
        standin.shows()
        assert control.settled(waiting)["status"] == "COMPLETED", "it recovers by itself"
        node.stop()
        said = effects(node, "stop" if how == "killed" else "settle")
        print(f"  journal: {said[0]}")
        assert re.search(rf"VRAM still held after [0-9]+ ms: 2 GiB {whose}", said[0])
        folder.replays_clean()


def leak(node: Daemon, standin: StandIn) -> None:
    until(lambda: not node.task_pids(), "the task's end")
    standin.shows(f"0.mem_used={3 * GIB}", "0.mem_reserved=0")


@pytest.mark.parametrize("how", ["stopped", "ended"])
def test_the_journal_says_when_the_vram_was_free(tmp_path: Path, standin: StandIn, how: str) -> None:
    """A driver that takes a moment; the next task waits for it."""
    with at_work(tmp_path / "node", standin, vram_release_s=20) as (control, node, task, pid):
        folder = node.folder
        standin.shows(f"0.proc={pid}:{2 * GIB}:c", f"0.mem_used={2 * GIB}")
        until(lambda: (node.ask()["task_usage"] or {}).get("vram_gb") == 2, "its VRAM")

        def give_back() -> None:
            until(lambda: not node.task_pids(), "the task's end")
            threading.Event().wait(1.2)
            standin.shows()

        driver = threading.Thread(target=give_back)
        driver.start()
        if how == "stopped":
            folder.cli("pause", "1s")
        else:
            next((folder.path / "work").glob("task-*")).joinpath("end").touch()
        control.settled(task)
        driver.join()
        assert control.settled(control.add("echo"))["status"] == "COMPLETED"
        node.stop()
        said = effects(node, "stop" if how == "stopped" else "settle")[0]
        print(f"  {how}: {said}")
        found = re.search(r"VRAM free after ([0-9]+) ms$", said)
        assert found, said
        assert int(found[1]) >= 200
        folder.replays_clean()


def stopped(pid: int) -> bool:
    """It is frozen, by signal or in its cgroup."""
    try:
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "tT":
            return True
        place = re.search(r"0::(.*)", Path(f"/proc/{pid}/cgroup").read_text())
        orders = [Path(f"/sys/fs/cgroup{at}{place[1] if place else '/'}/cgroup.freeze") for at in ("", "/unified")]
        return any(order.read_text().strip() == "1" for order in orders if order.exists())
    except OSError:
        return False


def test_gpu_use_is_held_under_its_limit_and_a_frozen_task_yields_at_once(tmp_path: Path, standin: StandIn) -> None:
    with control_node() as control:
        settings = {"tasks": {"sleep": {"grace_sec": 60}}, **ON_GPU}
        folder = NodeFolder.make(tmp_path / "node", control.url, {"safety": {"max_gpu_percent": 40}}, settings, **QUICK)
        with daemon(folder, env=standin.env) as node:
            task = control.add("sleep")
            pid = node.wait_for_task()
            standin.shows(f"0.proc={pid}:{GIB}:c", f"0.mem_used={GIB}", f"0.putil={pid}:100")
            until(lambda: stopped(pid), "the first pause")
            began_s, paused_s, at_s = time.monotonic(), 0.0, time.monotonic()
            while (now_s := time.monotonic()) - began_s < 8:
                paused_s += (now_s - at_s) if stopped(pid) else 0.0
                at_s = now_s
                time.sleep(0.01)
            percent = 100 * (1 - paused_s / (at_s - began_s))
            usage = node.ask()["task_usage"]
            note = next(note for note in node.ask()["notes"] if "GPU use" in note)
            print(f"  limit 40 %, ran {percent:.1f} % of the time; status: {usage['mean_gpu_percent']} %; {note}")
            print("  " + next(line for line in folder.cli("status").stdout.splitlines() if line.startswith("it uses")))
            assert 15 < percent < 60  # how closely is a matter of the machine's pauses too
            assert usage["mean_gpu_percent"] < 60
            assert note.startswith("the task's GPU use is held to 40 % (safety.max_gpu_percent): ")
            assert node.state() == "RUNNING"
            until(lambda: not stopped(pid), "it goes on")
            until(lambda: stopped(pid), "it pauses again")
            began_s = time.monotonic()
            node.ask("pause", until=None)
            until(lambda: not Path(f"/proc/{pid}").exists(), "it is gone")
            print(f"  frozen, then gone {1000 * (time.monotonic() - began_s):.0f} ms after the word")
            standin.shows()
            assert control.settled(task)["error"].startswith("preempted: ")
            node.stop()
        print(f"  journal: {effects(node, 'stop')[0]}")
        assert "held to 40 %" in effects(node, "stop")[0]
        folder.replays_clean()


def test_a_task_under_the_limit_is_never_paused(tmp_path: Path, standin: StandIn) -> None:
    """Also where the driver does not tell one process's load from another's."""
    with control_node() as control:
        folder = NodeFolder.make(tmp_path / "node", control.url, {"safety": {"max_gpu_percent": 40}}, ON_GPU, **QUICK)
        with daemon(folder, env=standin.env) as node:
            task = control.add("sleep")
            pid = node.wait_for_task()
            standin.shows(f"0.proc={pid}:{GIB}:c", f"0.mem_used={GIB}", "0.util=39")
            until(lambda: (node.ask()["task_usage"] or {}).get("gpu_percent") == 39, "its load")
            began_s = time.monotonic()
            while time.monotonic() - began_s < 2:
                assert not stopped(pid)
                time.sleep(0.02)
            standin.shows(f"0.proc={pid}:{GIB}:c", f"0.mem_used={GIB}", "0.util=90")
            until(lambda: stopped(pid), "its first pause")
            standin.shows()
            node.ask("pause", until=None)
            control.settled(task)
            node.stop()
