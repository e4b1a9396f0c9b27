"""Tasks of the installed node, each in a unit of its own: the hostile kinds end as they do by hand, a place is saved, a false
alarm costs a pause, and nothing of any of them is left.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.installed import QUICK, UNIT, Installed, installed
from support.nvml_standin import nvml_library
from support.task_programs import COUNTS, KINDS, RESTLESS
from support.waiting import until

from supervisor.tasks.process import landlock

__all__ = ["nvml_library"]  # a fixture

pytestmark = [pytest.mark.slow, pytest.mark.box]
PYTHON = ["/usr/bin/python3", "-I", "-S", "-c"]
BY_HAND = ("attacks_the_node", "speaks_for_others")  # what a unit holds against these: test_box_attacks.py
# The box has no pids and no memory controller, so what must be caught at once would burden the machine.
HOSTILE = {kind: rest for kind, rest in KINDS.items() if kind not in (*BY_HAND, "fork_bomb")}

GPUS = """
import json, os
def opens(name):
    try:
        open(f"/dev/{name}", "rb").close()
    except OSError as error:
        return error.strerror
    return "open"
names = "nvidia0", "nvidia1", "nvidiactl", "nvidia-modeset", "null"
print(json.dumps({name: opens(name) for name in names} | {"cuda": os.environ["CUDA_VISIBLE_DEVICES"]}))
"""


@pytest.fixture(scope="module")
def node(wheels: Path, site: Path, nvml_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """One installed node for all kinds."""
    with installed(tmp_path_factory.mktemp("tasks"), wheels, site, nvml_library) as node:
        tasks: dict[str, Any] = {
            kind: {"argv": [*PYTHON, "import time\n" + code], "grace_sec": 0.3, "timeout_minutes": 3, **more}
            for kind, (code, more, _, _) in HOSTILE.items()
        }
        tasks["count"] = {"argv": [*PYTHON, COUNTS], "notice": {"signal": "USR1", "deadline_sec": 20}, "grace_sec": 25}
        tasks["count"]["on_preempt"] = "resubmit"
        tasks["restless"] = {"argv": [*PYTHON, RESTLESS.replace("'end'", "'/tmp/end'").replace('"end"', '"/tmp/end"')]}
        tasks["gpus"] = {"argv": [*PYTHON, GPUS]}
        lent = {"presence": "required", "lend": ["GPU-fake-0"]}
        settings = {"tasks": tasks, "work": {"run_minutes": 30, "hold_sec": 59}, "gpu": lent}
        node.configure(node=settings, runtime={"execution": {"poll_interval_sec": 0.2}})
        node.start_control()
        node.drop_in("quick", QUICK)
        node.box.run("systemctl", "start", UNIT)
        yield node


def settled(node: Installed, task: str, timeout_s: float = 100) -> dict[str, Any]:
    """The task, once the control node knows its end."""
    until(lambda: node.task(task)["status"] in ("FAILED", "COMPLETED"), lambda: str(node.task(task)), timeout_s)
    return node.task(task)


def nothing_left(node: Installed) -> None:
    until(lambda: not node.left(), lambda: f"nothing left: {node.left()}")


@pytest.mark.parametrize("kind", HOSTILE)
def test_it_ends_as_by_hand_and_nothing_is_left(node: Installed, kind: str) -> None:
    _, _, error, result = HOSTILE[kind]
    task = settled(node, node.add(kind, {"hello": kind}))
    assert task["status"] == ("COMPLETED" if error is None else "FAILED"), task["error"]
    assert (task["error"] or "").startswith(error or ""), task["error"]
    if result is not None:
        assert task["result"] == result
    nothing_left(node)


def test_its_gpu_is_the_lent_one_and_no_other(node: Installed) -> None:
    """Files stand for the nodes. What a unit may open of all GPUs, Landlock closes to the task."""
    if landlock.abi() < 2:
        pytest.skip("no Landlock here")
    names = ("nvidia0", "nvidia1", "nvidiactl", "nvidia-modeset")
    for name in names:
        (node.box.root / "dev" / name).touch()
        (node.box.root / "dev" / name).chmod(0o666)
    task = settled(node, node.add("gpus"))
    for name in names:
        (node.box.root / "dev" / name).unlink()
    no = "Permission denied"
    assert task["result"] == {
        "nvidia0": "open", "nvidia1": no, "nvidiactl": "open", "nvidia-modeset": no, "null": "open", "cuda": "GPU-fake-0",
    }, task["error"]  # fmt: skip


def folder(node: Installed) -> Path:
    """The work folder of the task that runs, as root sees it."""
    found = until(lambda: list(node.box.root.glob("var/tmp/systemd-private-*rae-task*/tmp/task/up")), "its beginning")
    return Path(found[0]).parent


def test_it_saves_its_place_and_is_resumed_there(node: Installed) -> None:
    first = node.add("count", {"job": "j1"})
    folder(node)
    assert node.cli("pause").returncode == 0
    old = settled(node, first)
    new = old["error"].rpartition("resubmitted as ")[2].split()[0].rstrip(".;,)")
    assert node.task(new)["payload"] == {"job": "j1", "rae_state": {"secret": "sentinel-4711", "at": 42}}
    assert node.cli("resume").returncode == 0
    assert settled(node, new)["result"] == {"from": {"secret": "sentinel-4711", "at": 42}, "job": "j1"}
    nothing_left(node)


def test_a_false_alarm_costs_it_a_pause(node: Installed) -> None:
    node.box.run("systemd-run", "-q", "--unit=stranger", "sleep", "1000")
    pid = node.box.show("stranger.service", "MainPID")["MainPID"]
    task = node.add("restless")
    folder(node)
    began_s = time.monotonic()
    node.gpu(f"0.proc={pid}:{1 << 30}:g")
    until(lambda: " is on hold: " in node.status_text(), node.status_text)
    frozen = node.box.sh("cat /sys/fs/cgroup/rae.slice/rae-task@*/cgroup.events")
    assert "frozen 1" in frozen
    node.gpu()
    until(lambda: "is on hold" not in node.status_text(), node.status_text)
    node.box.sh("for folder in /tmp/systemd-private-*rae-task*; do touch $folder/tmp/end; done")
    done = settled(node, task)
    assert done["status"] == "COMPLETED", done["error"]
    assert 0.1 < done["result"]["longest"] < time.monotonic() - began_s
    nothing_left(node)


def test_a_task_goes_back_where_systemd_starts_no_unit_and_the_node_takes_none_until_it_does(node: Installed) -> None:
    node.wait_for("READY")
    node.box.run("systemctl", "stop", "rae-task.socket")
    first = node.add("restless")
    until(lambda: "no task can start: no unit for the task" in node.status_text(), node.status_text)
    old = settled(node, first)
    assert "this node could not start it: no unit for the task" in old["error"]
    new = node.task(old["error"].rpartition("resubmitted as ")[2].split()[0].rstrip(".;,)"))
    assert new["payload"]["rae_lost_attempts"] == 1
    node.box.run("systemctl", "start", "rae-task.socket")
    assert node.cli("resume").returncode == 0
    folder(node)
    node.box.sh("for folder in /tmp/systemd-private-*rae-task*; do touch $folder/tmp/end; done")
    assert settled(node, new["id"])["status"] == "COMPLETED"
    nothing_left(node)


def test_the_journal_says_the_rungs_of_each_stop(node: Installed) -> None:
    lines = [json.loads(line) for line in node.box.sh("cat /opt/rae-node/logs/decisions-*.jsonl").splitlines()]
    stops = [line["detail"] for line in lines if line.get("effect") == "stop"]
    assert stops
    assert all("frozen " in text and "gone " in text for text in stops), stops
