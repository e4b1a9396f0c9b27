"""`pause --after-task`: the task in hand finishes, no other begins, then the node is paused; also over a restart."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.running import NodeFolder, control_node, daemon
from support.waiting import until

pytestmark = pytest.mark.slow


def waits_for(gate: Path) -> dict[str, object]:
    """A task that ends when this file is there."""
    wait = f"while [ ! -e {gate} ]; do sleep 0.02; done; echo '{{\"done\": true}}'"
    return {"argv": ["/bin/sh", "-c", wait], "sandbox": "none"}


def test_the_task_in_hand_finishes_and_no_other_begins(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with control_node() as control:
        folder = NodeFolder.make(
            tmp_path / "node", control.url, node={"tasks": {"gated": waits_for(gate)}, "work": {"run_minutes": 30}}
        )
        with daemon(folder) as node:
            node.wait_up()
            first, second = control.add("gated"), control.add("gated")
            node.wait_for_task()
            said = folder.cli("pause", "--after-task")
            words = "finishes the task in hand, takes no other, then pauses until `rae-node resume`"
            assert (said.returncode, said.stdout.strip()) == (0, words)
            assert node.look()["state"] == "RUNNING"
            assert words in node.look()["notes"]
            assert words in folder.cli("status").stdout
            assert node.look()["paused_until"] == "until resumed"
            gate.touch()
            node.wait_for("DISABLED")
            assert control.settled(first)["result"] == {"done": True}
            assert control.task(second)["status"] == "PENDING"
            assert node.look()["reason"] == "paused, until `rae-node resume`"
            assert words not in node.look()["notes"]
            assert folder.cli("resume").returncode == 0
            assert control.settled(second)["status"] == "COMPLETED"
        word = next(line for line in folder.journal() if line["kind"] == "operator")
        assert (word["word"], word["after_task"], word["until"]) == ("pause", True, "until resumed")
        folder.replays_clean()


def test_resume_takes_it_back(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with control_node() as control:
        folder = NodeFolder.make(tmp_path / "node", control.url, node={"tasks": {"gated": waits_for(gate)}})
        with daemon(folder) as node:
            node.wait_up()
            first = control.add("gated")
            node.wait_for_task()
            assert folder.cli("pause", "--after-task", "2h").stdout.startswith("finishes the task in hand, takes no other, ")
            assert folder.cli("resume").stdout.strip() == "the node is on"
            second = control.add("gated")
            gate.touch()
            assert control.settled(first)["status"] == control.settled(second)["status"] == "COMPLETED"


@pytest.mark.parametrize("how", ["kill", "nothing in hand"])
def test_it_is_paused_after_a_crash_or_at_once_without_a_task(tmp_path: Path, how: str) -> None:
    with control_node() as control:
        folder = NodeFolder.make(tmp_path / "node", control.url)
        with daemon(folder) as node:
            node.wait_for("READY")
            if how == "kill":
                task = control.add("sleep")
                node.wait_for_task()
            folder.cli("pause", "--after-task")
            if how == "kill":
                node.kill()
            else:
                node.wait_for("DISABLED")
                assert node.look()["reason"] == "paused, until `rae-node resume`"
        if how == "kill":
            with daemon(folder) as node:
                node.wait_up()
                until(lambda: node.look()["reason"] == "paused, until `rae-node resume`", "paused after the crash")
                assert control.settled(task)["status"] == "FAILED"
