"""What the GPU sensors share: a helper process that looks, when it is asked to, and what becomes of one that hangs.

A driver call can hang in the kernel, so all of them are made in a helper (nvml_helper.py, drm_helper.py), which lives while
there is something to look at. One that hangs is killed and not waited for; while a killed one is still there no second one is
started, and the reading is an error that says so. A failure is retried, later each time, and never final.

When it looks: at the start, every `demand` seconds (in RUNNING every 2 s), else only just before the
reading would be too old, and at once when somebody opens a node of the GPU; a process makes its context only after the
open, so three further looks follow. Where our own call opens nodes, opens while it runs are taken for ours. What costs
nothing (asleep, absent) is looked at by `latest` itself and needs no timer.

After a suspend the driver may not be back, and what was read before proves nothing: the reading is unknown until a new
helper has looked. The kernel's two clocks tell of every suspend, with or without logind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from states.observation import NEVER, Gpu, Reading
from supervisor.config.schema import GpuSettings
from supervisor.linux import helper_main
from supervisor.linux.bounded import wait_for_event
from supervisor.linux.clock import Clock
from supervisor.linux.helper_process import Helper
from supervisor.linux.inotify import Event, Watcher, flags
from supervisor.linux.proc import Name, name_of
from supervisor.sensors.base import Wake
from supervisor.sensors.gpu.ownership import NOTHING_OWN, Own, Use

FOLLOW_UP_S: Final = (0.25, 0.75, 1.5)  # looks after an open, each so long after the one before
BACKOFF_S: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 25.0)
REMNANT_S: Final = 30.0  # how long a pid of the task counts as lately ours
START_S: Final = 2.0  # what `start` waits for a first reading
SUSPENDED_S: Final = 1.0  # a shorter difference between the clocks is their own

ABSENT: Final = Gpu(present=False)


def suspended_s() -> float:
    """Seconds that the machine has been suspended since boot."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()


@dataclass(frozen=True, slots=True)
class Setup:
    """What a GPU sensor is made with.

    clock: the clock.
    settings: `gpu` of node.yaml.
    own_pids: the processes of the node's task now.
    max_age_s: how old a reading may be before it proves nothing.
    deadline_s: seconds within which the helper must answer; its first call, which may load the driver or wake the GPU, has
        `first_deadline_s`.
    settle_s: seconds between a new helper's first look, if that shows a load, and the first one that is believed.
    """

    clock: Clock
    settings: GpuSettings
    own_pids: Callable[[], frozenset[int]]
    max_age_s: float = 30.0
    proc_root: Path = Path("/proc")
    sys_root: Path = Path("/sys")
    dev_root: Path = Path("/dev")
    deadline_s: float = 3.0
    first_deadline_s: float = 10.0
    settle_s: float = 0.2
    suspended_s: Callable[[], float] = suspended_s


