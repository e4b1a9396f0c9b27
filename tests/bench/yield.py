"""Sign → decided → frozen → gone → handed back: how long a person who comes back can still feel the task.

    python tests/bench/yield.py [--runs 200] [--json] [--unit]

Real tasks (200 processes that burn the CPU, half of them double-forked; a memory hog; a writer), started by the real
executor at the lowest priority. The sign is a new terminal in /dev/pts, as an SSH login or a terminal window opens one.
Ours is the whole way: sensor, look, `propose`, performer, shim. The limit, in the same run and on the same tasks: ten
lines that watch /dev/pts and write cgroup.freeze and cgroup.kill themselves. `busy` rows: the person's own work keeps
both cores busy meanwhile. When a tree is frozen and gone is read from its cgroup.events by a thread of its own, for both.
`no cgroup`: both walk /proc, SIGSTOP and SIGKILL, and know what they have seen themselves. `--unit` adds rows for tasks in
systemd units, as an installed node runs them: ours is then the service's user in a box with its own systemd. Exit 1 when
short of performance.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from inotify_simple import INotify, flags
from support.waiting import eventually, until

from states.ending import Ending
from states.lifecycle import Lifecycle
from states.limits import Limits
from states.memory import Memory, State
from states.observation import Automation, Cpu, Gpu, Host, Reading, TaskPhase
from supervisor.config.schema import TaskType
from supervisor.daemon.performer import Performer
from supervisor.linux.clock import SystemClock
from supervisor.sensors.gpu.ownership import TaskUse
from supervisor.sensors.observer import Observer
from supervisor.sensors.presence.terminals import Terminals
from supervisor.sources.base import Claim
from supervisor.tasks.attempt import Attempt, Attempts
from supervisor.tasks.context import TaskContext, TaskSettings
from supervisor.tasks.executors.command import CommandExecutor
from supervisor.tasks.process import sandbox
from supervisor.tasks.process.containment import CgroupContainment, Containment, TreeContainment, detect
from supervisor.tasks.workdir import Workdir

CLOCK = SystemClock()
LIMITS = Limits(idle_required_s=0.05)
MANY = """
import os, time
wait, go = os.pipe()
for n in range(200):
    if os.fork() == 0:
        os.close(go)
        if n % 2 and os.fork(): os._exit(0)
        if n % 4 == 1: os.setsid()
        os.read(wait, 1)
        while True: pass
open("up", "w").close()
os.close(go)
time.sleep(1000)
"""
HOG = "import time; kept = bytearray(1 << 30); open('up', 'w').close(); time.sleep(1000)"
WRITER = """
import os
block, file = os.urandom(1 << 20), open("out", "wb")
open("up", "w").close()
while True:
    file.write(block)
    if file.tell() > 64 << 20: file.flush(); os.fdatasync(file.fileno()); file.seek(0)
