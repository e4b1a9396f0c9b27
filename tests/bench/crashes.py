"""`kill -9` of the daemon at random instants of a task's life; what is left afterwards, and what the control node knows.

    python tests/bench/crashes.py [--kills 500] [--workers 2] [--seed 1] [--no-box]

As root where a real systemd can be booted (see tests/support/sysbox.py) it all runs in there, with logind's sleep locks;
else with host.inhibitor: none, and it says so. After every kill: no process of the task, no file in its folder, no lock of
the dead daemon's (an empty folder may stay until the next start). At the end every task is settled: done once, or
failed after two attempts that ended with the node; each earlier try failed with the note that says why, and none was ever
started twice under one id; and no file that could have been written holds a word of any payload or result (R6). Exit 1 when
anything is not so.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
from support.running import ControlNode, NodeFolder, control_node, daemon
from support.waiting import until

from supervisor.sources.lost_attempts import GIVEN_UP, MAX_LOST, lost_in

GONE_S = 10.0  # a shim freezes, kills and wipes after its daemon; a busy machine gets time for it
AGAIN = re.compile(r"resubmitted as ([0-9a-f-]{36})")
# Every task leaves what a crash could leave: a file half written, a child in a session of its own, an orphan.
SCRIPT = 'cat > "$HOME/half"; echo x >> "$RUNS/$RAE_TASK_ID"; setsid sleep 1000 & (sleep 1000 &); sleep {}; '
SCRIPT += 'echo "{{\\"said\\": \\"RESULT-$(rev <<< $MARK)\\"}}"; echo "RESULT-$(rev <<< $MARK)" >&2'
MARK = os.urandom(8).hex()  # in payloads and, read backwards, in what makes results; nowhere else
SEARCHED = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/var/log", "/var/lib/systemd", "/core", "/var/crash")
DONE = 30  # tasks that each node has done at least, in the end
LASTS_S = ("0", "0.05", "0.3", "2")


class Worker(threading.Thread):
    """One node, killed again and again, and its own control node."""

    def __init__(self, number: int, kills: int, seed: int, inhibitor: str, folder: Path) -> None:
        super().__init__()
        self.number, self.kills, self.random = number, kills, random.Random(f"{seed}-{number}")
        self.inhibitor, self.path = inhibitor, folder / f"node-{number}"
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.posted = self.done = 0
        self.open: list[tuple[str, int]] = []  # the last try of each task that is not done, and which one it is

    def run(self) -> None:
        """Kill, look, and in the end let it finish."""
        try:
            self._crash()
        except (AssertionError, OSError, subprocess.SubprocessError) as error:
            self.faults.append(f"node {self.number}: {type(error).__name__}: {error}")

    def _crash(self) -> None:
        runs = self.path / "runs"
        runs.mkdir(parents=True)
        env = {"RUNS": str(runs), "MARK": MARK[::-1]}
        more = {"grace_sec": 0.2, "sandbox": "none"}  # it writes down its runs, and its processes are looked for
        kinds = {
            f"lasts-{i}": {"argv": ["/bin/bash", "-c", SCRIPT.format(s)], "env": dict(env), **more}
            for i, s in enumerate(LASTS_S)
        }
        with control_node() as control:
            node = {"tasks": kinds, "host": {"inhibitor": self.inhibitor}, "node": {"id": f"node-{self.number}"}}
            runtime = {"safety": {"idle_required_minutes": 0.001, "cooldown_minutes": 0.001}}
            folder = NodeFolder.make(self.path, control.url, {**runtime, "execution": {"poll_interval_sec": 0.2}}, node)
            if self.inhibitor != "none":
                folder.environment = {}  # the system bus is the real one
            for _ in range(self.kills):
                while len(self._left(control)) < 3:  # there is always something to do
                    self.open.append((control.add(self.random.choice(sorted(kinds)), {"said": f"PAYLOAD-{MARK}"}), 1))
                    self.posted += 1
                self._one(folder)
                self.done += 1
            self._finish(folder, control, runs)

    def _one(self, folder: NodeFolder) -> None:
        workdir = self.path / "work"
        old = set(workdir.glob("task-*"))
        with daemon(folder) as node:
            if self.random.random() < 0.75:  # a while after a task's folder was made, else at any instant of a life
                with contextlib.suppress(AssertionError):
                    until(lambda: set(workdir.glob("task-*")) - old, "a task", 4)
                time.sleep(self.random.choice((0.0, 0.05, 0.2, 0.8)) * self.random.random())
            else:
                time.sleep(self.random.uniform(0.1, 1.5))
            assert node.process.poll() is None, f"the daemon ended by itself: {node.said}"
            alive, noted = node.task_pids(), (self.path / "state/task.json").exists()
            node.kill()
            self.counts["killed with a task's processes alive" if alive else "killed with a task in hand, not running"
                        if noted else "killed with no task in hand"] += 1
            for what, left in (
                ("process", node.task_pids),
                ("work file", lambda: [path for path in workdir.rglob("*") if not path.is_dir()]),
                ("lock", lambda: self._locks(node.pid)),
            ):
                try:
                    until(lambda left=left: not left(), what, GONE_S)
                except AssertionError:
                    self.faults.append(f"node {self.number}, kill {self.done}: {what} left: {left()}")

    def _locks(self, pid: int) -> list[str]:
        if self.inhibitor == "none":
            return []
        told = subprocess.run(["systemd-inhibit", "--list", "--no-legend"], capture_output=True, text=True).stdout
        return [line for line in told.splitlines() if f" {pid} " in line]

    def _finish(self, folder: NodeFolder, control: ControlNode, runs: Path) -> None:
        """One more life, not killed: what is there gets done. Then the books are read."""
        while self.posted < DONE:
            self.open.append((control.add("lasts-1", {"said": f"PAYLOAD-{MARK}"}), 1))
            self.posted += 1
        with daemon(folder) as node:
            until(lambda: not self._left(control), lambda: f"all tasks done; open: {self.open}", 60)
            self.counts["the next start takes work again"] += 1
            node.stop()
        for path in runs.iterdir():
            times = len(path.read_text().split())
            self.counts["tries that started"] += 1
            if times > 1:  # 0: its shell was killed between opening this file and writing to it
                self.faults.append(f"node {self.number}: task {path.name} was started {times} times")
        if left := [*(self.path / "work").iterdir(), *(self.path / "state").glob("task.json")]:
            self.faults.append(f"node {self.number}: left at the end: {left}")

    def _left(self, control: ControlNode) -> list[tuple[str, int]]:
        self.open = [last for task in self.open if (last := self._follow(control, *task)) is not None]
        return self.open

    def _follow(self, control: ControlNode, name: str, tries: int) -> tuple[str, int] | None:
        """From this try of a task to its last; None once it is done, or a fault."""
        while True:
            task = control.task(name)
            if task["status"] == "COMPLETED":
                self.counts["tasks done"] += 1
                self.counts[f"tasks done at try {min(tries, 4)}{' or later' if tries >= 4 else ''}"] += 1
                return None
            if task["status"] != "FAILED":
                return name, tries
            lost = lost_in(task["payload"])
            if task["error"] == GIVEN_UP and lost == MAX_LOST - 1:
                self.counts[f"tasks given up after {MAX_LOST} attempts that ended with the node"] += 1
                return None
            again = AGAIN.search(task["error"])
            if again is None or not task["error"].startswith("preempted:"):
                self.faults.append(f"node {self.number}: task {name} ended as {task['error']!r}")
                return None
            self.counts["tries given back with their note"] += 1
            name, tries = again[1], tries + 1


def marked(places: list[Path]) -> tuple[int, list[str]]:
    """How many files were searched, and those that hold a word of a payload or a result."""
    files = [path for place in places for path in ([place] if place.is_file() else place.rglob("*"))]
    searched, found = 0, []
    for path in files:
        with contextlib.suppress(OSError):
            if path.is_file() and not path.is_symlink():
                searched += 1
                if MARK.encode() in path.read_bytes():
                    found.append(str(path))
    return searched, found


def crash(kills: int, workers: int, seed: int, inhibitor: str) -> int:
    """Do it here; print the counts."""
    with tempfile.TemporaryDirectory(prefix="crashes-") as folder:
        shares = [kills // workers + (i < kills % workers) for i in range(workers)]
        busy = [Worker(i, share, seed, inhibitor, Path(folder)) for i, share in enumerate(shares)]
        began_s = time.monotonic()
        for worker in busy:
            worker.start()
        said = 0
        while any(worker.is_alive() for worker in busy):
            time.sleep(0.2)
            done = sum(worker.done for worker in busy)
            if done >= said + 25:
                said = done
                print(f"{done} of {kills} kills, {time.monotonic() - began_s:.0f} s", file=sys.stderr, flush=True)
        alone = inhibitor != "none"  # in a box everything that is written is ours
        searched, found = marked([*map(Path, SEARCHED)] if alone else [Path(folder)])
    counts: Counter[str] = sum((worker.counts for worker in busy), Counter())
    faults = [fault for worker in busy for fault in worker.faults] + [f"a marker in {path}" for path in found]
    print(f"{sum(worker.done for worker in busy)} kills, sleep locks: {inhibitor}, {time.monotonic() - began_s:.0f} s")
    figures = [(count, name) for name, count in sorted(counts.items())]
    for name, what in (("process", "processes"), ("work file", "work files"), ("lock", "sleep locks")):
        figures.append((sum(f"{name} left" in fault for fault in faults), f"kills that left {what}"))
    settled = sum(count for name, count in counts.items() if name == "tasks done" or name.startswith("tasks given up"))
    figures.append((sum(worker.posted for worker in busy) - settled, "tasks not settled"))
    figures.append((len(found), f"files with a word of a payload or a result, of {searched} searched"))
    figures.append((len(faults), "faults in all"))
    for count, name in figures:
        print(f"{count:7}  {name}")
    for fault in faults[:20]:
        print(f"         {fault}")
    return int(bool(faults))


def main() -> int:
    """Parse; in a box where one can be had."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2, help="nodes side by side (default 2)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-box", action="store_true", help="here, without logind's locks")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        return crash(given.kills, given.workers, given.seed, "required")
    from support import sysbox

    reason = "--no-box" if given.no_box else sysbox.unavailable()
    if reason:
        print(f"no systemd box ({reason}): without sleep locks", file=sys.stderr)
        return crash(given.kills, given.workers, given.seed, "none")
    with tempfile.TemporaryDirectory(prefix="crashes-") as base, sysbox.SysBox(Path(base)) as box:
        words = [f"--kills={given.kills}", f"--workers={given.workers}", f"--seed={given.seed}"]
        argv = box.argv(box.python, str(Path(__file__).resolve()), "--inside", *words)
        return subprocess.run(argv).returncode


if __name__ == "__main__":
    sys.exit(main())
