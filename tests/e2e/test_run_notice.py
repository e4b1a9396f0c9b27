"""A task that saves its place goes back with it, and is resumed there: with the real daemon and control node (R6, R23)."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.running import NodeFolder, control_node, daemon
from support.task_programs import COUNTS
from support.waiting import until

pytestmark = pytest.mark.slow


def test_it_is_resumed_where_it_was(tmp_path: Path) -> None:
    task = {"argv": ["/usr/bin/python3", "-c", COUNTS], "notice": {"signal": "USR1", "deadline_sec": 20}, "grace_sec": 25}
    with control_node() as control:
        folder = NodeFolder.make(tmp_path / "node", control.url, node={"tasks": {"count": task}})
        with daemon(folder) as node:
            node.wait_for("READY")
            first = control.add("count", {"job": "j1"})
            node.wait_for_task()
            until(lambda: list((folder.path / "work").glob("*/up")), "it counts")
            assert folder.cli("pause").returncode == 0
            old = control.settled(first, 60)
            assert "resubmitted as" in old["error"]
            new = old["error"].rpartition("resubmitted as ")[2].split()[0].rstrip(".;,)")
            assert control.task(new)["payload"] == {"job": "j1", "rae_state": {"secret": "sentinel-4711", "at": 42}}
            assert folder.cli("resume").returncode == 0
            done = control.settled(new, 60)
            assert done["result"] == {"from": {"secret": "sentinel-4711", "at": 42}, "job": "j1"}
        told = [line["detail"] for line in folder.journal() if line.get("effect") == "hand_back"]
        assert told[0].endswith("; with the place that it has saved")
        for path in folder.path.rglob("*"):
            assert not path.is_file() or b"sentinel-4711" not in path.read_bytes(), path