"""
TASKS = {"200 processes": MANY, "memory hog, 1 GiB": HOG, "writer": WRITER}
# (p50, p99) of ours as multiples of the limit's, and what two shared cores add now and then, ms (performance.md).
TARGETS = {"decided": (3.0, 3.0, 1.0), "frozen": (2.0, 2.0, 4.0), "gone": (1.5, 2.0, 5.0)}
WALKED = {**TARGETS, "frozen": (1.3, 1.3, 4.0)}
MARKS = ("decided", "frozen", "gone", "settled")


@dataclass
class Times:
    """Seconds from the sign to each mark, run by run."""

    marks: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in MARKS})

    def note(self, began_s: float, **marks: float) -> None:
        for name, at_s in marks.items():
            self.marks[name].append(at_s - began_s)

    def ms(self, name: str, part: float) -> float:
        """A percentile."""
        values = sorted(self.marks[name])
        return values[min(len(values) - 1, int(len(values) * part))] * 1e3


class Watcher(threading.Thread):
    """When a cgroup was frozen and when it was empty, as the kernel says so."""

    def __init__(self, cgroup: str) -> None:
        super().__init__(daemon=True)
        self._file = open(f"{cgroup}/cgroup.events")  # noqa: SIM115 - lives as long as the thread
        self.frozen_s = self.gone_s = 0.0
        self.start()

    def run(self) -> None:
        poll = select.poll()
        poll.register(self._file, select.POLLPRI | select.POLLERR)
        with contextlib.suppress(OSError):  # ENODEV: the group was removed, so it was empty
            while not self.gone_s:
                self._file.seek(0)
                told, now_s = dict(line.split() for line in self._file), time.perf_counter()
                if told["frozen"] == "1" and not self.frozen_s:
                    self.frozen_s = now_s
                if told["populated"] == "0":
                    self.gone_s = now_s
                    return
                poll.poll(2)  # a group that is removed is not told of
        self.gone_s = self.gone_s or time.perf_counter()


class Source:
    """Takes things back, and notes when."""

    waiting, asking = None, False

    def __init__(self) -> None:
        self.claim: Claim | None = None
        self.back_s = 0.0

    def take(self) -> Claim | None:
        claim, self.claim = self.claim, None
        return claim

    def settle(self, claim: Claim, ending: Ending) -> None:
        raise AssertionError(f"the task ended by itself: {ending.error}")

    def hand_back(self, claim: Claim, ending: Ending, on_preempt: str) -> None:
        self.back_s = time.perf_counter()


def sign() -> tuple[float, tuple[int, int]]:
    """Open a terminal; when."""
    began = time.perf_counter()
    return began, os.openpty()


async def ours(containment: Containment, code: str, folder: Path, runs: int, tell: Callable[[], None]) -> Times:
    """The product."""
    times = Times()
    sensor = Terminals(CLOCK)
    woken = asyncio.Event()
    await sensor.start(woken.set)
    readings = [lambda now_s, value=v: Reading(value, "", "bench", now_s) for v in (Gpu(4, 1), Cpu(5), Host())]
    observer = Observer([sensor], *readings)
    python = sys.executable if containment.offer.unit else "/usr/bin/python3"  # a unit sees no home folder
    kind = TaskType(argv=[python, "-I", "-S", "-c", code], on_yield="kill")
    for _ in range(runs):
        source = Source()
        source.claim = Claim("00000000-0000-4000-8000-000000000000", "task")
        context = TaskContext(CLOCK, NoGpu(), NoSleep(), TaskSettings(LIMITS, types={"task": kind}))
        attempts = Attempts(source, context)  # type: ignore[arg-type]
        executor = CommandExecutor(kind, containment)
        performer = Performer(
            attempts, NoLock(), Workdir(folder), lambda _, e=executor: e, CLOCK, woken.set, lambda _: None
        )
        attempt = attempts.take()
        await attempt.start(lambda _, e=executor: e, performer.workdir, woken.set)
        at_work = partial(is_at_work, attempt, many=code == MANY)
        await eventually(at_work, "the task at work", 60)
        cgroup = getattr(attempt.process._tree, "path", None)  # type: ignore[union-attr]
        watcher = Watcher(cgroup) if cgroup else None
        now_s = CLOCK.now_s()
        lifecycle = Lifecycle(LIMITS, memory=Memory(State.RUNNING, now_s, running_since_s=now_s, started_at_s=now_s))

        def look(lifecycle: Lifecycle = lifecycle, attempts: Attempts = attempts) -> Any:
            return lifecycle.propose(observer.look(CLOCK.now_s(), LIMITS, Automation(True), attempts.observe()))

        await eventually(lambda look=look: look().row is None, "quiet", 10)
        assert attempts.observe().phase is TaskPhase.RUNNING
        woken.clear()
        began_s, pair = sign()
        while True:
            await asyncio.wait_for(woken.wait(), 10)
            woken.clear()
            if (plan := look()).row is not None:
                break
        decided_s = time.perf_counter()
        performer.begin(plan)
        outcome = await performer.perform(plan)
        lifecycle.commit(plan, outcome)
        assert all(result.ok for result in outcome.results), outcome
        frozen_s, gone_s = 0.0, decided_s + outcome.results[0].took_s
        if watcher is not None:
            await asyncio.to_thread(watcher.join, 10)
            frozen_s, gone_s = watcher.frozen_s, watcher.gone_s
        if not 0 < frozen_s < gone_s:  # no thread, or it was late: by the shim's word, rounded up
            frozen = [rung.seconds for rung in outcome.results[0].report.rungs if rung.name == "frozen"]
            frozen_s = decided_s + frozen[0] if frozen else gone_s
        times.note(began_s, decided=decided_s, frozen=frozen_s, gone=gone_s, settled=source.back_s)
        for fd in pair:
            os.close(fd)
        tell()
    await sensor.stop()
    return times


def is_at_work(attempt: Attempt, many: bool) -> bool:
    """It says so in its folder, or, where nobody can look there, has all its processes."""
    assert attempt.workdir is not None
    assert attempt.process is not None
    return (attempt.workdir / "up").exists() or (many and len(attempt.process.pids()) > 200)


class NoGpu:
    """No GPU is watched."""

    own = TaskUse()

    def latest(self, now_s: float) -> Reading[Gpu]:
        return Reading()

    async def refresh(self, timeout_s: float) -> Reading[Gpu]:
        return Reading()


class NoSleep:
    """Nobody announces a sleep."""

    going_down, delay_max_s, announced_s = "", None, None


class NoLock:
    """host.inhibitor: none."""

    held, needed, lost, refused = False, False, "", ""

    async def take(self, why: str) -> str:
        return ""

    async def release(self) -> str:
        return ""


def tree(root: int) -> dict[int, str]:
    """Pid → state of what descends from `root`, by one walk."""
    below: dict[int, dict[int, str]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as file:
                state, parent = file.read().rpartition(")")[2].split()[:2]
                below.setdefault(int(parent), {})[int(name)] = state
    found: dict[int, str] = {}
    todo = [root]
    while todo:
        children = below.get(todo.pop(), {})
        found |= children
        todo += children
    return found


def walked(code: str, folder: Path, runs: int, tell: Callable[[], None]) -> Times:
    """The ten lines without a cgroup: walk, SIGSTOP until all stand, SIGKILL until all are gone."""
    times = Times()
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: what is double-forked stays below us
    inotify = INotify()
    inotify.add_watch("/dev/pts", flags.CREATE)
    for n in range(runs):
        place = folder / f"walked-{n}"
        place.mkdir()
        task = subprocess.Popen([sys.executable, "-I", "-S", "-c", code], cwd=place, start_new_session=True)
        others = tree(os.getpid()).keys() - tree(task.pid).keys() - {task.pid}
        while not (place / "up").exists():
            time.sleep(0.01)
        time.sleep(0.1)
        inotify.read(timeout=0)
        began_s, pair = sign()
        inotify.read()
        decided_s = time.perf_counter()
        while running := [p for p, s in tree(os.getpid()).items() if s not in "TZX" and p not in others]:
            for pid in running:
                os.kill(pid, signal.SIGSTOP)
        frozen_s = time.perf_counter()
        while living := [p for p, s in tree(os.getpid()).items() if s not in "ZX" and p not in others]:
            for pid in living:
                os.kill(pid, signal.SIGKILL)
        times.note(began_s, decided=decided_s, frozen=frozen_s, gone=time.perf_counter(), settled=time.perf_counter())
        task.wait()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        for fd in pair:
            os.close(fd)
        tell()
    inotify.close()
    return times


def limit(base: str, code: str, folder: Path, runs: int, tell: Callable[[], None]) -> Times:
    """The ten lines."""
    times = Times()
    inotify = INotify()
    inotify.add_watch("/dev/pts", flags.CREATE)
    for n in range(runs):
        cgroup, place = f"{base}/rae-limit-{os.getpid()}-{n}", folder / f"limit-{n}"
        os.mkdir(cgroup)
        place.mkdir()

        def enter(cgroup: str = cgroup) -> None:
            Path(cgroup, "cgroup.procs").write_text("0")

        task = subprocess.Popen([sys.executable, "-I", "-S", "-c", code], cwd=place, preexec_fn=enter, start_new_session=True)
        while not (place / "up").exists():
            time.sleep(0.01)
        time.sleep(0.1)
        inotify.read(timeout=0)
        watcher = Watcher(cgroup)
        done: list[float] = []

        def listen(cgroup: str = cgroup, watcher: Watcher = watcher, done: list[float] = done) -> None:
            inotify.read()
            done.append(time.perf_counter())
            with open(f"{cgroup}/cgroup.freeze", "w") as freeze:
                freeze.write("1")
            while not watcher.frozen_s:
                time.sleep(0.0001)
            with open(f"{cgroup}/cgroup.kill", "w") as kill:
                kill.write("1")

        listener = threading.Thread(target=listen)
        listener.start()
        time.sleep(0.02)
        began_s, pair = sign()
        listener.join()
        watcher.join(10)
        task.wait()
        times.note(began_s, decided=done[0], frozen=watcher.frozen_s, gone=watcher.gone_s, settled=watcher.gone_s)
        for fd in pair:
            os.close(fd)
        with contextlib.suppress(OSError):
            os.rmdir(cgroup)
        tell()
    inotify.close()
    return times


@contextlib.contextmanager
def busy(cores: bool) -> Iterator[None]:
    """The person's own work on every core, at ordinary priority."""
    burners = [
        subprocess.Popen([sys.executable, "-I", "-S", "-c", "while True: pass"]) for _ in range((os.cpu_count() or 1) * cores)
    ]
    try:
        yield
    finally:
        for burner in burners:
            burner.send_signal(signal.SIGKILL)
            burner.wait()


