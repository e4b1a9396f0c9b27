"""Whole lives of the node: a real daemon, a real control node, real tasks, told by journal, status and the control node."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from support.running import NodeFolder, control_node, daemon
from support.waiting import until

pytestmark = pytest.mark.slow

GUARDS = [
    "automation_on", "user_away", "gpu_free", "cpu_free", "host_fit", "task_claimed", "task_over", "task_gone", "cooldown_over",
]
GUARD_KEYS = {"name", "ok", "reason", "value", "limit", "unit", "source", "age_s", "wait_s"}


def test_one_task_tells_its_story_in_five_decisions(tmp_path: Path) -> None:
    with control_node() as control, daemon(NodeFolder.make(tmp_path, control.url)) as node:
        node.wait_for("READY")
        task = control.settled(control.add("echo", {"n": 1}))
        assert (task["status"], task["result"], task["error"]) == ("COMPLETED", {"n": 1}, None)
        story = ["switched-on", "safe", "task-claimed", "task-ended", "cooled-down"]
        until(lambda: node.folder.rows()[:5] == story, f"five decisions, not {node.folder.rows()}")
        assert node.stop() == 0
    lines = [line for line in node.said.splitlines() if "→" in line]
    assert lines[:3] == [
        "DISABLED → IDLE_WAIT: switched-on",
        "IDLE_WAIT → READY: safe",
        f"READY → RUNNING: task-claimed (echo {task['id'][:8]}…)",
    ]
    assert lines[3] == f"RUNNING → COOLDOWN: task-ended (echo {task['id'][:8]}…)"
    assert lines[4] == "COOLDOWN → IDLE_WAIT: cooled-down"
    assert f"link: delivered echo {task['id'][:8]}…" in node.said.splitlines()
    assert lines[-1].endswith("DISABLED: switched-off: the node is stopping (SIGTERM)")
    assert "{" not in node.said
    effects = [line["effect"] for line in node.folder.journal() if line["kind"] == "effect"]
    assert effects == ["inhibit", "start", "settle", "wipe", "release"]
    for decision in node.folder.decisions():
        assert [g["name"] for g in decision["guards"]] == GUARDS
        assert all(set(g) == GUARD_KEYS for g in decision["guards"])
        assert {"v", "kind", "time", "boot_s", "from", "row", "to", "guards", "task", "observation"} <= set(decision)
    node.folder.replays_clean()


def test_the_reason_after_a_row_is_what_fired_it(tmp_path: Path) -> None:
    folder = NodeFolder.make(tmp_path, runtime={"execution": {"task_timeout_minutes": 0.02}})
    with control_node() as control:
        folder.write(node={"control": {"url": control.url}})
        with daemon(folder) as node:
            task = control.settled(control.add("sleep"))
            assert task["status"] == "FAILED"
            assert task["error"].startswith("timeout: ")
            until(lambda: "timed-out" in folder.rows(), "timed-out")
            assert not node.task_pids()
            node.stop()
    reasons = {d["row"]: d["reason"] for d in folder.decisions()}
    assert reasons["switched-on"] == reasons["safe"] == reasons["task-claimed"] == ""
    assert "at most 1 s" in reasons["timed-out"]
    assert "stopping" in reasons["switched-off"]
    folder.replays_clean()


def test_a_type_has_a_tighter_limit_of_its_own(tmp_path: Path) -> None:
    with control_node() as control:
        node_yaml = {"tasks": {"sleep": {"timeout_minutes": 0.01}}}
        with daemon(NodeFolder.make(tmp_path, control.url, node=node_yaml)):
            assert control.settled(control.add("sleep"))["error"].startswith("timeout: ")


def test_an_unknown_type_fails_and_names_the_known_ones(tmp_path: Path) -> None:
    with control_node() as control, daemon(NodeFolder.make(tmp_path, control.url)) as node:
        task = control.settled(control.add("render"))
        assert task["status"] == "FAILED"
        assert all(word in task["error"] for word in ("'render'", "echo", "fail", "sleep"))
        node.stop()
    node.folder.replays_clean()


def test_the_next_task_is_taken_in_the_same_stay(tmp_path: Path) -> None:
    folder = NodeFolder.make(tmp_path, node={"work": {"run_minutes": 5}})
    with control_node() as control:
        folder.write(node={"control": {"url": control.url}})
        tasks = [control.add(kind) for kind in ("echo", "fail", "echo")]
        with daemon(folder) as node:
            done = [control.settled(task)["status"] for task in tasks]
            assert done == ["COMPLETED", "FAILED", "COMPLETED"]
            node.wait_for("READY")
            rows = folder.rows()
            assert rows.count("task-claimed") == 1
            assert (rows.count("next-task"), rows.count("task-settled")) == (2, 3)
            node.stop()
    folder.replays_clean()


def test_a_pause_gives_the_task_back_and_it_runs_again(tmp_path: Path) -> None:
    with control_node() as control, daemon(NodeFolder.make(tmp_path, control.url)) as node:
        task = control.add("sleep", {"n": 7})
        pid = node.wait_for_task()
        assert node.folder.cli("pause").stdout == "paused, until `rae-node resume`\n"
        node.wait_for("DISABLED")
        until(lambda: not os.path.exists(f"/proc/{pid}"), "the process is gone")
        first = control.settled(task)
        assert (first["status"], first["error"].split(":")[0]) == ("FAILED", "preempted")
        again = first["error"].rpartition(" ")[2]
        assert control.task(again)["payload"] == {"n": 7}
        assert control.task(again)["status"] == "PENDING"
        status = json.loads(node.folder.cli("status", "--json").stdout)
        assert status["paused_until"] == "until resumed"
        assert node.folder.cli("resume").stdout == "the node is on\n"
        until(lambda: control.task(again)["status"] == "PROCESSING", "it runs again")
        node.wait_for_task()
        node.stop()
    assert list((node.folder.path / "work").iterdir()) == []
    node.folder.replays_clean()


def test_a_pause_survives_a_restart_and_ends_by_itself(tmp_path: Path) -> None:
    with control_node() as control:
        folder = NodeFolder.make(tmp_path, control.url)
        with daemon(folder) as node:
            node.wait_for("READY")
            assert folder.cli("pause", "1h").returncode == 0
            node.wait_for("DISABLED")
            node.stop()
        with daemon(folder) as node:
            until(lambda: folder.rows().count("switched-off") == 1 and node.state(), "started again")
            assert node.ask()["reason"].startswith("paused until ")
            assert folder.cli("pause", "1s").returncode == 0
            node.wait_for("READY")
            assert node.ask()["paused_until"] is None
            assert folder.cli("pause", "until", "00:00").returncode == 0
            assert node.ask()["paused_until"].startswith("20")
            node.stop()
        folder.replays_clean()


def test_status_and_why_say_everything_under_stable_keys(tmp_path: Path) -> None:
    with control_node() as control, daemon(NodeFolder.make(tmp_path, control.url)) as node:
        task = control.add("sleep")
        node.wait_for_task()
        status = json.loads(node.folder.cli("status", "--json").stdout)
        assert {"state", "since", "reason", "guards", "task", "paused_until", "source", "version"} <= set(status)
        assert status["state"] == "RUNNING"
        assert status["task"] == {"id": task, "type": "sleep", "phase": "running"}
        assert status["paused_until"] is None
        assert [g["name"] for g in status["guards"]] == GUARDS
        assert all(set(g) == GUARD_KEYS for g in status["guards"])
        plain = node.folder.cli("status")
        assert plain.returncode == 0
        assert plain.stdout.startswith(f"RUNNING: sleep {task} for ")
        why = node.folder.cli("why")
        assert why.returncode == 0
        assert why.stdout.rstrip().endswith("nothing blocks it")
        assert {"state", "reason", "guards"} <= set(json.loads(node.folder.cli("why", "--json").stdout))
        assert "\x1b" not in plain.stdout + why.stdout


def test_no_lock_no_task_and_status_says_how_to_mend_it(tmp_path: Path) -> None:
    folder = NodeFolder.make(tmp_path, node={"host": {"inhibitor": "required"}, "presence": {"sessions": False}})
    with control_node() as control:
        folder.write(node={"control": {"url": control.url}})
        with daemon(folder) as node:
            task = control.settled(control.add("echo"))
            assert task["error"].startswith("preempted: ")
            until(lambda: "no task can start" in node.ask()["reason"], "a veto")
            status = node.ask()
            assert status["state"] == "READY"
            assert "system bus" in status["reason"]
            effects = [(e["effect"], e["ok"]) for e in folder.journal() if e["kind"] == "effect"]
            assert effects[:2] == [("inhibit", False), ("hand_back", True)]
            # it does not go on taking tasks that it can only give back
            more = control.add("echo")
            vetoes = [d for d in folder.decisions() if d["row"] == "task-claimed"]
            time.sleep(1.0)
            assert len([d for d in folder.decisions() if d["row"] == "task-claimed"]) == len(vetoes) == 1
            # mended, it does not wait for the pause to be over
            folder.write(node={"host": {"inhibitor": "none"}})
            again = task["error"].rpartition(" ")[2]
            assert control.settled(again)["status"] == control.settled(more)["status"] == "COMPLETED"
            node.stop()
    folder.replays_clean()


def test_a_result_waits_for_a_control_node_that_is_away(tmp_path: Path) -> None:
    slow = ["/bin/sh", "-c", f"cat; while ! test -e {tmp_path}/end; do sleep 0.05; done"]
    folder = NodeFolder.make(tmp_path, node={"tasks": {"slow": {"argv": slow, "sandbox": "none"}}})
    with control_node() as control:
        folder.write(node={"control": {"url": control.url}})
        with daemon(folder) as node:
            control.add("slow", {"n": 1})
            node.wait_for_task()
            os.kill(control.process.pid, 19)  # SIGSTOP: it takes connections and says nothing
            (tmp_path / "end").touch()
            until(lambda: node.ask()["source"]["outbox"] == 1, "the result is in the outbox")
            # a change of the configuration does not lose it
            folder.write(runtime={"execution": {"heartbeat_interval_sec": 0.4}})
            until(lambda: any("takes effect" in note for note in node.ask()["notes"]), "the change waits")
            os.kill(control.process.pid, 18)
            until(lambda: not any("takes effect" in note for note in node.ask()["notes"]), "the change is taken over", 30)
            assert node.ask()["source"]["outbox"] == 0
            node.wait_for("READY")
    folder.replays_clean()
