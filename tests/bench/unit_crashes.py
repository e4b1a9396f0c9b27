"""`kill -9` of the installed service at random instants of a task's life: what is left of the task's unit.

    python tests/bench/unit_crashes.py [--kills 500] [--seed 1]

As root, in a box with its own systemd. After every kill, before or after systemd has started the service again: no process
of the task, no unit, no cgroup, no folder in /tmp and /var/tmp, no sleep lock of the dead daemon. In the end every task is
settled: done, or failed after two attempts that ended with the node. Exit 1 when anything is not so.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from support.installed import QUICK, UNIT, Installed, installed_anew
from support.waiting import until

from supervisor.sources.lost_attempts import GIVEN_UP

# Every task leaves what a crash could leave: files, a child in a session of its own, an orphan, shared memory.
LEAVE = "touch half /tmp/left /var/tmp/left /dev/shm/left; setsid sleep 1000 & (sleep 1000 &); sleep {}; echo '{{}}'"
TASKS = {f"lasts-{i}": {"argv": ["/bin/bash", "-c", LEAVE.format(s)]} for i, s in enumerate(("0", "0.05", "0.3", "2"))}
GONE_S = 10.0


def locks(node: Installed, pid: int) -> list[str]:
    """The sleep locks of a process; logind sees its end a moment later."""
    held = node.box.run("systemd-inhibit", "--list", "--no-legend", "--no-pager").stdout
    return [line for line in held.splitlines() if f" {pid} " in line]


def crash(node: Installed, kills: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Kill, look; in the end let it finish."""
    chance, counts, faults = random.Random(seed), Counter[str](), list[str]()
    tasks: list[str] = []
    for number in range(kills):
        while sum(node.task(task)["status"] in ("PENDING", "RUNNING") for task in tasks[-5:]) < 3:
            tasks.append(node.add(chance.choice(sorted(TASKS))))
        until(lambda: node.main_pid(), "the service up again")
        if chance.random() < 0.75:
            with contextlib.suppress(AssertionError):  # it may be over already
                until(node.task_pids, "a task", 4)
        time.sleep(chance.choice((0.05, 0.3, 1.0)) * chance.random())
        running = set(node.left())
        pid = node.main_pid()
        node.box.run("systemctl", "kill", "--kill-whom=main", "-sKILL", UNIT, check=False)
        counts["killed with a task's unit alive" if running else "killed without one"] += 1
        for what, left in (
            ("of its tasks", lambda before=running: before & set(node.left())),
            ("lock", lambda pid=pid: locks(node, pid)),
        ):
            try:
                until(lambda left=left: not left(), what, GONE_S)
            except AssertionError:
                faults.append(f"kill {number}: {what} left: {left()}")
        if number % 25 == 24:
            print(f"{number + 1} of {kills} kills", file=sys.stderr, flush=True)
    until(lambda: all(node.task(task)["status"] in ("COMPLETED", "FAILED") for task in tasks), "all tasks settled", 120)
    counts["tasks posted"] = len(tasks)
    for task in tasks:
        told = node.task(task)
        how = "done" if told["status"] == "COMPLETED" else told["error"].split(":")[0]
        counts[f"settled: {how}"] += 1
        if how not in ("done", "preempted") and told["error"] != GIVEN_UP:
            faults.append(f"task {task} ended as {told['error']!r}")
    until(lambda: not node.left(), "nothing left in the end")
    return counts, faults


def main() -> int:
    """Parse, boot, kill, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    began_s = time.monotonic()
    with installed_anew() as node:
        node.configure(node={"tasks": TASKS}, runtime={"execution": {"poll_interval_sec": 0.2}})
        node.start_control()
        node.drop_in("quick", QUICK)
        node.box.run("systemctl", "start", UNIT)
        counts, faults = crash(node, given.kills, given.seed)
    print(f"{given.kills} kills of the installed service, {time.monotonic() - began_s:.0f} s")
    for name, count in sorted(counts.items()):
        print(f"{count:7}  {name}")
    print(f"{len(faults):7}  faults in all")
    for fault in faults[:20]:
        print(f"         {fault}")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
