"""How the node ends: in order in every state, and not at all (kill -9)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.running import RAE_NODE, ControlNode, NodeFolder, control_node, daemon
from support.waiting import until

pytestmark = pytest.mark.slow

FORKS = ["/bin/sh", "-c", 'setsid sleep 1000 & (sleep 1000 &) ; echo x > "$HOME/half"; echo x > "$TMPDIR/more"; sleep 1000']
STATES: dict[str, tuple[dict[str, dict[str, object]], str]] = {
    "DISABLED": ({"automation": {"enabled": False}}, ""),
    "IDLE_WAIT": ({"safety": {"detect_active_user": True, "idle_required_minutes": 60}}, ""),
    "READY": ({}, ""),
    "RUNNING": ({}, "sleep"),
    "COOLDOWN": ({"safety": {"cooldown_minutes": 60}}, "echo"),
}


def node_status(control: ControlNode, folder: NodeFolder) -> list[str]:
    """The control node lists who is ONLINE."""
    return [n["node_id"] for n in control.call("GET", "/control/nodes")]


WAYS = [*((state, signal.SIGTERM) for state in STATES), ("READY", signal.SIGINT), ("RUNNING", signal.SIGINT)]


@pytest.mark.parametrize(("state", "number"), WAYS, ids=lambda value: getattr(value, "name", value))
def test_told_to_stop_it_stops_in_order_from_every_state(state: str, number: signal.Signals, tmp_path: Path) -> None:
    runtime, kind = STATES[state]
    with control_node() as control, daemon(NodeFolder.make(tmp_path, control.url, runtime)) as node:
        until(lambda: node.look().get("source", {}).get("link") == "up", "the link")
        task = control.add(kind) if kind else ""
        node.wait_for(state)
        if state == "RUNNING":
            node.wait_for_task()
        began_s = time.monotonic()
        assert node.stop(number) == 0, node.said
        assert time.monotonic() - began_s < 20
        assert not (tmp_path / "run/control.sock").exists()
        assert node_status(control, node.folder) == []
        last = node.folder.journal()[-1]
        assert (last["kind"], last["state"]) == ("stop", "DISABLED")
        if state == "RUNNING":
            settled = control.task(task)
            assert settled["status"] == "FAILED"
            assert "resubmitted as" in settled["error"]
            assert not (tmp_path / "state/task.json").exists()
    node.folder.replays_clean()


def test_the_answer_to_a_poll_in_flight_is_read_and_given_back(tmp_path: Path) -> None:
    with control_node() as control, daemon(NodeFolder.make(tmp_path, control.url)) as node:
        node.wait_for("READY")
        os.kill(control.process.pid, signal.SIGSTOP)
        until(lambda: (node.look().get("task") or {}).get("phase") == "asked", "a poll in flight")
        node.process.send_signal(signal.SIGTERM)
        node.wait_for("DISABLED")
        # the server wakes up, and hands out what was queued behind our back
        os.kill(control.process.pid, signal.SIGCONT)
        assert node.process.wait(15) == 0
    node.folder.replays_clean()


@pytest.fixture(params=["cgroup", "tree"])
def held_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], list[str]]:
    """How the task's processes are held; the prefix that makes a daemon fall back to the process tree."""
    if request.param == "cgroup":
        return list
    probe = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("no mount namespace to hide the cgroup file system in")
    hide = "for m in $(awk '$3 ~ /^cgroup/ {print $2}' /proc/mounts | sort -r); do umount -l $m; done; exec \"$@\""
    return lambda: ["unshare", "--mount", "--propagation", "private", "sh", "-c", hide, "sh"]


def test_killed_it_leaves_nothing_and_the_task_runs_elsewhere(tmp_path: Path, held_by: Callable[[], list[str]]) -> None:
    tasks = {"forks": {"argv": FORKS}}
    folder = NodeFolder.make(tmp_path, runtime={"safety": {"cooldown_minutes": 0.05}}, node={"tasks": tasks})
    with control_node() as control:
        folder.write(node={"control": {"url": control.url}})
        with daemon(folder, argv=[*held_by(), *RAE_NODE, "run"]) as node:
            task = control.add("forks", {"n": 1})
            node.wait_for_task()
            until(lambda: len(node.task_pids()) >= 3, "the whole tree")
            note = json.loads((tmp_path / "state/task.json").read_text())
            assert [set(entry) <= {"id", "type", "node", "repost", "lost", "over"} for entry in note["tasks"]] == [True]
            node.kill()
            until(lambda: not node.task_pids(), "no process of the task")
            until(lambda: not list((tmp_path / "work").iterdir()), "no work file")
        folder.write(runtime={"safety": {"cooldown_minutes": 60}})  # until it has been looked at
        with daemon(folder) as node:
            settled = control.settled(task)
            assert settled["error"].startswith("preempted: node restarted")
            start = [line for line in folder.journal() if line["kind"] == "start"][-1]
            assert start["memory"]["cooldown_from_s"] == pytest.approx(start["boot_s"], abs=10)
            node.wait_for("IDLE_WAIT")
            assert "cooldown_over" in node.ask()["blocked_by"]
            folder.write(runtime={"safety": {"cooldown_minutes": 0.05}})
            node.wait_for_task()  # resubmitted, it comes back
            at = {d["row"]: d["boot_s"] for d in folder.decisions()}
            assert at["safe"] - start["memory"]["cooldown_from_s"] >= 3
            node.stop()
    folder.replays_clean()