def in_unit(runs: int, cores: bool) -> Times:
    """The product, as an installed node: this file again, in place of the daemon in its service."""
    from support.installed import UNIT, installed_anew

    with installed_anew() as node:
        box = node.box
        line = f"{sys.executable} {Path(__file__).resolve()} --inside --runs {runs}"
        streams = "StandardOutput=append:/var/lib/yield.json\nStandardError=journal"
        service = f"Type=exec\nProtectHome=no\nRestart=no\nWatchdogSec=0\nExecStart=\nExecStart={line}\n{streams}"
        node.drop_in("yield", f"[Service]\n{service}\n")
        with busy(cores):
            box.run("systemctl", "start", UNIT)
            until(lambda: node.show("ActiveState")["ActiveState"] in ("inactive", "failed"), "all runs", 600)
        try:
            return Times(json.loads(box.sh("cat /var/lib/yield.json")))
        except ValueError:
            print(box.sh(f"journalctl -u {UNIT} --no-pager | tail -30"), file=sys.stderr)
            raise


def inside(runs: int) -> int:
    """What runs there: the times, as JSON."""
    place = TreeContainment("by choice")
    place.offer = sandbox.look()
    with tempfile.TemporaryDirectory(prefix="yield-") as folder:
        times = asyncio.run(ours(place, MANY, Path(folder) / "work", runs, lambda: None))
    print(json.dumps(times.marks), flush=True)
    return 0


