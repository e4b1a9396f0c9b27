"""The running daemon, a logind of ours, an agent's word and a real terminal that say otherwise: present, and told once."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.login1 import FakeLogin1, PrivateBus, session
from support.running import NodeFolder, daemon, until

pytestmark = pytest.mark.slow

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


def test_a_terminal_is_used_while_the_desktop_is_idle(tmp_path: Path) -> None:
    folder = NodeFolder.make(
        tmp_path / "n", runtime={"safety": {"detect_active_user": True, "idle_required_minutes": 0.15}},
        node={"presence": {"ignore_inhibitors": ["Film"]}},
    )
    with logind(tmp_path) as (address, _):
        folder.environment["DBUS_SYSTEM_BUS_ADDRESS"] = address
        with daemon(folder) as node:
            node.wait_up()
            agent = Agent(folder.path / "run")
            agent.says(3600.0, "Film")
            until(lambda: node.ask()["presence"][1]["details"], "the agent's word")
            master, slave = os.openpty()
            name = os.ttyname(slave).removeprefix("/dev/")
            try:
                os.write(master, b"x\n")
                os.read(slave, 10)
                until(lambda: node.ask()["contradictions"], "the contradiction")
                until(lambda: [line for line in folder.journal() if "presence" in line], "its line")
            finally:
                os.close(slave)
                os.close(master)
            why = folder.cli("why").stdout
            assert f"session agent ({MUTTER}) says nobody at graphical session 3 of anna for 1 h, but terminals says" in why
            assert f"user active on {name}" in why
            assert "idle blocked by Film of anna (session 3), for" in why
            assert "not counted: presence.ignore_inhibitors" in why
            until(lambda: not node.ask()["contradictions"], "the end of it")
            until(lambda: len([line for line in folder.journal() if "presence" in line]) == 2, "the line of its end")
            told = [line for line in folder.journal() if "presence" in line]
            assert [line["kind"] for line in told] == ["alive", "alive"]
            assert told[0]["presence"].startswith("contradiction: session agent")
            assert told[1]["presence"].startswith("contradiction over: session agent")
            assert node.said.count("presence: contradiction: ") == 1
            node.wait_for("READY")
            sources = json.loads(folder.cli("why", "--json").stdout)["presence"]
            quality = {source["source"]: source["quality"] for source in sources}
            assert (quality["logind"], quality["session agents"], quality["idle_detect"]) == ("event", "event", "unknown")
            agent.says("active")
            node.wait_for("IDLE_WAIT")
            assert "nobody" not in node.ask()["reason"]
            assert node.stop() == 0
    folder.replays_clean()
