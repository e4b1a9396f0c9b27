"""What the GPU sensors share: when a helper process looks at the GPU, and what happens when it hangs.

A driver call can hang in the kernel, so only a helper (nvml_helper, drm_helper) makes such calls. A helper that hangs is
killed, and nobody waits for it. While it is still there, no second one is started, and the reading is an error that says so.
A failure is retried with growing pauses, and is never final.

The helper looks at the start and every `demand` seconds (in RUNNING every 2 s); without a demand it looks just
before the reading gets too old. It looks at once when a process opens a node of the GPU, and three more times after that,
because a process makes its context only after the open. If our own call opens nodes, opens during the call count as ours.
What is free to read (asleep, absent) is read by `latest` itself.

After a suspend the driver may not be ready, and earlier readings prove nothing: the reading is unknown until a new helper has
looked. The difference between two clocks of the kernel shows each suspend, with or without logind.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, TypeVar

import msgspec

from states.observation import NEVER, Gpu, Reading
from supervisor.config.schema import GpuSettings
from supervisor.linux import helper_main
from supervisor.linux.bounded import wait_for_event
from supervisor.linux.clock import Clock, suspended_s
from supervisor.linux.helper_process import Helper, child
from supervisor.linux.inotify import Event, Watcher, flags
from supervisor.linux.proc import age_s, display_manager, name_of
from supervisor.sensors.base import Wake
from supervisor.sensors.gpu.ownership import NO_TASK_USE, GpuUse, Known, TaskUse

FOLLOW_UP_S: Final = (0.25, 0.75, 1.5)  # pauses before the looks that follow an open
BACKOFF_S: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 25.0)
REMNANT_S: Final = 30.0  # how long a pid counts as lately the task's
START_S: Final = 2.0  # how long `start` waits for a first reading
SUSPENDED_S: Final = 1.0  # a smaller difference between the clocks is no suspend
NEVER_LOOK: Final = math.inf  # the demand of a node that does not work
LET_GO_S: Final = 3.0  # between looks that are further apart, the driver is let go
RELEASE_POLL_S: Final = 0.01  # until it is

ABSENT: Final = Gpu(present=False)

A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class Setup:
    """What a GPU sensor needs.

    settings: `gpu` of node.yaml.
    own_pids: the processes of the node's task now.
    max_age_s: an older reading proves nothing.
    deadline_s: seconds within which the helper must answer; its first answer, which may load the driver or wake the GPU, has
        `first_deadline_s`.
    settle_s: seconds from a new helper's first look, if that shows a load, to the first look that counts.
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

    def lending(self, gpus: Sequence[str]) -> Setup:
        """The same for these GPUs."""
        return replace(self, settings=msgspec.structs.replace(self.settings, lend=list(gpus)))


