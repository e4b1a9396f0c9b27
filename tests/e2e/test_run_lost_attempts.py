"""A task that ends its node each time: two attempts at the real daemon, then it has failed, and the node goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support.running import NodeFolder, control_node, daemon
from support.waiting import until

from supervisor.sources.lost_attempts import GIVEN_UP, LOST_KEY, MAX_LOST

pytestmark = pytest.mark.slow

# It keeps what it was given. Then the test ends its node for it: what contains a task may keep it from that.
ENDS_ITS_NODE = 'cat > "$HOME/given"; mv "$HOME/given" "$RUNS/$RAE_TASK_ID"; sleep 1000'
SENT = {"n": 1, "text": "x"}


def test_a_task_that_ends_its_node_has_two_attempts(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    kind = {"argv": ["/bin/sh", "-c", ENDS_ITS_NODE], "env": {"RUNS": str(runs)}, "sandbox": "none"}
    runtime = {"safety": {"cooldown_minutes": 0.001}, "execution": {"poll_interval_sec": 0.2}}
    with control_node() as control:
        folder = NodeFolder.make(tmp_path, control.url, runtime, {"tasks": {"deadly": kind}})
        task = control.add("deadly", SENT, 3)
        names = [task]
        for attempt in range(MAX_LOST):
            with daemon(folder) as node:
                until(lambda: len(os.listdir(runs)) > attempt and node.task_pids(), "it runs")  # noqa: B023 - used at once
                node.kill()
                until(lambda: not node.task_pids(), "no process of it")
        with daemon(folder) as node:
            while (settled := control.settled(names[-1]))["error"] != GIVEN_UP:
                assert settled["error"].startswith("preempted: node restarted"), settled
                names.append(settled["error"].rpartition("resubmitted as ")[2])
            assert control.settled(control.add("echo"))["status"] == "COMPLETED", "the node goes on"
            node.stop()
        assert len(names) == MAX_LOST
        payloads = [control.task(name)["payload"] for name in names]
        assert payloads == [SENT, {**SENT, LOST_KEY: 1}]
        assert {name: json.loads((runs / name).read_text()) for name in os.listdir(runs)} == dict.fromkeys(names, SENT)
    assert not (tmp_path / "state/task.json").exists()
    folder.replays_clean()