def main() -> int:
    """Parse, run, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--unit", action="store_true", help="also tasks in systemd units, in a box")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        return inside(given.runs)
    containment = detect()
    if not isinstance(containment, CgroupContainment):
        print(f"yield.py needs a cgroup of its own to measure: {containment.summary()}", file=sys.stderr)
        return 2
    rows: list[dict[str, Any]] = []
    scenes = [(name, False, containment) for name in TASKS] + [("200 processes", True, containment)]
    for kind, cores, way in [*scenes, ("200 processes", False, TreeContainment("by choice"))]:
        in_cgroup = way is containment
        name = kind + (", cores busy" if cores else "") + ("" if in_cgroup else ", no cgroup")
        count = [0]

        def tell(name: str = name, count: list[int] = count) -> None:
            count[0] += 1
            if count[0] % 50 == 0 or count[0] == 2 * given.runs:
                print(f"{name}: {count[0]} of {2 * given.runs}", file=sys.stderr, flush=True)

        with tempfile.TemporaryDirectory(prefix="yield-") as folder, busy(cores):
            mine = asyncio.run(ours(way, TASKS[kind], Path(folder) / "work", given.runs, tell))
            if in_cgroup:
                bare = limit(containment.base, TASKS[kind], Path(folder), given.runs, tell)
            else:
                bare = walked(TASKS[kind], Path(folder), given.runs, tell)
        rows += [judge(name, mark, mine, bare, TARGETS if in_cgroup else WALKED) for mark in MARKS]
    for cores in (False, True) if given.unit else ():
        name = "200 processes, unit" + (", busy" if cores else "")
        mine = in_unit(given.runs, cores)
        with tempfile.TemporaryDirectory(prefix="yield-") as folder, busy(cores):
            bare = limit(containment.base, MANY, Path(folder), given.runs, lambda: None)
        rows += [judge(name, mark, mine, bare, TARGETS) for mark in MARKS]
    if given.json:
        print(json.dumps(rows, indent=2))
    else:
        print(f"ms from a new terminal, {given.runs} runs; limit: ten lines on cgroup.freeze and cgroup.kill, same run")
        print(f"{'task':<28} {'mark':<8} {'p50':>8} {'limit':>8} {'target':>8}   {'p99':>8} {'limit':>8} {'target':>8}")
        for row in rows:
            figures = "   ".join(
                f"{row[p]:>8.2f} {row[p + '_limit']:>8.2f} {row[p + '_target'] or 0:>8.2f}" for p in ("p50", "p99")
            )
            print(f"{row['task']:<28} {row['mark']:<8} {figures}  {row['judged']}")
        frozen = [row["p50"] for row in rows if row["mark"] == "frozen"]
        print(f"BOINC 8 stops its task 756 ms (p50) after a key in X (performance.md): {756 / max(frozen):.0f} × and more")
    return int(any(row["judged"] == "short" for row in rows))


def judge(task: str, mark: str, mine: Times, bare: Times, targets: Mapping[str, tuple[float, ...]]) -> dict[str, Any]:
    """One line of the table."""
    row: dict[str, Any] = {"task": task, "mark": mark}
    for number, (name, part) in enumerate((("p50", 0.5), ("p99", 0.99))):
        row |= {name: mine.ms(mark, part), f"{name}_limit": bare.ms(mark, part)}
        target = targets.get(mark)
        row[f"{name}_target"] = None if target is None else row[f"{name}_limit"] * target[number] + target[2] * number
    if mark not in targets:
        row["judged"] = ""
    else:
        row["judged"] = "ok" if all(row[p] <= row[f"{p}_target"] for p in ("p50", "p99")) else "short"
    return row


if __name__ == "__main__":
    sys.exit(main())
