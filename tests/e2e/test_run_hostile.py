"""Hostile tasks, one after the other on one living node: each settled with its own kind of error, nothing of it left, and
the loop never held up. Prints how late the loop was, and how long it was busy itself at a stretch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.guard import limited
from support.running import ControlNode, Daemon, NodeFolder, control_node, daemon
from support.task_programs import KINDS
from support.trees import marked_with
from support.waiting import until

from supervisor.tasks.process import landlock

pytestmark = pytest.mark.slow

# The daemon as ever, and on its loop a beat every 5 ms that notes how late it comes, and the loop's own CPU time meanwhile.
PROBE = """
import asyncio, json, os, sys, time
from supervisor.daemon import main as service
from supervisor.cli.main import main
path, run, worst = sys.argv.pop(1), service._run, {"late_ms": 0.0, "busy_ms": 0.0}
async def probed(*given):
    loop = asyncio.get_running_loop()
    def beat(due, cpu):
        found = {"late_ms": (loop.time() - due) * 1000, "busy_ms": (time.thread_time() - cpu) * 1000}
        if any(found[name] > worst[name] for name in worst):
            worst.update({name: max(found[name], worst[name]) for name in worst})
            with open(path + ".new", "w") as file: json.dump(worst, file)
            os.replace(path + ".new", path)
        loop.call_later(0.005, beat, loop.time() + 0.005, time.thread_time())
    loop.call_later(2, lambda: beat(loop.time(), time.thread_time()))  # not the start itself
    return await run(*given)
service._run = probed
sys.exit(main())
"""


@dataclass
class Scene:
    """One node, with a type for each kind."""

    control: ControlNode
    node: Daemon
    guard: str
    probe: Path

    def worst(self) -> dict[str, float]:
        """How late the loop was at worst, and how long busy, in milliseconds."""
        found: dict[str, float] = json.loads(self.probe.read_text()) if self.probe.exists() else {}
        return found


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """The node, within limits that protect the machine from it."""
    base = tmp_path_factory.mktemp("hostile")
    tasks = {
        name: {"argv": [sys.executable, "-I", "-S", "-c", "import time\n" + code], "grace_sec": 0.3, "env": {"M": "m-4711"},
               "timeout_minutes": 3, **settings}
        for name, (code, settings, _, _) in KINDS.items()
    }  # fmt: skip
    tasks["honest"] = {"argv": ["/bin/cat"], "env": {"M": "m-4711"}}
    with control_node() as control:
        folder = NodeFolder.make(base / "node", control.url, node={"tasks": tasks, "work": {"run_minutes": 30}})
        probe = base / "probe.json"
        argv = (sys.executable, "-I", "-c", PROBE, str(probe), "run")
        with daemon(folder, argv=argv) as node, limited(node.pid) as guard:
            node.wait_up()
            yield Scene(control, node, guard, probe)
            print(f"\nthe loop of the node at worst: {scene_words(probe)}")


def scene_words(probe: Path) -> str:
    if not probe.exists():
        return "not measured yet"
    worst = json.loads(probe.read_text())
    return f"{worst['late_ms']:.0f} ms late, {worst['busy_ms']:.0f} ms busy at a stretch"


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_settled_and_nothing_is_left(scene: Scene, kind: str) -> None:
    _, _, error, result = KINDS[kind]
    if scene.guard and (kind in ("fork_bomb", "memory_hog")):
        pytest.skip(scene.guard)
    if kind == "attacks_the_node" and landlock.abi() < 6:
        pytest.skip("signals to the node are open before Linux 6.12")
    settled = scene.control.settled(scene.control.add(kind, {"hello": kind}), 200)  # at idle priority, on a busy machine
    assert settled["status"] == ("COMPLETED" if error is None else "FAILED"), settled["error"]
    assert (settled["error"] or "").startswith(error or ""), settled["error"]
    if result is not None:
        assert settled["result"] == result
    assert "hello" not in (settled["error"] or "")
    until(lambda: not marked_with("m-4711"), f"no process of it: {marked_with('m-4711')}")
    work = scene.node.folder.path / "work"
    until(lambda: not list(work.iterdir()), "no file of it")
    assert scene.node.process.poll() is None, scene.node.said
    print(f"{kind}: {settled['error'] or 'completed'}; the loop so far: {scene_words(scene.probe)}")


def test_afterwards_the_node_works_as_before_and_was_never_held_up(scene: Scene) -> None:
    task = scene.control.settled(scene.control.add("honest", {"hello": "world"}))
    assert (task["status"], task["result"]) == ("COMPLETED", {"hello": "world"})
    until(scene.probe.exists, "a look at its loop")
    print(f"the loop of the node at worst: {scene_words(scene.probe)}")
    assert scene.worst()["busy_ms"] < 1000  # of a virtual machine's own pauses, some count as its work
    assert len([line for line in scene.node.folder.journal() if line["kind"] == "start"]) == 1
