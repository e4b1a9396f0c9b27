"""Hostile tasks, one after the other on one living node: each settled with its own kind of error, nothing of it left, and
the loop never held up. Prints how late the loop was, and how long it was busy itself at a stretch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.guard import limited
from support.running import ControlNode, Daemon, NodeFolder, control_node, daemon
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
ATTACK = """
import ctypes, json, os
ppid = lambda pid: int(open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[1])
shim = os.getppid()
node = ppid(shim)
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long] * 4
traced = [libc.ptrace(16, pid, 0, 0) for pid in (node, shim)]
signalled = 0
for pid in (node, shim):
    for number in (15, 19, 9):
        try:
            os.kill(pid, number)
            signalled += 1
        except PermissionError:
            pass
print(json.dumps({"traced": traced, "signalled": signalled}))
"""
# It runs as the node's user, who may say these words; what it asks as anybody may is answered.
SPEAK = """
import json, os, socket
def word(**said):
    peer = socket.socket(socket.AF_UNIX)
    peer.connect("../../run/control.sock")
    peer.sendall(json.dumps({"v": 1, **said}).encode() + b"\\n")
    answer = json.loads(peer.makefile().readline())
    return answer.get("error", "") or answer["ok"]
over, alive = os.pipe()
if os.fork():
    os.close(alive); os.read(over, 1); os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
session = {"id": "1", "source": "made up", "idle": 1e6, "inhibitors": [], "why": ""}
print(json.dumps({
    "pause": word(ask="pause"), "resume": word(ask="resume"),
    "tell": word(tell="presence", sessions=[session], terminals=None), "status": word(ask="status"),
}))
"""
REFUSED = "a task may not say that"
KINDS: dict[str, tuple[str, dict[str, Any], str | None, Any]] = {
    # what it does, its settings, the error's beginning (None: it succeeds), its result (None: not looked at)
    "double_fork": ("import os\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(1000)\n    os._exit(0)\n"
                    "os.wait(); print('{}')", {}, None, {}),
    "setsid": ("import os\nif os.fork() == 0:\n    os.setsid(); time.sleep(1000)\nprint('{}')", {}, None, {}),
    "ignores_term": ("import signal\nsignal.signal(15, signal.SIG_IGN)\nwhile True: time.sleep(1)",
                     {"timeout_minutes": 0.02}, "timeout: ", None),
    "fork_bomb": ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", {"max_processes": 200},
                  "limit: processes ", None),
    "stdout_flood": ("import os\nwhile True: os.write(1, b'x' * 65536)", {"max_result_mb": 1},
                     "result: larger than 1 MiB", None),
    "stderr_flood": ("import os\nfor _ in range(600): os.write(2, b'y' * 65536)\nos._exit(3)", {}, "exit: code 3", None),
    "zombies": ("import os\nfor _ in range(300):\n    if os.fork() == 0: os._exit(0)\ntime.sleep(1000)",
                {"timeout_minutes": 0.03}, "timeout: ", None),
    "memory_hog": ("kept = []\nwhile len(kept) < 40:\n    kept.append(b'x' * (8 << 20)); time.sleep(0.01)\n"
                   "time.sleep(1000)", {"max_memory_gb": 0.1}, "limit: memory ", None),
    "disk_hog": ("f = open('big', 'wb')\nfor _ in range(60): f.write(b'x' * (1 << 20))\nf.flush(); time.sleep(1000)",
                 {"max_disk_gb": 0.03}, "limit: disk ", None),
    "many_files": ("import os\nfor n in range(10_000):\n    if n % 1000 == 0: os.makedirs(f'd{n}/' + 'e/' * 50, 0)\n"
                   "    open(f'f{n}', 'w').close()\nprint('{}')", {}, None, {}),
    "nul": ("import os\nos.write(1, b'{\"a\": \"x' + bytes([92]) + b'u0000y\"}')", {}, None, {"a": "x\ufffdy"}),
    "raw_nul": ("import os\nos.write(1, b'{\"a\": \"x\\x00y\"}')", {}, "result: not a JSON object: ", None),
    "not_utf_8": ("import os\nos.write(1, b'{\"a\": \"\\xff\\xfe\"}')", {}, "result: not a JSON object: it is not UTF-8", {}),
    "huge_result": ("import os\nos.write(1, b'{\"a\": \"')\nfor _ in range(200): os.write(1, b'x' * (1 << 20))\n"
                    "os.write(1, b'\"}')", {}, "result: larger than 8 MiB", None),
    "stops_itself": ("import os\nos.kill(os.getpid(), 19)", {"timeout_minutes": 0.02}, "timeout: ", None),
    "closes_stdin": ("import os\nos.close(0); time.sleep(0.1); print('{}')", {}, None, {}),
    "attacks_the_node": (ATTACK, {"sandbox": "none"}, None, {"traced": [-1, -1], "signalled": 0}),
    "speaks_for_others": (SPEAK, {"sandbox": "none"}, None,
                          {"pause": REFUSED, "resume": REFUSED, "tell": REFUSED, "status": True}),
    "kills_itself": ("import os\nos.kill(os.getpid(), 9)", {}, "signal: 9 (SIGKILL)", None),
}  # fmt: skip


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