class GpuPoller(ABC, Generic[A]):
    """A GPU sensor; a subclass says what it looks at.

    driver: the driver's name in messages.
    helper: the helper's module.
    answer: the type of the helper's answers.
    opens_nodes: whether the helper opens nodes of the GPU, and so keeps the driver in use.
    folder_events: what to watch for in the folder of the nodes.

    Args:
        nodes: the folder with the GPU's nodes.
        arguments: of the helper.
    """

    name: ClassVar[str]
    driver: ClassVar[str]
    helper: ClassVar[str]
    answer: type[A]
    opens_nodes: ClassVar[bool]
    folder_events: ClassVar[int] = flags.CREATE

    def __init__(self, setup: Setup, nodes: Path, arguments: Sequence[str] = ()) -> None:
        self._setup, self._settings, self._clock = setup, setup.settings, setup.clock
        self._node_folder, self._arguments = str(nodes), arguments
        self._rest_s = setup.max_age_s * 5 / 6
        self._slept_s = setup.suspended_s()
        self._interval_s = self._rest_s
        self._wake: Wake = lambda: None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._answered_event = asyncio.Event()
        self._reading: Reading[Gpu] = Reading(error="not looked at yet", source=self.name.upper())
        self._use = GpuUse(None)
        self._helper: Helper | None = None
        self._fresh = True  # the helper has not answered yet since it has opened the driver
        self._releasing = False  # it was asked to let the driver go
        self._ended: Helper | None = None  # the helper before
        self._failures = 0
        self._follow_up: list[float] = []
        self._looked_at_s = self._on_gpu_at_s = NEVER
        self._asleep = False
        self._needs_no_helper = False
        self._lately: dict[int, float] = {}  # when each process was last the task's
        self._left_by: tuple[int, ...] = ()
        self._unlisted: Mapping[str, float] = {}  # beside the last task
        self._before_task: Mapping[str, float] = {}
        self._watcher = Watcher(self._touched)

    # --- what a subclass defines

    @abstractmethod
    def describe(self) -> list[dict[str, Any]]:
        """One row per GPU for doctor and check-gpu."""

    @abstractmethod
    def _glance(self, now_s: float) -> bool:
        """Whether no helper is needed, because every GPU is asleep or absent; then publish that. It must wake no GPU, and cost
        next to nothing."""

    @abstractmethod
    def _take(self, answer: A, now_s: float) -> None:
        """The helper's answer: publish it or fail, and set the time of the next look."""

    @abstractmethod
    def _is_node(self, name: str) -> bool:
        """Whether a file in the folder of nodes is the GPU's."""

    def _surprised(self) -> None:
        """A node was opened or made: what followed from its absence is over."""

    def _watch_nodes(self) -> None:
        """Watch the folder, which may come late with the first driver."""
        if self._node_folder not in self._watcher.watched:
            self._watcher.add(self._node_folder, self.folder_events)

    # --- for everybody

    async def start(self, wake: Wake) -> None:
        """Begin to watch. Returns with the first reading, or after two seconds without one."""
        self._loop, self._wake = asyncio.get_running_loop(), wake
        if self._settings.presence == "none":
            return
        self._watcher.open()
        self._watch_nodes()
        self._look()
        await wait_for_event(self._answered_event, START_S)

    async def stop(self) -> None:
        """Stop watching; a helper that cannot be killed is abandoned."""
        self._loop = None
        self._cancel_timer()
        self._watcher.close()
        helpers, self._helper, self._ended = (self._helper, self._ended), None, None
        for helper in helpers:
            if helper is not None:
                await helper.end_or_abandon(0.5)

    def latest(self, now_s: float) -> Reading[Gpu]:
        """What is known now; reads what is free to read."""
        if self._settings.presence == "none":
            return Reading(ABSENT, "", "gpu.presence: none", now_s)
        self._remember_own(now_s)
        if self._loop is not None:
            self._notice_resume(now_s)
            if not self._busy:
                needed_none = self._needs_no_helper
                self._needs_no_helper = self._glance(now_s)
                if not self._needs_no_helper and (needed_none or self._timer is None):
                    self._look_in(0.0)
            if self._left_alone and not self._needs_no_helper and now_s - self._reading.read_at_s > self._setup.max_age_s:
                self._reading = Reading(None, "left alone while the node does not work", self.name.upper(), now_s)
        return self._reading

    @property
    def last(self) -> Reading[Gpu]:
        """The last reading, as it was."""
        return self._reading

    @property
    def own(self) -> TaskUse:
        """What the node's own task does there, by the last look; nothing if that look failed."""
        return self._use.own if self._reading.value is not None else NO_TASK_USE

    def demand(self, interval_s: float | None) -> None:
        """Look every so many seconds; None: only so often that the reading does not get too old; NEVER_LOOK: leave the GPU
        alone until the next demand."""
        if interval_s != NEVER_LOOK:
            interval_s = self._rest_s if interval_s is None else min(interval_s, self._rest_s)
        if interval_s == self._interval_s:
            return
        left_alone, self._interval_s = self._left_alone, interval_s
        if self._left_alone:
            self._follow_up = []
            self._cancel_timer()
            if not self._busy:
                self._end_helper()
        elif left_alone:
            self._look_in(0.0)
        elif self._timer is not None and self._loop is not None and not self._failures:
            delay_s = max(0.0, self._looked_at_s + interval_s - self._clock.now_s())
            if delay_s < self._timer.when() - self._loop.time():
                self._look_in(delay_s)

    async def refresh(self, timeout_s: float) -> Reading[Gpu]:
        """Look now and wait for the answer, at most `timeout_s` seconds. An answer to an earlier request does not count."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                if self._busy:
                    self._answered_event.clear()
                    await self._answered_event.wait()
                self._answered_event.clear()
                self._look()
                await self._answered_event.wait()
        return self.latest(self._clock.now_s())

    # --- when to look

    @property
    def _busy(self) -> bool:
        return self._helper is not None and self._helper.busy

    @property
    def _left_alone(self) -> bool:
        return self._interval_s == NEVER_LOOK

    def _notice_resume(self, now_s: float) -> None:
        slept_s = self._setup.suspended_s()
        if slept_s - self._slept_s > SUSPENDED_S:
            self._end_helper()
            self._failures, self._follow_up = 0, []
            self._reading = Reading(None, "not looked at since the machine woke up", self.name.upper(), now_s)
            self._look_in(0.0)
        self._slept_s = slept_s

    def _look(self) -> None:
        """Ask the helper, if it is needed and not busy already."""
        if self._loop is None or self._busy:
            if self._releasing:
                self._look_in(RELEASE_POLL_S)
            return
        self._cancel_timer()
        self._needs_no_helper = self._glance(self._clock.now_s())
        if self._needs_no_helper:
            self._answered_event.set()
            if self._follow_up:
                self._look_in(self._follow_up.pop(0))
            return
        if self._ended is not None and not self._ended.gone:
            if self._ended.stuck:
                hint = f"process {self._ended.pid} cannot be killed; reboot if it stays so"
                self._failed(f"the {self.driver} driver hangs: {hint}")
            else:
                self._look_in(0.05)
            return
        if self._helper is None:
            self._fresh = True
            try:
                start = child(helper_main.command(self.helper, *self._arguments))
                self._helper = Helper(start, self._answered, self._helper_failed)
            except OSError as error:
                self._failed(f"the GPU helper cannot be started: {error.strerror}")
                return
        self._helper.ask(b"look\n", self._setup.first_deadline_s if self._fresh else self._setup.deadline_s)

    def _look_in(self, delay_s: float) -> None:
        self._cancel_timer()
        if self._left_alone:
            self._end_helper()
        elif self._loop is not None:
            self._timer = self._loop.call_later(delay_s, self._look)

    def _look_later(self) -> None:
        """After a look: the next one that follows an open, or the one that the demand asks for. Beside a foreign process the
        driver is in use in any case, so that the helper may stay."""
        if self._follow_up:
            return self._look_in(self._follow_up.pop(0))
        taken = self._use.gpu is not None and self._use.gpu.foreign > 0 and self._interval_s < self._rest_s
        if self.opens_nodes and self._interval_s > LET_GO_S and not taken and self._helper is not None:
            self._fresh = self._releasing = True
            self._helper.ask(b"release\n", self._setup.deadline_s)
        return self._look_in(self._interval_s)

    def _released(self, line: bytes) -> None:
        self._releasing = False
        self._answered_event.set()
        if msgspec.json.decode(line) != {"released": True}:
            self._end_helper()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_helper(self) -> None:
        self._releasing = False
        if self._helper is not None:
            self._helper.end()
            self._ended, self._helper = self._helper, None

    # --- results

    def _answered(self, line: bytes) -> None:
        if self._releasing:
            self._released(line)
            return
        if self.opens_nodes:
            self._concern_gpu(self._watcher.read())  # opens of our own
        self._watch_nodes()
        try:
            self._take(msgspec.json.decode(line, type=self.answer), self._clock.now_s())
        except msgspec.MsgspecError as error:
            self._helper_failed(f"its answer is invalid ({error})")
        except Exception as error:  # noqa: BLE001 - an unexpected error makes the reading unknown, and is tried again
            self._failed(f"its answer cannot be judged: {type(error).__name__}: {error}")

    def _helper_failed(self, reason: str) -> None:
        if self._releasing:  # the end of the helper is one way to let go
            self._answered_event.set()
            self._end_helper()
            return
        hung = self._helper is not None and self._helper.hung
        if self._helper is not None:
            self._helper.kill()
            self._ended, self._helper = self._helper, None
        self._failed(f"the {self.driver} driver hangs: {reason}" if hung else f"the GPU helper failed: {reason}")

    def _failed(self, reason: str) -> None:
        """Publish the error, and try again after a growing pause."""
        self._follow_up = []
        delay_s = BACKOFF_S[min(self._failures, len(BACKOFF_S) - 1)]
        self._failures += 1
        rows = self._use.rows if self._use.error == reason else ()
        self._publish(GpuUse(None, reason, rows=rows), self._clock.now_s(), self.name.upper())
        self._look_in(delay_s)

    def _publish(self, use: GpuUse, now_s: float, source: str) -> None:
        before = self._reading
        self._use = use
        self._reading = Reading(use.gpu, use.error, source, now_s)
        self._answered_event.set()
        if (before.value, before.error) != (use.gpu, use.error):
            self._wake()

    def _publish_asleep(self, now_s: float) -> None:
        """Publish that every GPU is asleep. The first time, stop looking; later, looks that follow an open go on."""
        if not self._asleep:
            self._asleep, self._failures = True, 0
            self._end_helper()
            self._cancel_timer()
        self._publish(GpuUse(Gpu()), now_s, "PCI runtime_status (asleep)")

    # --- processes

    def _remember_own(self, now_s: float) -> frozenset[int]:
        own = self._setup.own_pids()
        if own or self._lately:
            left = self._left_by
            self._lately = {pid: at_s for pid, at_s in self._lately.items() if now_s - at_s <= REMNANT_S or pid in left}
            self._lately |= dict.fromkeys(own, now_s)
        return own

    def _judge(self, now_s: float, judge: Callable[[Known], GpuUse]) -> GpuUse:
        """The judgement of an answer. What the last task left, and what was held beside it, is remembered until a look shows
        that nothing is left."""
        own = self._remember_own(now_s)
        lately = {pid: now_s - seen_s for pid, seen_s in self._lately.items()}
        proc_root = self._setup.proc_root
        known = Known(
            self._settings,
            lambda pid: name_of(proc_root, pid),
            own,
            lately,
            self._unlisted,
            lambda pid: age_s(proc_root, pid),
            now_s - self._on_gpu_at_s,
            self._before_task,
            display_manager(),
        )
        use = judge(known)
        if not own:
            self._before_task = use.unlisted
        if use.own.processes:
            self._on_gpu_at_s = now_s
        if use.gpu is not None:
            self._left_by = use.own.left_by
            if own or not use.own.left:
                self._unlisted = use.own.unlisted or (self._unlisted if own else {})
        return use

    # --- nodes of the GPU in /dev

    def _nodes(self) -> set[str]:
        try:
            return {f"{self._node_folder}/{name}" for name in os.listdir(self._node_folder) if self._is_node(name)}
        except OSError:
            return set()

    def _touched(self, events: list[Event]) -> None:
        """A node was opened or made: look now, and again, because a context comes after the open."""
        ours = self._left_alone or (self._busy and self.opens_nodes and not self._releasing)
        if not self._concern_gpu(events) or ours or self._follow_up:
            return
        self._follow_up = list(FOLLOW_UP_S)
        self._watch_nodes()
        self._surprised()
        self._look()
        self._wake()

    def _concern_gpu(self, events: list[Event]) -> bool:
        seen = False
        for event in events:
            if event.gone:
                if event.path == self._node_folder:
                    self._watch_nodes()  # it may be there again
                continue
            if event.mask & flags.CREATE:
                self._watcher.remove(event.path)  # another node has this name now; the old one may still be open
            seen = seen or event.overflow or self._is_node(os.path.basename(event.path))
        return seen
