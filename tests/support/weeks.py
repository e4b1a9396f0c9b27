"""Weeks and months of a node's life in seconds: the real loop, mind, performer and journal over simulated people.

    python tests/support/weeks.py --kind office --days 30 --out DIR

Simulated are the signs (person, GPU, CPU), the control node and the tasks; the clock is injected, and the event loop
skips the time in which nothing happens. Everything else is the product: `Daemon.run`, `Observer`, `Lifecycle`,
`Performer`, `Slot`, `Will`, `Journal`. The same kind, seed and days give the same lines, but for the process id. The
loop looks every 30 s with a task in hand, and not every second, so that a month takes seconds; signs wake it at once.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import contextlib
import functools
import os
import random
import selectors
import shutil
import sys
import tempfile
import time
import uuid
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from states.lifecycle import Lifecycle  # noqa: E402
from states.memory import Memory  # noqa: E402
from states.observation import NEVER, Cpu, Gpu, Host, Link, Reading  # noqa: E402
from supervisor import daemon as loop_module  # noqa: E402
from supervisor.config import Config, load  # noqa: E402
from supervisor.effects.systemd import Notifier  # noqa: E402
from supervisor.journal import Journal, files  # noqa: E402
from supervisor.node import Node  # noqa: E402
from supervisor.sensors.base import Presence  # noqa: E402
from supervisor.sensors.gpu_use import Own  # noqa: E402
from supervisor.settings import TaskType  # noqa: E402
from supervisor.slot import Slot  # noqa: E402
from supervisor.sources.base import Availability, Claim, LinkStatus  # noqa: E402
from supervisor.version import VERSION  # noqa: E402

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
BUSY_S: Final = 30.0  # between looks with a task in hand; the product takes 1 s
TYPES: Final = ("render", "embed", "transcribe")
# The end of summer time in central Europe lies in the month that begins here.
FIRST_DAY: Final = (2026, 10, 5)
ZONE: Final = "CET-1CEST,M3.5.0,M10.5.0/3"


# --- what happens, in seconds since the epoch


@dataclass
class Story:
    """Everything that happens from `begin` to `end`, in order. Spans are (from, to, more)."""

    begin: float
    end: float
    there: list[tuple[float, float]] = field(default_factory=list)  # signs come all the time
    gpu: list[tuple[float, float, float, float, str]] = field(default_factory=list)  # percent, GiB, name of the program
    cpu: list[tuple[float, float, float]] = field(default_factory=list)  # percent
    off: list[tuple[float, float, bool]] = field(default_factory=list)  # True: the power went, nothing was closed
    down: list[tuple[float, float]] = field(default_factory=list)  # no way to the control node
    pauses: list[tuple[float, float]] = field(default_factory=list)  # when it was said, until when


def at(day: int, hour: float, first: tuple[int, int, int] = FIRST_DAY) -> float:
    """Local time `hour` of the n-th day, in seconds since the epoch; a clock change moves it as it moves people."""
    year, month, mday = first
    minutes = round(hour * 60)
    return time.mktime((year, month, mday + day, minutes // 60, minutes % 60, 0, 0, 0, -1))


def weekday(day: int) -> int:
    """0 is Monday."""
    return time.localtime(at(day, 12)).tm_wday


def sit(story: Story, rng: random.Random, begin: float, end: float, busy_s: float, rests: tuple[float, float]) -> None:
    """A person at the machine: `busy_s` at a time on average, with pauses; `rests` are the shares of middling and of
    long ones."""
    now = begin
    while now < end:
        until = min(end, now + 20 + rng.expovariate(1 / busy_s))
        story.there.append((now, until))
        kind = rng.random()
        long, middling = rests[1], rests[0] + rests[1]
        pause = rng.uniform(15, 50) * MINUTE if kind < long else rng.uniform(3, 11) * MINUTE if kind < middling else 0
        now = until + (pause or 5 + rng.expovariate(1 / 50))


def office(rng: random.Random, days: int) -> Story:
    """Nine to five on weekdays, with lunch and meetings; compiles; off over every second weekend."""
    story = Story(at(0, 0), at(days, 0))
    for day in range(days):
        if weekday(day) >= 5:
            if weekday(day) == 5 and (day // 7) % 2:
                sit(story, rng, at(day, 11), at(day, 11.4), 4 * MINUTE, (0.1, 0.0))  # a look from home
            continue
        come, go = rng.uniform(8.1, 8.9), rng.uniform(16.6, 18.2)
        lunch = rng.uniform(12, 12.6)
        sit(story, rng, at(day, come), at(day, lunch), 6 * MINUTE, (0.14, 0.06))
        sit(story, rng, at(day, lunch + rng.uniform(0.6, 1.0)), at(day, go), 6 * MINUTE, (0.14, 0.06))
        for _ in range(rng.randint(1, 4)):
            begin = at(day, rng.uniform(come, go))
            story.cpu.append((begin, begin + rng.uniform(4, 14) * MINUTE, rng.uniform(84, 99)))
        if weekday(day) == 4 and (day // 7) % 2 == 0:
            story.off.append((at(day, go + 0.4), at(day + 3, 7.9), False))
    return story


def gamer(rng: random.Random, days: int) -> Story:
    """Plays at night, longer at weekends; the game holds the GPU; often off until the morning."""
    story = Story(at(0, 0), at(days, 0))
    for day in range(days):
        evenings = [(rng.uniform(19.0, 20.2), rng.uniform(23.6, 26.0))]
        if weekday(day) >= 5:
            evenings.insert(0, (rng.uniform(13.5, 14.5), rng.uniform(17.0, 18.2)))
        for come, go in evenings:
            sit(story, rng, at(day, come), at(day, go), 11 * MINUTE, (0.10, 0.05))
            begin = come + rng.uniform(0.2, 0.6)
            while begin < go - 0.3:
                end = min(go - 0.05, begin + rng.uniform(0.8, 2.6))
                story.gpu.append((at(day, begin), at(day, end), rng.uniform(70, 99), rng.uniform(5, 11), "game.x86_64"))
                begin = end + rng.uniform(0.1, 0.5)
        if rng.random() < 0.4:
            story.off.append((at(day, evenings[-1][1] + 0.2), at(day + 1, rng.uniform(8.5, 11)), False))
        elif rng.random() < 0.5:
            begin = at(day + 1, rng.uniform(4, 8))
            story.cpu.append((begin, begin + rng.uniform(8, 25) * MINUTE, rng.uniform(82, 95)))  # the game's update
    return story


def nobody(rng: random.Random, days: int) -> Story:
    """Nobody home: a backup every night, a look from afar now and then, a power cut, a control node out of reach."""
    story = Story(at(0, 0), at(days, 0))
    for day in range(days):
        begin = at(day, 3)
        story.cpu.append((begin, begin + rng.uniform(20, 35) * MINUTE, rng.uniform(85, 97)))
        if rng.random() < 0.3:
            hour = rng.uniform(9, 22)
            sit(story, rng, at(day, hour), at(day, hour + rng.uniform(0.1, 0.4)), 3 * MINUTE, (0.1, 0.0))
    if days > 2:
        story.off.append((at(days // 3, 14.3), at(days // 3, 19.6), True))
        story.down.append((at(days // 2, 1.2), at(days // 2, 10.1)))
        story.pauses.append((at(days // 2 + 1, 12), at(days // 2 + 1, 15)))
    return story


KINDS: Final[Mapping[str, Callable[[random.Random, int], Story]]] = {"office": office, "gamer": gamer, "nobody": nobody}


# --- time


@dataclass
class StoryClock:
    """Moved by the loop alone, from one thing that happens to the next."""

    wall: float
    now: float = 40.0  # since boot

    def now_s(self) -> float:
        """See Clock."""
        return self.now

    def wall_s(self) -> float:
        """See Clock."""
        return self.wall

    def go(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        self.wall += seconds


class _Skip(selectors.DefaultSelector):
    """Waits for nothing: the time that the loop would have slept is over at once."""

    def __init__(self, clock: StoryClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> Any:
        """See BaseSelector."""
        events = super().select(0)
        if not events:
            if timeout is None:
                raise RuntimeError("nothing would ever happen again")
            if timeout > 0:
                self._clock.go(max(timeout, 1e-6))
        return events


class _Inline(ThreadPoolExecutor):
    """A worker thread's work, done here: no time passes meanwhile."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See Executor."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # handed to who waits, as a thread would
            future.set_exception(error)
        return future


