"""The timeline of a real life: a daemon runs a task that ends and one that is stopped, and the commands tell of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.running import NodeFolder, control_node, daemon
from support.waiting import until

from supervisor.tools.history.timeline.reader import load

pytestmark = pytest.mark.slow


def test_the_journal_of_a_real_node_is_drawn(tmp_path: Path) -> None:
    folder = NodeFolder.make(tmp_path, node={"tasks": {"nap": {"argv": ["/bin/sh", "-c", "sleep 2; echo {}"]}}})
    with control_node() as control:
        folder.write(node={"control": {"url": control.url}})
        with daemon(folder) as node:
            node.wait_for("READY")
            nap = control.add("nap")
            assert control.settled(nap)["status"] == "COMPLETED"
            control.add("sleep")
            until(node.task_pids, "the second task runs")
            until(lambda: node.state() == "RUNNING", "RUNNING")
            assert node.stop() == 0
    logs = folder.path / "logs"
    told = load([logs], 7)
    tasks = {task.type: task for task in told.tasks}
    assert tasks["nap"].outcome == "done"
    assert tasks["nap"].id == nap
    assert 1.5 < tasks["nap"].end - tasks["nap"].begin < 25
    assert (tasks["sleep"].outcome, tasks["sleep"].row) == ("handed back", "switched-off")
    assert {"RUNNING", "COOLDOWN", "IDLE_WAIT"} <= {span.state for span in told.spans}
    assert told.left_out == 0
    assert [mark.kind for mark in told.marks if mark.kind in ("start", "stop")] == ["start", "stop"]
    shown = folder.cli("timeline")
    assert shown.returncode == 0, shown.stderr
    assert "Tasks done                1" in shown.stdout
    drawn = folder.cli("timeline", "--out", str(tmp_path / "week.html"))
    assert (drawn.returncode, drawn.stderr) == (0, "")
    page = (tmp_path / "week.html").read_text()
    assert str(tmp_path) not in page
    assert f"nap {nap[:8]}…" in page
    asked = folder.cli("whatif", "--set", "safety.cooldown_minutes=5")
    assert asked.returncode == 0, asked.stderr
