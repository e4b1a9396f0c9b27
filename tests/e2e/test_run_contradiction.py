"""The running daemon, a logind of ours, and an agent's word against a game's: present, and told once at each end.

Terminals are left out: this machine's own are used by whoever works on it (tests/sensors/test_conflicts.py has them).
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.login1 import FakeLogin1, PrivateBus, session
from support.nvml_standin import GIB, StandIn, nvml_library, standin
from support.running import NodeFolder, daemon
from support.waiting import until

pytestmark = pytest.mark.slow
__all__ = ["nvml_library", "standin"]

MUTTER = "Mutter idle monitor"


class Agent:
    """What a session agent says over the control socket, as the owner of session 3."""

    def __init__(self, runtime: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(str(runtime / "control.sock"))
        self._first = True

    def says(self, idle: float | str, *inhibitors: str) -> None:
        report = {"id": "3", "source": MUTTER, "idle": idle, "inhibitors": list(inhibitors), "why": ""}
        line: dict[str, Any] = {"v": 1, "sessions": [report], "terminals": None}
        if self._first:
            line["tell"] = "presence"
        self._first = False
        self._socket.sendall(json.dumps(line).encode() + b"\n")


@contextmanager
def logind(folder: Path) -> Iterator[tuple[str, Any]]:
    """The address of a bus with a logind, on which session 3 is ours; and what does something in its loop."""
    with PrivateBus(folder) as bus:
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()

        def do(work: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(work, loop).result(10)

        async def make() -> FakeLogin1:
            fake = await FakeLogin1(bus.address).start()
            fake.sessions["/s/3"] = session(User=(os.getuid(), "/u"), Name="anna")
            return fake

        do(make())
        yield bus.address, do
        loop.call_soon_threadsafe(loop.stop)


def test_a_game_runs_while_the_desktop_is_idle(tmp_path: Path, standin: StandIn) -> None:
    folder = NodeFolder.make(
        tmp_path / "n", runtime={"safety": {"detect_active_user": True, "idle_required_minutes": 0.15}},
        node={
            "presence": {
                "ignore_inhibitors": ["Film"], "ignore_commands": ["Xvfb"], "terminals": False, "input": "off",
            },  # Xvfb: other tests' displays
        },
        look_interval_s=0.2,
    )
    with logind(tmp_path) as (address, _), subprocess.Popen(["sleep", "1000"]) as game:
        folder.environment["DBUS_SYSTEM_BUS_ADDRESS"] = address
        standin.shows(f"0.proc={game.pid}:{GIB}:g")
        try:
            with daemon(folder) as node:
                node.wait_up()
                agent = Agent(folder.path / "run")
                agent.says(3600.0, "Film")
                until(lambda: MUTTER in str(node.ask()["presence"]), "the agent's word")
                until(lambda: node.ask()["contradictions"], "the contradiction")
                until(lambda: told(folder), "its line")
                why = " ".join(folder.cli("why", "--all").stdout.split())
                assert f"session agent ({MUTTER}) says nobody at graphical session 3 of anna for 1 h, but NVML says" in why
                assert f"GPU used by sleep (pid {game.pid})" in why
                assert "idle blocked by Film of anna (session 3), for" in why
                assert "not counted: presence.ignore_inhibitors" in why
                standin.shows()
                until(lambda: not node.ask()["contradictions"], "the end of it", 40.0)
                until(lambda: len(told(folder)) == 2, "the line of its end")
                began, ended = told(folder)
                assert (began["kind"], ended["kind"]) == ("alive", "alive")
                assert began["presence"].startswith("contradiction: session agent")
                assert ended["presence"].startswith("contradiction over: session agent")
                assert node.said.count("presence: contradiction: ") == 1
                node.wait_for("READY", 40.0)
                sources = json.loads(folder.cli("why", "--json").stdout)["presence"]
                assert {source["source"]: source["quality"] for source in sources} == {
                    "logind": "assumed", "session agents": "event", "displays and remote logins": "polled",
                    "gpu processes": "polled",
                }
                agent.says("active")
                node.wait_for("IDLE_WAIT")
                assert f"({MUTTER})" in node.ask()["reason"]
                assert node.stop() == 0
        finally:
            game.kill()
    folder.replays_clean()


def told(folder: NodeFolder) -> list[dict[str, Any]]:
    """The journal's lines about contradictions."""
    return [line for line in folder.journal() if "presence" in line]
