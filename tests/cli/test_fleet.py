"""`rae-node submit`, `fleet` and `bridge`, at a real server, with real daemons and a real control node."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from support.nats_rig import NatsServer, nats_server, needs_server, operator
from support.running import RAE_NODE, ControlNode, NodeFolder, _die_with_us, control_node, daemon
from support.waiting import until

from supervisor.sources.nats.admin.submit import BadTasks, read_tasks

pytestmark = needs_server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with nats_server(tmp_path / "nats") as one:
        asyncio.run(set_up(one.url))
        yield one


async def set_up(url: str, lease_s: float = 2.0) -> None:
    async with operator(url, lease_s=lease_s):
        pass


def cli(server: NatsServer | str, *arguments: str, text: str = "", timeout_s: float = 180) -> subprocess.CompletedProcess[str]:
    """A command of `rae-node`; the environment names the fleet."""
    url = server if isinstance(server, str) else server.url
    env = {**os.environ, "RAE_FLEET_SERVER": url}
    return subprocess.run(
        [*RAE_NODE, *arguments], capture_output=True, text=True, input=text, timeout=timeout_s, env=env, cwd="/"
    )


def member(path: Path, server: NatsServer, name: str, **node: Any) -> NodeFolder:
    """A node of the fleet."""
    control = {"source": "nats", "url": server.url}
    return NodeFolder.make(path / name, node={"node": {"id": name}, "control": control, **node})


def test_submit_wait_and_see_the_nodes(server: NatsServer, tmp_path: Path) -> None:
    with daemon(member(tmp_path, server, "one")) as one, daemon(member(tmp_path, server, "two")):
        tasks = [{"type": "echo", "payload": {"n": n}} for n in range(4)] + [{"type": "fail"}]
        done = cli(server, "submit", "-", "--wait", "--json", "--timeout", "120", text=json.dumps(tasks))
        outcomes = json.loads(done.stdout)
        assert [o["status"] for o in outcomes] == ["COMPLETED"] * 4 + ["FAILED"], done.stderr
        assert [o["result"]["n"] for o in outcomes[:4]] == [0, 1, 2, 3]
        assert done.returncode == 1
        assert "exit" in outcomes[4]["error"]
        assert {o["node"] for o in outcomes} <= {"one", "two"}

        seen = json.loads(cli(server, "fleet", "--json").stdout)
        assert [n["node"] for n in seen["nodes"]] == ["one", "two"]
        assert seen["tasks"] == {"waiting": 0, "running": 0, "results": 5, "dead": 0}
        status = json.loads(one.folder.cli("status", "--json").stdout)["source"]
        assert (status["kind"], status["dialect"], status["link"]) == ("nats", "jetstream", "up")

        def screen() -> str:
            return cli(server, "fleet").stdout

        until(lambda: "READY" in screen() or "IDLE_WAIT" in screen(), screen)
        lines = screen().splitlines()
        assert lines[0].split() == ["NODE", "STATE", "FOR", "DONE", "FAILED", "BACK", "LOST", "WHY"]
        assert lines[-1] == "2 nodes; tasks: 0 waiting, 0 running, 5 results, 0 dead"


def test_a_killed_daemons_task_is_done_by_another_and_nothing_is_lost(server: NatsServer, tmp_path: Path) -> None:
    slow = {"tasks": {"slow": {"argv": ["/bin/sh", "-c", "sleep 2; echo '{\"ok\": true}'"]}}}
    with contextlib.ExitStack() as stack:
        nodes = {name: stack.enter_context(daemon(member(tmp_path, server, name, **slow))) for name in ("one", "two", "three")}
        ids = cli(server, "submit", "-", text='{"type": "slow"}\n{"type": "slow"}\n').stdout.split()
        assert len(ids) == 2
        running = lambda n: (n.look().get("task") or {}).get("phase") == "running"  # noqa: E731
        busy = until(lambda: [n for n in nodes.values() if running(n)], "a task runs")
        busy[0].kill()
        again = "\n".join(json.dumps({"type": "slow", "id": task}) for task in ids)
        done = cli(server, "submit", "-", "--watch", "--timeout", "120", text=again)
        assert done.returncode == 0, done.stderr
        assert sorted(done.stdout.split()) == sorted([*ids, "COMPLETED", "COMPLETED"])
        assert "2 of 2 done, 0 failed" in done.stderr


def test_what_goes_wrong_is_one_line_and_an_exit_code(server: NatsServer, tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    for text, why in (
        ("", "there is no task"),
        ('{"type": "a"}\n{"type"', "line 2 is not JSON"),
        ("[1]", "task 1: found no object"),
        ('{"type": "a", "payload": 1}', "task 1: payload"),
        ('{"type": "a", "prio": 1}', "task 1: found prio"),
        ('{"type": "a", "id": "7"}', "task 1: id: allowed: a UUID"),
    ):
        broken.write_text(text)
        failed = cli(server, "submit", str(broken))
        assert (failed.returncode, failed.stdout) == (2, ""), text
        assert why in failed.stderr
        assert len(failed.stderr.splitlines()) == 1
    assert cli(server, "submit", str(tmp_path / "none")).returncode == 2
    assert cli("nats://example.org:1", "fleet").returncode == 2
    down = cli("nats://127.0.0.1:9", "fleet")
    assert down.returncode == 3
    assert "cannot be reached" in down.stderr
    assert len(down.stderr.splitlines()) == 1
    late = cli(server, "submit", "-", "--wait", "--timeout", "0.5", text='{"type": "nobody"}')
    assert late.returncode == 1
    assert "has no result after 0.5 s; it stays queued" in late.stderr


def test_tasks_are_read_strictly() -> None:
    one = str(uuid4())
    (task,) = read_tasks(json.dumps({"type": "echo", "id": one.upper(), "priority": 3}))
    assert (task.id, task.type, task.payload, task.priority) == (one, "echo", {}, 3)
    assert [t.type for t in read_tasks('[{"type": "a"}, {"type": "b"}]')] == ["a", "b"]
    assert [t.type for t in read_tasks('{"type": "a"}\n\n{"type": "b"}\n')] == ["a", "b"]
    with pytest.raises(BadTasks):
        read_tasks('{"type": ""}')


class Bridge:
    """`rae-node bridge` as a process."""

    def __init__(self, folder: NodeFolder, server: NatsServer, log: Path) -> None:
        self.log = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [*RAE_NODE, "bridge", "--config", str(folder.path), "--server", server.url, "--ahead", "20"],
                stdin=subprocess.DEVNULL, stdout=file, stderr=file, preexec_fn=_die_with_us, cwd="/",
            )

    def stop(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


def rae_side(path: Path, control: ControlNode) -> NodeFolder:
    return NodeFolder.make(path / "bridge", control.url, node={"node": {"id": "the-fleet"}})


def test_a_bridge_brings_the_control_nodes_tasks_to_the_fleet_and_the_results_back(server: NatsServer, tmp_path: Path) -> None:
    """Also through a bridge that is killed in the middle, a server that is, and a node that is."""
    slow = {"tasks": {"slow": {"argv": ["/bin/sh", "-c", "sleep 1; cat"]}, "fail": {"argv": ["/bin/false"]}}}
    with contextlib.ExitStack() as stack:
        control = stack.enter_context(control_node())
        folder = rae_side(tmp_path, control)
        log = tmp_path / "bridge.log"
        bridge = Bridge(folder, server, log)
        stack.callback(bridge.process.kill)
        one = stack.enter_context(daemon(member(tmp_path, server, "one", **slow)))
        stack.enter_context(daemon(member(tmp_path, server, "two", **slow)))
        first = control.add("slow", {"n": 0})
        assert control.settled(first, 60)["status"] == "COMPLETED", log.read_text()
        tasks = [control.add("slow", {"n": n}) for n in range(6)]
        failing = control.add("fail")
        unknown = control.add("")
        # all are taken: a bridge cannot save a task when it is killed between the control node's answer and its record
        until(lambda: log.read_text().count(": queued") == 8 and ": FAILED" in log.read_text(), log.read_text, 60)
        bridge.stop(signal.SIGKILL)
        one.kill()
        server.kill()
        bridge = Bridge(folder, server, log)
        stack.callback(bridge.process.kill)
        server.start()
        try:
            settled = [control.settled(task, 60) for task in tasks]
        except AssertionError as late:
            queue = cli(server, "fleet", "--json").stdout
            raise AssertionError(f"{late}\n{log.read_text()}\n{queue}") from None
        assert [t["status"] for t in settled] == ["COMPLETED"] * 6, log.read_text()
        assert [t["result"]["n"] for t in settled] == list(range(6))
        assert control.settled(failing, 60)["status"] == "FAILED"
        assert control.settled(unknown, 60)["error"] == "refused: it is no task"
        until(lambda: not (folder.path / "state" / "bridge" / "task.json").exists(), "every note is gone")
        assert bridge.stop(signal.SIGTERM) == 0
        assert control.call("GET", "/control/nodes") == []


def test_a_bridge_needs_a_control_node_on_its_other_side(server: NatsServer, tmp_path: Path) -> None:
    folder = member(tmp_path, server, "wrong")
    failed = folder.cli("bridge", "--server", server.url)
    assert failed.returncode == 2
    assert "control.source: found nats" in failed.stderr


def test_the_operator_pauses_a_node_from_afar_and_its_person_is_not_overruled(server: NatsServer, tmp_path: Path) -> None:
    folder = member(tmp_path, server, "one")
    with daemon(folder) as one:
        one.wait_for("READY")
        done = cli(server, "fleet", "pause", "one", "2h")
        assert (done.returncode, done.stdout) == (0, "one: stored\n"), done.stderr
        one.wait_for("DISABLED")
        status = one.ask()
        assert "over the fleet until" in status["reason"]
        assert status["source"]["link"] == "up"
        lines = [line for line in folder.journal() if line["kind"] == "operator"]
        assert lines[-1]["word"] == "fleet pause"
        assert "@" in lines[-1]["by"]
        until(lambda: "paused by its operator" in cli(server, "fleet").stdout, "an operator sees it", 60)
        wrong = cli(server, "fleet", "enable", "one")
        assert (wrong.returncode, "nothing to take back" in wrong.stderr) == (1, True), wrong
        nobody = cli(server, "fleet", "drain", "two")
        assert nobody.returncode == 1
        assert "no node two is there now; there are: one" in nobody.stderr
    with daemon(folder) as one:
        one.wait_up()
        until(lambda: "over the fleet until" in one.ask()["reason"], "it stays off", 60)
        assert cli(server, "fleet", "resume", "one", "--away").returncode == 0
        one.wait_for("READY")
        assert folder.cli("pause").returncode == 0
        one.wait_for("DISABLED")
        for words in (("drain",), ("resume",), ("disable-until-told",), ("enable",)):
            assert cli(server, "fleet", *words, "one", "--away").returncode == 0, words
        until(lambda: sum(line["kind"] == "operator" for line in folder.journal()) >= 7, "all were heard", 30)
        assert one.state() == "DISABLED"