def _loop(clock: StoryClock) -> asyncio.AbstractEventLoop:
    loop = asyncio.SelectorEventLoop(_Skip(clock))
    loop.time = clock.now_s  # type: ignore[method-assign]
    loop.set_default_executor(_Inline(1))
    return loop


# --- the simulated parts


class Spans:
    """Which span of a list holds now; the lists are in order and do not overlap."""

    def __init__(self, spans: list[Any]) -> None:
        self._spans = sorted(spans)
        self._begins = [s[0] for s in self._spans]

    def last(self, wall: float) -> Any:
        """The last span that has begun, or None."""
        n = bisect_right(self._begins, wall)
        return self._spans[n - 1] if n else None

    def now(self, wall: float) -> Any:
        """The span that lasts, or None."""
        last = self.last(wall)
        return last if last is not None and wall < last[1] else None


def _wobble(wall: float, salt: int) -> float:
    """0 to 1, a new value every two minutes, the same for the same moment."""
    return ((int(wall // 120) * 2654435761 + salt * 40503) >> 7) % 1000 / 999


class Signs:
    """What the sensors of the simulated machine say."""

    name = "simulated"

    def __init__(self, story: Story, clock: StoryClock) -> None:
        self.clock = clock
        self._there, self._gpu, self._cpu = Spans(story.there), Spans(story.gpu), Spans(story.cpu)

    def latest(self, now_s: float) -> Presence:
        """See PresenceSensor."""
        wall = self.clock.wall
        last = self._there.last(wall)
        if last is None:
            return Presence(self.name, now_s)
        sign_s = now_s - max(0.0, wall - last[1])
        return Presence(self.name, now_s, NEVER if sign_s < 0 else sign_s, "user active on seat0")

    def gpu(self, now_s: float) -> Reading[Gpu]:
        """A game, or next to nothing."""
        wall = self.clock.wall
        game = self._gpu.now(wall)
        if game is None:
            return Reading(Gpu(1 + 4 * _wobble(wall, 1), 0.6 + 0.5 * _wobble(wall, 2)), "", self.name, now_s)
        _, _, percent, vram_gb, program = game
        return Reading(
            Gpu(percent - 9 * _wobble(wall, 3), vram_gb + 0.8 * _wobble(wall, 4), 1, True, (program,)), "", self.name, now_s
        )

    def cpu(self, now_s: float) -> Reading[Cpu]:
        """A load, a person's ordinary use, or next to nothing."""
        wall = self.clock.wall
        load = self._cpu.now(wall)
        if load is not None:
            return Reading(Cpu(load[2]), "", self.name, now_s)
        here = self._there.now(wall) is not None
        return Reading(Cpu(12 + 25 * _wobble(wall, 5) if here else 2 + 6 * _wobble(wall, 6)), "", self.name, now_s)

    def host(self, now_s: float) -> Reading[Host]:
        """Always fit."""
        return Reading(Host(), "", self.name, now_s)


class StillGpu:
    """The GPU's own sensor, which nobody needs to wake: its readings are the story's."""

    own = Own()

    def __init__(self, signs: Signs) -> None:
        self.latest = signs.gpu
        self._signs = signs

    def demand(self, interval_s: float | None) -> None:
        """See Gpus."""

    async def refresh(self, timeout_s: float) -> Reading[Gpu]:
        """See Gpus."""
        return self.latest(self._signs.clock.now)


class SimulatedTask:
    """A process that lasts as long as it was told to."""

    def __init__(self, seconds: float, stop_s: float, fails: bool, wake: Callable[[], None]) -> None:
        self.alive = True
        self.result: dict[str, Any] = {}
        self.error: str | None = None
        self._stop_s, self._fails, self._wake = stop_s, fails, wake
        self._timer = asyncio.get_running_loop().call_later(seconds, self._end)

    def _end(self) -> None:
        self.alive = False
        self.error = "exit status 1" if self._fails else None
        self._wake()

    @property
    def ended(self) -> bool:
        """See RunningTask."""
        return not self.alive

    def pids(self) -> frozenset[int]:
        """See RunningTask."""
        return frozenset()

    def cpu_s(self) -> float:
        """See RunningTask."""
        return 0.0

    @property
    def state(self) -> Any:
        """See RunningTask."""
        return None

    async def freeze(self) -> str:
        return "frozen 0 ms"

    async def thaw(self) -> str:
        return "thawed 0 ms"

    async def stop(self, grace_s: float) -> str:
        """See RunningTask."""
        self._timer.cancel()
        await asyncio.sleep(self._stop_s)
        self.alive = False
        return f"frozen 1 ms, term 2 ms, gone {self._stop_s * 1000:.0f} ms"


@dataclass
class Supply:
    """The control node's queue: `endless` (every poll brings a task of `task_s` seconds, at once), or as people fill it."""

    rng: random.Random
    endless: bool = False
    task_s: float = 1200.0
    ready: list[float] = field(default_factory=list)
    filled_until: float = 0.0

    def take(self, wall: float) -> tuple[float, bool] | None:
        """(seconds that it lasts, whether it fails), or None: nothing is there."""
        if self.endless:
            return self.task_s, False
        while self.filled_until < wall:
            self.filled_until = max(self.filled_until, wall - HOUR) + self.rng.uniform(0.3, 4) * HOUR
            self.ready += [self.rng.uniform(3, 45) * MINUTE for _ in range(self.rng.randint(1, 12))]
            del self.ready[40:]
        return (self.ready.pop(0), self.rng.random() < 0.02) if self.ready else None


class SimulatedSource:
    """The link and the control node. See Source."""

    crash_note = False

    def __init__(self, story: Story, clock: StoryClock, supply: Supply, wake: Callable[[], None]) -> None:
        self._clock, self._supply, self._wake = clock, supply, wake
        self._down = Spans(story.down)
        self._now_lasts = (0.0, False)
        self.asking = False
        self.waiting: Claim | None = None
        self.announced = Availability.BUSY

    async def start(self, wake: Callable[[], None]) -> None:
        """See Source."""

    async def stop(self, deadline_s: float) -> None:
        """See Source."""

    @property
    def status(self) -> LinkStatus:
        """See Source."""
        if self._down.now(self._clock.wall) is not None:
            return LinkStatus(Link.DOWN, 0.0, "connection refused", None, "B", "http://control.example")
        return LinkStatus(Link.UP, 0.0, "", None, "B", "http://control.example")

    def ask(self) -> bool:
        """See Source."""
        if self.asking or self.waiting is not None or self.status.link is not Link.UP:
            return False
        self.asking = True
        asyncio.get_running_loop().call_later(0.05, self._answer)
        return True

    def _answer(self) -> None:
        self.asking = False
        task = self._supply.take(self._clock.wall)
        if task is not None:
            self._now_lasts = task
            rng = self._supply.rng
            self.waiting = Claim(str(uuid.UUID(int=rng.getrandbits(128), version=4)), rng.choice(TYPES))
        self._wake()

    def take(self) -> Claim | None:
        """See Source."""
        taken, self.waiting = self.waiting, None
        return taken

    @property
    def lasts(self) -> tuple[float, bool]:
        """How the task in hand will go."""
        return self._now_lasts

    def settle(self, claim: Claim, result: Mapping[str, Any], error: str | None) -> None:
        """See Source."""

    def hand_back(self, claim: Claim, reason: str, on_preempt: str) -> None:
        """See Source."""
        if not self._supply.endless:
            self._supply.ready.append(self._now_lasts[0])

    def announce(self, availability: Availability) -> None:
        """See Source."""
        self.announced = availability

    def resume(self) -> None:
        """See Source."""


class SimulatedNode(Node):
    """The product's node; its senses, its link and what runs a task are the story's."""

    def __init__(self, config: Config, clock: StoryClock, wake: Callable[[], None], story: Story, supply: Supply) -> None:
        self._story, self._supply, self._story_clock = story, supply, clock
        super().__init__(config, clock, wake, lambda _: None)
        self.will.hindrances["leftovers"] = ""

    def _build_source(self, config: Config) -> None:
        self.will.hindrances["key"] = ""
        self.source = SimulatedSource(self._story, self._story_clock, self._supply, lambda: self._wake())
        self.slot = Slot(self.source)

    def _build_senses(self, config: Config) -> None:
        super()._build_senses(config)
        signs, senses = Signs(self._story, self._story_clock), self.senses
        senses.observer.presence = (signs,)  # type: ignore[assignment]
        senses.observer.gpu, senses.observer.cpu, senses.observer.host = signs.gpu, signs.cpu, signs.host
        senses.gpu = StillGpu(signs)  # type: ignore[assignment]

    def _build_performer(self) -> None:
        super()._build_performer()
        self.minder.begin = lambda *_: None  # type: ignore[method-assign]

    def _executor(self, task_type: TaskType) -> Any:
        rng = self._supply.rng

        async def start(claim: Claim, folder: Path, wake: Callable[[], None]) -> SimulatedTask:
            seconds, fails = self.source.lasts  # type: ignore[attr-defined]
            return SimulatedTask(seconds, rng.uniform(0.02, 0.35), fails, wake)

        return SimpleNamespace(start=start)


# --- living it


def settings(folder: Path, logs: Path, changes: Mapping[str, float] | None = None) -> Config:
    """A configuration as shipped, with `changes` to runtime.yaml ("safety.idle_required_minutes": 5)."""
    import yaml

    runtime = yaml.safe_load((ROOT / "config" / "runtime.yaml").read_text())
    node: dict[str, Any] = {
        "node": {"id": "simulated"},
        "tasks": {kind: {"argv": ["/bin/true"]} for kind in TYPES},
        "host": {"inhibitor": "none"},
        "paths": {"logs": str(logs), "workdir": "work", "runtime": "run", "state": "state"},
    }
    for name, value in (changes or {}).items():
        section, _, key = name.partition(".")
        (runtime if section in runtime else node).setdefault(section, {})[key] = value
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "runtime.yaml").write_text(yaml.safe_dump(runtime))
    (folder / "node.yaml").write_text(yaml.safe_dump(node))
    return load(folder)


def live(
    kind: str,
    days: int,
    out: Path,
    *,
    seed: int = 1,
    changes: Mapping[str, float] | None = None,
    endless_s: float | None = None,
) -> list[Path]:
    """Live `days` days and write their journals into `out`; the files.

    `changes`: settings, dotted. `endless_s`: there is always a task, each of so many seconds; None: a queue that people
    fill now and then.
    """
    story = KINDS[kind](random.Random(f"{kind}-{seed}"), days)
    supply = Supply(random.Random(f"tasks-{kind}-{seed}"), endless_s is not None, endless_s or 0.0)
    clock = StoryClock(story.begin)
    out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weeks-")))
        stack.enter_context(_slow_when_busy())
        config = settings(folder, out.resolve(), changes)
        for begin, end, cut in _lives(story):
            clock.wall, clock.now = begin, 40.0
            with asyncio.Runner(loop_factory=lambda: _loop(clock)) as runner:
                runner.run(_life(config, clock, story, supply, end, cut))
            if cut:
                with max(out.glob("decisions-*.jsonl")).open("a") as file:
                    file.write('{"v": 1, "time": "20')
            shutil.rmtree(folder / "work", ignore_errors=True)
    return files([out])


def _lives(story: Story) -> Iterator[tuple[float, float, bool]]:
    """(from, to, whether the power went) of each time that the machine is on."""
    now = story.begin
    for begin, end, cut in sorted(story.off):
        if begin < story.end:
            yield now, begin, cut
        now = end
    if now < story.end:
        yield now, story.end, False


@contextlib.contextmanager
def _slow_when_busy() -> Iterator[None]:
    kept = loop_module.BUSY_S
    loop_module.BUSY_S = BUSY_S  # type: ignore[misc]
    try:
        yield
    finally:
        loop_module.BUSY_S = kept  # type: ignore[misc]


async def _life(config: Config, clock: StoryClock, story: Story, supply: Supply, end: float, cut: bool) -> None:
    """From one start of the daemon to its end, as supervisor/service.py does it."""
    loop = asyncio.get_running_loop()
    zero = clock.wall - clock.now
    daemon: loop_module.Daemon | None = None
    node = SimulatedNode(config, clock, lambda: daemon.wake() if daemon is not None else None, story, supply)
    node.will.accept(config.runtime.automation.enabled)
    journal = Journal(config.paths.logs, clock, keep_days=100_000)
    memory = Memory(since_s=clock.now)
    daemon = loop_module.Daemon(node, Lifecycle(config.limits, memory=memory), journal, clock, Notifier({}))
    node.on_event = daemon.event
    journal.start(VERSION, config.limits, memory)
    rng = random.Random(f"latency-{clock.wall}")
    for spans in (story.there, story.gpu):
        for span in spans:
            if clock.wall <= span[0] < end:
                loop.call_at(span[0] - zero + rng.uniform(0.002, 0.02), daemon.wake)
    for span in story.gpu:
        if clock.wall <= span[1] < end:
            loop.call_at(span[1] - zero + rng.uniform(0.1, 5), daemon.wake)
    for said, until in story.pauses:
        if clock.wall <= said < end:
            loop.call_at(said - zero, daemon.pause, {"until": until})
    for begin, over in story.down:
        for when, event in ((begin, "down"), (over, "up")):
            if clock.wall <= when < end:
                reason = "connection refused" if event == "down" else ""
                fields = {"event": event, "reason": reason, "url": "http://control.example", "dialect": "B"}
                loop.call_at(when - zero, daemon.event, "link", fields)
                loop.call_at(when - zero, daemon.wake)
    running = asyncio.ensure_future(daemon.run())
    loop.call_at(end - zero, running.cancel if cut else lambda: daemon.stop("the machine is shut down"))
    with contextlib.suppress(asyncio.CancelledError):
        await running
    if not cut:
        await node.source.stop(1.0)
        journal.write("stop", state=daemon.mind.state, reason=node.will.stopping)
    journal.close()


@contextlib.contextmanager
def zone(name: str = ZONE) -> Iterator[None]:
    """Local time is this zone's, for a while."""
    kept = os.environ.get("TZ")
    os.environ["TZ"] = name
    time.tzset()
    try:
        yield
    finally:
        if kept is None:
            del os.environ["TZ"]
        else:
            os.environ["TZ"] = kept
        time.tzset()


@functools.cache
def lived(kind: str, days: int = 30, endless_s: float | None = None, seed: int = 1) -> Path:
    """The folder of a span that is lived once a run of the tests, in central Europe; to be read, not changed."""
    folder = Path(tempfile.mkdtemp(prefix=f"weeks-{kind}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with zone():
        live(kind, days, folder, seed=seed, endless_s=endless_s)
    return folder


def main() -> None:
    """Live it, and say where its journals are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=sorted(KINDS), default="office")
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="folder for the journals")
    parser.add_argument("--tz", help="time zone of the people, such as Europe/Berlin; default: this machine's")
    parser.add_argument("--endless", type=float, metavar="MINUTES", help="there is always a task, each so long")
    given = parser.parse_args()
    if given.tz:
        os.environ["TZ"] = given.tz
        time.tzset()
    if given.out.is_dir() and files([given.out]):
        parser.error(f"{given.out}: has journals already; name another folder")
    began = time.perf_counter()
    endless_s = None if given.endless is None else given.endless * 60
    written = live(given.kind, given.days, given.out, seed=given.seed, endless_s=endless_s)
    size = sum(path.stat().st_size for path in written)
    took = time.perf_counter() - began
    print(f"{len(written)} journals, {size / 1e6:.1f} MB, lived in {took:.1f} s: {given.out}")


if __name__ == "__main__":
    main()
