"""What hangs outside never stops the loop: status stays answered, and the reading becomes unknown with its reason (R12)."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.login1 import FakeLogin1, PrivateBus, session
from support.nvml_standin import GIB, StandIn, nvml_library, standin
from support.ports import free_port
from support.running import Daemon, NodeFolder, control_node, daemon
from support.waiting import until

pytestmark = pytest.mark.slow
__all__ = ["nvml_library", "standin"]

ANSWER_S = 4.0  # a loop that waits for what hangs does not answer at all; a busy machine may take a moment


def answered(node: Daemon, condition: Callable[[dict[str, Any]], Any], what: str, timeout_s: float = 30.0) -> dict[str, Any]:
    """The first status that meets the condition; each answer came in time."""
    slowest_s = 0.0

    def look() -> dict[str, Any] | None:
        nonlocal slowest_s
        began_s = time.monotonic()
        status = node.ask()
        slowest_s = max(slowest_s, time.monotonic() - began_s)
        return status if condition(status) else None

    status: dict[str, Any] = until(look, lambda: f"{what}, but {node.look().get('status')}; {node.said}", timeout_s)
    assert slowest_s < ANSWER_S
    return status


def guard(status: dict[str, Any], name: str) -> dict[str, Any]:
    """One of the guards."""
    found: dict[str, Any] = next(g for g in status["guards"] if g["name"] == name)
    return found


def test_a_foreign_gpu_process_and_then_a_driver_that_hangs(tmp_path: Path, standin: StandIn) -> None:
    gpu, quick = {"gpu": {"presence": "required"}}, {"look_interval_s": 0.2, "max_age_gpu_s": 4}
    with control_node() as control, daemon(NodeFolder.make(tmp_path / "n", control.url, node=gpu, **quick)) as node:
        control.add("sleep")
        pid = node.wait_for_task()
        assert guard(node.ask(), "gpu_free")["ok"] is True
        game = subprocess.Popen(["sleep", "1000"])
        try:
            standin.shows(f"0.proc={game.pid}:{GIB}:g")
            answered(node, lambda s: "gpu-taken" in node.folder.rows(), "gpu-taken")
            until(lambda: not os.path.exists(f"/proc/{pid}"), "the task is gone")
            taken = next(d for d in node.folder.decisions() if d["row"] == "gpu-taken")
            assert "sleep" in taken["reason"]
        finally:
            game.kill()
            game.wait()
        standin.shows()
        node.wait_for_task()
        standin.shows("delay.nvmlDeviceGetMemoryInfo_v2=600000", "delay.nvmlDeviceGetMemoryInfo=600000")
        status = answered(node, lambda s: guard(s, "gpu_free")["ok"] is None, "GPU unknown")
        assert guard(status, "gpu_free")["reason"].startswith("GPU unknown: ")
        until(lambda: node.folder.rows().count("gpu-taken") == 2, "unknown preempts")
        assert node.stop() == 0
    node.folder.replays_clean()


class Logind:
    """The fake logind on a private bus, in a loop of its own."""

    def __init__(self, bus: PrivateBus) -> None:
        self.bus = bus
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.fake = self.do(self._make())

    async def _make(self) -> FakeLogin1:
        return await FakeLogin1(self.bus.address).start()

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    async def appear(self, path: str) -> None:
        self.fake.sessions[path] = session()
        await self.fake.emit(
            "/org/freedesktop/login1", "org.freedesktop.login1.Manager", "SessionNew", "so", "3", path
        )


@contextmanager
def logind(folder: Path) -> Iterator[Logind]:
    with PrivateBus(folder) as bus:
        there = Logind(bus)
        yield there
        there.loop.call_soon_threadsafe(there.loop.stop)


def on_the_bus(tmp_path: Path, url: str, there: Logind) -> NodeFolder:
    """A node that watches sessions and wants its lock."""
    folder = NodeFolder.make(
        tmp_path / "n", url, {"safety": {"detect_active_user": True}},
        {"host": {"inhibitor": "required"}, "presence": {"terminals": False, "ignore_commands": ["Xvfb"]}}, max_age_person_s=4,
    )
    folder.environment["DBUS_SYSTEM_BUS_ADDRESS"] = there.bus.address
    return folder


def test_the_lock_is_held_while_running_and_only_then(tmp_path: Path) -> None:
    with logind(tmp_path) as there, control_node() as control, daemon(on_the_bus(tmp_path, control.url, there)) as node:
        block = lambda: sorted(lock[0] for lock in there.fake.locks() if lock[3] == "block")  # noqa: E731
        node.wait_for("READY")
        assert block() == []
        control.add("sleep")
        pid = node.wait_for_task()
        assert block() == ["idle", "sleep"]
        assert node.ask()["inhibitor"] == "held"
        there.do(there.appear("/org/freedesktop/login1/session/_33"))
        until(lambda: not os.path.exists(f"/proc/{pid}"), lambda: f"the task is gone; {node.said}")
        until(lambda: block() == [], "the locks are released")
        row = next(d for d in node.folder.decisions() if d["row"] == "user-returned")
        assert "anna" in row["reason"]
        status = answered(node, lambda s: s["state"] == "IDLE_WAIT", "IDLE_WAIT")
        assert not guard(status, "user_away")["ok"]
        assert node.stop() == 0
    node.folder.replays_clean()


def test_a_refused_lock_keeps_the_task_from_starting(tmp_path: Path) -> None:
    with logind(tmp_path) as there:
        there.fake.refused_kinds = {"idle"}
        with control_node() as control, daemon(on_the_bus(tmp_path, control.url, there)) as node:
            assert control.settled(control.add("echo"))["error"].startswith("preempted: the sleep inhibitor was refused")
            status = answered(node, lambda s: "no task can start" in s["reason"], "the veto")
            assert "host.inhibitor" in status["reason"]
            until(lambda: all(lock[3] == "delay" for lock in there.fake.locks()), "what had been taken is released")
            node.stop()


def test_a_bus_that_hangs_makes_the_person_unknown(tmp_path: Path) -> None:
    with logind(tmp_path) as there, control_node() as control, daemon(on_the_bus(tmp_path, control.url, there)) as node:
        control.add("sleep")
        pid = node.wait_for_task()
        assert there.bus._process
        os.kill(there.bus._process.pid, signal.SIGSTOP)
        try:
            status = answered(node, lambda s: guard(s, "user_away")["ok"] is None, "user unknown", 30)
            assert guard(status, "user_away")["reason"].startswith("user unknown: ")
            until(lambda: "user-returned" in node.folder.rows(), "unknown preempts")
            until(lambda: not os.path.exists(f"/proc/{pid}"), "the task is gone")
            assert node.stop() == 0
        finally:
            os.kill(there.bus._process.pid, signal.SIGCONT)
    node.folder.replays_clean()


def test_a_control_node_that_never_answers(tmp_path: Path) -> None:
    timeouts = {"connect_timeout_s": 0.5, "read_timeout_s": 0.5, "total_timeout_s": 1}
    with control_node() as control, daemon(NodeFolder.make(tmp_path, control.url, **timeouts)) as node:
        node.wait_for("READY")
        os.kill(control.process.pid, signal.SIGSTOP)
        status = answered(node, lambda s: s["source"]["link"] == "down", "the link is down")
        assert status["source"]["reason"]
        answered(node, lambda s: s["state"] == "READY" and "no link" in s["reason"], "READY, and says so")
        began_s = time.monotonic()
        assert node.stop() == 0
        assert time.monotonic() - began_s < 12
    node.folder.replays_clean()


def test_given_up_for_good_until_resumed(tmp_path: Path) -> None:
    runtime, port = {"execution": {"retry_on_disconnect": False}}, free_port()
    with control_node(port) as control, daemon(NodeFolder.make(tmp_path, control.url, runtime)) as node:
        node.wait_for("READY")
        control.stop()
        status = answered(node, lambda s: s["state"] == "DISABLED", "a link given up is off")
        assert "retry_on_disconnect" in status["reason"]
        with control_node(port) as again:
            assert node.state() == "DISABLED"
            assert node.folder.cli("resume").returncode == 0
            assert again.settled(again.add("echo"))["status"] == "COMPLETED"
            node.stop()
    node.folder.replays_clean()
