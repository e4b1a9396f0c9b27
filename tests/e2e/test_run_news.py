"""The daemon's news for the people at the desk: what a session agent gets over its stream of reports."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from support.running import NodeFolder, control_node, daemon

from supervisor.sensors.session_agent.desk import View

pytestmark = pytest.mark.slow
REPORT = {"v": 1, "tell": "presence", "sessions": []}


def test_a_stream_that_listens_hears_of_each_change_once_and_another_of_none(tmp_path: Path) -> None:
    with control_node() as control:
        task = {"brief": {"argv": ["/bin/sh", "-c", "sleep 1; echo '{}'"], "sandbox": "none"}}
        folder = NodeFolder.make(tmp_path / "n", control.url, node={"tasks": task, "work": {"run_minutes": 0}})
        with daemon(folder) as node:
            node.wait_for("READY")
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(str(folder.path / "run/control.sock"))
                peer.settimeout(30)
                lines = peer.makefile("rb")
                peer.sendall(json.dumps(REPORT | {"listen": True}).encode() + b"\n")
                assert json.loads(lines.readline())["ok"] is True

                def until_it_is(state: str) -> View:
                    while (view := View.of(json.loads(lines.readline())["news"])).state != state:
                        seen.append(view)
                    seen.append(view)
                    return view

                seen: list[View] = []
                first = until_it_is("READY")
                assert (first.tasks, first.lent_s, first.paused, first.lent_to) == (0, 0.0, False, "127.0.0.1")
                control.settled(control.add("brief"))
                lent, over = until_it_is("RUNNING"), until_it_is("COOLDOWN")
                assert (lent.tasks, lent.task, lent.lent_from_s is not None) == (1, "brief", True)
                assert over.lent_from_s is None
                assert 0.9 < over.lent_s < 30
                assert folder.cli("pause", "2h").returncode == 0
                paused = until_it_is("DISABLED")
                assert (paused.paused, paused.paused_until is not None) == (True, True)
                assert len(seen) == len(set(seen))
                assert len(seen) < 12
            with socket.socket(socket.AF_UNIX) as old:  # an agent of the version before
                old.connect(str(folder.path / "run/control.sock"))
                old.settimeout(1)
                old.sendall(json.dumps(REPORT).encode() + b"\n")
                lines = old.makefile("rb")
                assert json.loads(lines.readline())["ok"] is True
                assert folder.cli("resume").returncode == 0
                with pytest.raises(TimeoutError):
                    lines.readline()