class GpuWatch(ABC):
    """The life of a GPU sensor; what it looks at is its subclass's: `driver` is what to call the driver in words, `agent`
    the helper's module, `opens_nodes` whether that opens nodes of the GPU.

    Args:
        setup: what it is made with.
        nodes: the folder in which the GPU's nodes are.
        arguments: what the helper is given.
    """

    name: ClassVar[str] = "gpu"
    driver: ClassVar[str]
    agent: ClassVar[str]
    opens_nodes: ClassVar[bool]

    def __init__(self, setup: Setup, nodes: Path, *arguments: str) -> None:
        self._clock, self._settings, self._own_pids = setup.clock, setup.settings, setup.own_pids
        self._arguments = arguments
        self._node_folder, self._proc_root = nodes, setup.proc_root
        self._rest_s = setup.max_age_s * 5 / 6
        self._deadline_s, self._first_deadline_s = setup.deadline_s, setup.first_deadline_s
        self._suspended_s = setup.suspended_s
        self._slept_s = setup.suspended_s()
        self._interval_s = self._rest_s
        self._wake: Wake = lambda: None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._known = asyncio.Event()
        self._reading: Reading[Gpu] = Reading(error="not looked at yet", source=self.name.upper())
        self._use = Use(None)
        self._helper: Helper | None = None
        self._fresh = True  # the helper has not answered yet
        self._left: Helper | None = None
        self._failures = 0
        self._follow_up: list[float] = []
        self._looked_at_s = NEVER
        self._lately: dict[int, float] = {}
        self._left_by: tuple[int, ...] = ()
        self._unlisted: Mapping[str, float] = {}  # beside the last task
        self._watcher = Watcher(self._touched)

    # --- what a subclass says

    @abstractmethod
    def describe(self) -> list[dict[str, Any]]:
        """One row a GPU for doctor and check-gpu."""

    @abstractmethod
    def _glance(self, now_s: float) -> bool:
        """Whether every GPU is asleep, which proves that nobody uses one; must wake none and cost next to nothing."""

    @abstractmethod
    def _glanced(self, now_s: float) -> None:
        """At each look of the tick, while no question is under way."""

    @abstractmethod
    def _question(self) -> bytes:
        """The line that the helper is asked; called just before, so a subclass may note that it does not rest."""

    @abstractmethod
    def _take(self, line: bytes, now_s: float) -> None:
        """The helper's answer: publish, or fail, and say when to look again."""

    @abstractmethod
    def _is_node(self, name: str) -> bool:
        """Whether a file in the folder of nodes is the GPU's."""

    @abstractmethod
    def _watch_nodes(self) -> None:
        """Watch for opens, where they are not seen in the folder anyway."""

    # --- the sensor's face

    async def start(self, wake: Wake) -> None:
        """Begin to watch. Returns with the first reading, or after two seconds without one."""
        self._loop, self._wake = asyncio.get_running_loop(), wake
        if self._settings.presence == "none":
            return
        self._watch()
        self._look()
        await wait_for_event(self._known, START_S)

    async def stop(self) -> None:
        """Let go of everything; a helper that cannot be killed is left behind."""
        self._loop = None
        self._cancel_timer()
        self._watcher.close()
        helper, self._helper = self._helper, None
        for one in (helper, self._left):
            if one is not None:
                await one.end_or_abandon(0.5)
        self._left = None

    def latest(self, now_s: float) -> Reading[Gpu]:
        """What is known now; looks itself at what costs nothing."""
        if self._settings.presence == "none":
            return Reading(ABSENT, "", "gpu.presence: none", now_s)
        self._remember_own(now_s)
        if self._loop is not None:
            self._notice_resume(now_s)
            if not self._busy:
                self._glanced(now_s)
        return self._reading

    @property
    def seen(self) -> Reading[Gpu]:
        """The last reading, as it was."""
        return self._reading

    @property
    def own(self) -> Own:
        """What the node's own task does there, by the last look; nothing where that look could not tell."""
        return self._use.own if self._reading.value is not None else NOTHING_OWN

    def demand(self, interval_s: float | None) -> None:
        """How often to look, in seconds; None: only so often that the reading does not get too old."""
        interval_s = self._rest_s if interval_s is None else min(interval_s, self._rest_s)
        if interval_s == self._interval_s:
            return
        self._interval_s = interval_s
        if self._timer is not None and not self._fresh and not self._failures and not self._resting:
            self._look_in(max(0.0, self._looked_at_s + interval_s - self._clock.now_s()))

    async def refresh(self, timeout_s: float) -> Reading[Gpu]:
        """Look now and wait for the answer, at most `timeout_s` seconds; one that was asked before is not it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                if self._busy:
                    self._known.clear()
                    await self._known.wait()
                self._known.clear()
                self._look()
                await self._known.wait()
        return self.latest(self._clock.now_s())

    # --- when to look

    @property
    def _busy(self) -> bool:
        return self._helper is not None and self._helper.busy

    @property
    def _resting(self) -> bool:
        """It is left alone for a while, on purpose."""
        return False

    def _notice_resume(self, now_s: float) -> None:
        slept_s = self._suspended_s()
        if slept_s - self._slept_s > SUSPENDED_S:
            self._end_helper()
            self._forget_looks()
            self._failures, self._follow_up = 0, []
            self._reading = Reading(None, "not looked at since the machine woke up", self.name.upper(), now_s)
            self._look_in(0.0)
        self._slept_s = slept_s

    def _look(self) -> None:
        """Ask the helper, if there is something to ask, and if it is not busy already."""
        if self._loop is None or self._busy:
            return
        self._cancel_timer()
        if self._glance(self._clock.now_s()):
            self._known.set()
            if self._follow_up:
                self._look_in(self._follow_up.pop(0))
            return
        self._cancel_timer()
        question = self._question()
        if self._left is not None and not self._left.gone:
            if self._left.stuck:
                hung = f"process {self._left.pid} cannot be killed; reboot if it stays so"
                self._failed(f"the {self.driver} driver hangs: {hung}")
            else:
                self._look_in(0.05)
            return
        if self._helper is None:
            self._fresh = True
            try:
                self._helper = Helper(helper_main.command(self.agent, *self._arguments), self._answered, self._helper_failed)
            except OSError as error:
                self._failed(f"the GPU helper cannot be started: {error.strerror}")
                return
        self._helper.ask(question, self._first_deadline_s if self._fresh else self._deadline_s)

    def _look_in(self, delay_s: float) -> None:
        self._cancel_timer()
        if self._loop is not None:
            self._timer = self._loop.call_later(delay_s, self._look)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_helper(self) -> None:
        if self._helper is not None:
            self._helper.end()
            self._left, self._helper = self._helper, None

    # --- what came back

    def _answered(self, line: bytes) -> None:
        if self.opens_nodes:
            self._concern_gpu(self._watcher.read())
        self._watch_nodes()
        try:
            self._take(line, self._clock.now_s())
        except Exception as error:  # noqa: BLE001 - a fault of ours is one more way not to know (R12), and tried again
            self._failed(f"its answer cannot be judged: {type(error).__name__}: {error}")

    def _helper_failed(self, reason: str) -> None:
        if self._helper is not None:
            self._helper.kill()
            self._left, self._helper = self._helper, None
        hung = self._left is not None and self._left.hung
        self._failed(f"the {self.driver} driver hangs: {reason}" if hung else f"the GPU helper failed: {reason}")

    def _failed(self, reason: str) -> None:
        """Publish the error, and try again later, later each time."""
        self._follow_up = []
        delay_s = BACKOFF_S[min(self._failures, len(BACKOFF_S) - 1)]
        self._failures += 1
        rows = self._use.rows if self._use.error == reason else ()
        self._publish(Use(None, reason, rows=rows), self._clock.now_s(), self.name.upper())
        self._look_in(delay_s)

    def _publish(self, use: Use, now_s: float, source: str) -> None:
        before = self._reading
        self._use = use
        self._reading = Reading(use.gpu, use.error, source, now_s)
        self._known.set()
        if (before.value, before.error) != (use.gpu, use.error):
            self._wake()

    # --- processes

    def _remember_own(self, now_s: float) -> frozenset[int]:
        own = self._own_pids()
        if own or self._lately:
            left = self._left_by
            self._lately = {pid: at_s for pid, at_s in self._lately.items() if now_s - at_s <= REMNANT_S or pid in left}
            self._lately |= dict.fromkeys(own, now_s)
        return own

    def _note_left(self, use: Use, own: Collection[int]) -> None:
        """Remember what the last task left, and what was held beside it, until a look shows that nothing is left."""
        if use.gpu is None:
            return
        self._left_by = use.own.left_by
        if own or not use.own.left:
            self._unlisted = use.own.unlisted or (self._unlisted if own else {})

    def _lately_own(self, now_s: float) -> dict[int, float]:
        """See `nvml_usage.judge`."""
        return {pid: now_s - seen_s for pid, seen_s in self._lately.items()}

    def _name_of(self, pid: int) -> Name:
        return name_of(self._proc_root, pid)

    # --- nodes of the GPU in /dev

    def _watch(self) -> None:
        """Watch for opens and for new nodes. Where inotify is not to be had, looks come by their interval alone."""
        self._watcher.open()
        self._watcher.add(self._node_folder, self._folder_events)
        self._watch_nodes()

    @property
    def _folder_events(self) -> int:
        return int(flags.CREATE)

    def _nodes(self) -> list[str]:
        try:
            return sorted(name for name in os.listdir(self._node_folder) if self._is_node(name))
        except OSError:
            return []

    def _touched(self, events: list[Event]) -> None:
        """A node was opened or made: look now, and again, since a context comes after the open."""
        ours = self._busy and self.opens_nodes
        if not self._concern_gpu(events) or ours or self._follow_up:
            return
        self._follow_up = list(FOLLOW_UP_S)
        self._watch_nodes()
        self._surprised()
        self._look()
        self._wake()

    @abstractmethod
    def _forget_looks(self) -> None:
        """The machine was suspended: nothing may be concluded from a look before that."""

    @abstractmethod
    def _surprised(self) -> None:
        """Something new is there: what was concluded from its absence is over."""

    def _concern_gpu(self, events: list[Event]) -> bool:
        """Whether one of the events concerns a GPU."""
        folder = str(self._node_folder)
        seen = False
        for event in events:
            if event.gone:
                if event.path == folder:
                    self._watch_nodes()  # it may be there again
                continue
            if event.mask & flags.CREATE:
                self._watcher.remove(event.path)  # another node has this name now; the old one may be open still
            seen = seen or event.overflow or self._is_node(os.path.basename(event.path))
        return seen