def test_a_tampered_journal_is_told(tmp_path: Path) -> None:
    with control_node() as control, daemon(NodeFolder.make(tmp_path, control.url)) as node:
        control.settled(control.add("echo"))
        node.stop()
    (journal,) = (tmp_path / "logs").glob("decisions-*.jsonl")
    text = journal.read_text()
    changes = {
        '"row": "safe"': '"row": "unsafe"',
        '"from": "READY"': '"from": "IDLE_WAIT"',
        '"task": "claimed"': '"task": "none"',
        '"state": "COOLDOWN"': '"state": "READY"',
        '"effects": ["inhibit", "start"]': '"effects": ["start"]',
    }
    for was, now in changes.items():
        assert was in text
        journal.write_text(text.replace(was, now, 1))
        told = node.folder.cli("replay", str(journal))
        assert told.returncode == 1, (was, told)
        assert "expected" in told.stdout


def test_secrets_reach_no_file_and_no_stream(tmp_path: Path) -> None:
    secret = "S3NT1NEL-9f2b"
    loud = {"argv": ["/bin/sh", "-c", f'cat >"$HOME/f"; echo {secret}-err >&2; echo "{{\\"r\\": \\"{secret}-out\\"}}"']}
    bad = {"argv": ["/bin/sh", "-c", f"cat; echo {secret}-err >&2; exit 3"], "env": {"TOKEN": f"{secret}-env"}}
    sleepy = {"argv": ["/bin/sh", "-c", f'cat >"$HOME/f"; echo {secret} >&2; sleep 1000'], "env": {"TOKEN": f"{secret}-env"}}
    folder = NodeFolder.make(tmp_path / "node", node={"tasks": {"loud": loud, "bad": bad, "sleepy": sleepy}})
    with control_node() as control:
        folder.write(node={"control": {"url": control.url}})
        with daemon(folder) as node:
            assert control.settled(control.add("loud", {"p": secret}))["result"] == {"r": f"{secret}-out"}
            assert control.settled(control.add("bad", {"p": secret}))["status"] == "FAILED"
            assert control.settled(control.add("unknown", {"p": secret}))["status"] == "FAILED"
            node.folder.cli("pause", "1s")
            control.add("sleepy", {"p": secret})
            node.wait_for_task()
            until(lambda: list((folder.path / "work").glob("*/f")), "the task's file")
            node.kill()
            until(lambda: not list((folder.path / "work").iterdir()), "no work file")
        files = [path for path in folder.path.rglob("*") if path.is_file() and path.name != "node.yaml"]
        assert {"decisions", "task"} <= {path.name.split("-")[0].split(".")[0] for path in files}
        assert [path for path in files if secret in path.read_text(errors="replace")] == []
        assert secret not in node.said


def tcp_or_udp(pid: int) -> list[str]:
    """The process's own internet sockets that listen, or wait for datagrams."""
    inodes = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = []
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in inodes and (table.startswith("udp") or fields[3] == "0A"):
                found.append(f"{table} {fields[1]}")
    return found


def test_it_listens_on_no_port_in_any_state(tmp_path: Path) -> None:
    for state, (runtime, kind) in STATES.items():
        with control_node() as control, daemon(NodeFolder.make(tmp_path / state, control.url, runtime)) as node:
            if kind:
                control.add(kind)
            node.wait_for(state)
            for _ in range(20):
                assert tcp_or_udp(node.pid) == []
                node.ask()


def test_what_a_crash_left_is_swept_before_anything_is_lent(tmp_path: Path) -> None:
    folder = NodeFolder.make(tmp_path)
    left = tmp_path / "work/task-0123456789abcdef01234567"
    left.mkdir(parents=True, mode=0o700)
    (tmp_path / "work").chmod(0o700)
    (left / "half").write_text("x")
    with daemon(folder) as node:
        node.wait_for("READY")
        assert not left.exists()




def test_killed_while_it_starts_it_leaves_nothing_beyond_the_next_start(tmp_path: Path) -> None:
    folder, pids = NodeFolder.make(tmp_path), []
    for _ in range(3):
        with daemon(folder) as node:
            node.wait_up()  # what can hold a task is just being tried
            node.kill()
            pids.append(str(node.pid))
    with daemon(folder) as node:
        node.wait_for("READY")
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
        for place in (fields[1] for fields in mounts if fields[2] == "cgroup2"):
            probes = [name for _, names, _ in os.walk(place) for name in names if name.startswith("rae-probe-")]
            assert [name for name in probes if name.split("-")[2] in pids] == []
