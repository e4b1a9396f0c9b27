"""One attempt at one task: its claim, phase, processes, pause and ending; and the attempts of a node, one after the other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from states.ending import Ending, EndingKind, StopReport, failed, handed_back, succeeded
from states.formatting import elapsed
from states.observation import NO_TASK, Task, TaskPhase
from supervisor.config.schema import TaskType
from supervisor.sources.base import Claim, Source
from supervisor.sources.lost_attempts import MAX_LOST
from supervisor.tasks.context import TaskContext
from supervisor.tasks.executors.base import Executor, FreezeFailed, NodeFault, Rung, RunningTask, StartFailed
from supervisor.tasks.monitor import Monitor
from supervisor.tasks.pause import CHECKPOINT_S, Pause
from supervisor.tasks.vram import VramCheck
from supervisor.tasks.workdir import Workdir

SLEEP_POLL_S: Final = 0.2  # how soon a stop notices that the machine is about to sleep
MEMORY_S: Final = 0.5
SHOWN_OF_A_FAILURE: Final = ("status", "stderr")


class Attempt:
    """One attempt. Made when the claim is taken; over when its ending is with the source.

    The phase is CLAIMED, then RUNNING, then ENDED or FAILED.
    """

    def __init__(self, claim: Claim, context: TaskContext) -> None:
        self.claim = claim
        self._context = context
        self._phase = TaskPhase.CLAIMED
        self._kind = EndingKind.FAILED
        self._error = ""  # why it failed, where its own process does not say
        self._limit = ""  # the limit of its own that it passed
        self._node_fault = ""  # what the node did to it: it goes back
        self._hand_back_reason = ""
        self._vram = VramCheck(context)
        self._pause: Pause | None = None
        self._monitor: Monitor | None = None
        self._stop: StopReport | None = None
        self.process: RunningTask | None = None
        self.workdir: Path | None = None

    @property
    def type(self) -> TaskType | None:
        """The settings of its type that are in force; None: the type is not known here."""
        return self._context.settings.types.get(self.claim.type)

    @property
    def phase(self) -> TaskPhase:
        """The phase. RUNNING lasts until the process is seen to have ended."""
        if self._phase is TaskPhase.RUNNING and self.process is not None and not self.process.alive:
            well = not (self._limit or self._node_fault) and self.process.error is None
            return TaskPhase.ENDED if well else TaskPhase.FAILED
        return self._phase

    # --- start

    async def start(self, executor_of: Callable[[TaskType], Executor], workdir: Workdir, wake: Callable[[], None]) -> None:
        """Start the task in a fresh folder, and watch it.

        Raises:
            StartFailed: it did not start; the text is the task's error.
            NodeFault: it did not start by this node's fault; the task goes back, or fails if it has lost too many attempts.
        """
        try:
            if (task_type := self.type) is None:
                known = ", ".join(sorted(self._context.settings.types)) or "none"
                raise StartFailed(f"unknown task type {self.claim.type!r}; this node runs: {known}")
            self.workdir = workdir.fresh(self.claim.id)
            self.process = await executor_of(task_type).start(self.claim, self.workdir, wake)
        except (NodeFault, OSError) as failure:
            raise NodeFault(self._not_started_here(str(failure) or type(failure).__name__)) from failure
        except StartFailed as failure:
            raise self._not_started(str(failure)) from failure
        except asyncio.CancelledError:
            self._not_started_here("the task did not start in time")
            raise
        except Exception as error:  # its text may hold the payload
            raise self._not_started(f"the task could not be started ({type(error).__name__})") from error
        self._phase = TaskPhase.RUNNING
        self._watch(self.process, task_type)

    def _not_started(self, error: str) -> StartFailed:
        self._error, self._phase = error, TaskPhase.FAILED
        return StartFailed(error)

    def _not_started_here(self, error: str) -> str:
        """The attempt is lost. Perhaps it is the task that no node can start, so its lost attempts are counted."""
        self._phase = TaskPhase.FAILED
        if not self._node_fault:
            self.claim = replace(self.claim, lost=self.claim.lost + 1)
            self._node_fault = f"this node could not start it: {error}"
            if self.claim.lost >= MAX_LOST:
                self._error, self._node_fault = f"{error}; after {MAX_LOST} lost attempts it is not tried again", ""
        return error

    def call_off(self, reason: str) -> None:
        """The task is being started, and must go back; the start is cancelled next."""
        if self._phase is TaskPhase.CLAIMED:
            self._node_fault = reason

    def _watch(self, process: RunningTask, task_type: TaskType) -> None:
        may_pause = self._context.settings.limits.hold_of(self.claim.type) > 0
        checkpointer = self._context.checkpointer() if may_pause and task_type.checkpoint == "cuda" else None
        self._pause = Pause(process, self._context, checkpointer)
        self._monitor = Monitor(self.claim.type, process, self._context, self._pause, self._vram, self.fail_at_limit)

    # --- what happens to it

    def fail_at_limit(self, limit: str) -> None:
        """The running task has passed a limit of its own and is being stopped: it fails and is not handed back."""
        if self._phase is TaskPhase.RUNNING:
            self._limit = self._limit or limit

    async def judge_memory(self) -> None:
        """The machine is not fit to work. If it is this task that has filled its memory, the task fails, and is not handed
        back. Takes MEMORY_S seconds at most."""
        if self._monitor is not None:
            with contextlib.suppress(Exception):  # what cannot be measured is not held against the task
                async with asyncio.timeout(MEMORY_S):
                    await self._monitor.judge_memory()

    def give_up(self, reason: str) -> None:
        """The node has harmed the running task: it goes back."""
        if self._phase is TaskPhase.RUNNING:
            self._node_fault = self._node_fault or reason

    def time_out(self, limit_s: float, own_limit: bool) -> None:
        """The task took longer than `limit_s` seconds, by its type's limit or by the node's."""
        setting = f"tasks.{self.claim.type}.timeout_minutes" if own_limit else "execution.task_timeout_minutes"
        self._error = f"timeout: stopped after {elapsed(limit_s)}, the most that this node gives ({setting})"
        self._kind, self._phase = EndingKind.TIMED_OUT, TaskPhase.FAILED

    # --- freeze, thaw, stop

    def freeze_now(self, *, to_stop: bool) -> None:
        """Order the freeze and return at once: the first thing that happens when a person is back. `stop` must follow, or
        `freeze` where it is not `to_stop`. A task whose VRAM must be moved out before it is frozen is left to them."""
        if self.process is None or self._phase is not TaskPhase.RUNNING:
            return
        if self._pause is None or not (self._pause.must_move_out if to_stop else self._pause.on_gpu):
            self.process.freeze_now()

    @property
    def pinned(self) -> bool:
        """The task could be frozen at a sign, but it would keep its VRAM."""
        may_pause = self._context.settings.limits.hold_of(self.claim.type) > 0
        return may_pause and self._pause is not None and self._pause.pinned

    async def freeze(self) -> StopReport:
        """Freeze the task at a sign that may be a false alarm.

        Raises:
            FreezeFailed: it must be stopped.
        """
        self._vram.notice()
        return StopReport(await self._while_awake(self._running().freeze()))

    async def thaw(self) -> StopReport:
        """Let the task go on.

        Raises:
            FreezeFailed: it does not go on; it is stopped and goes back.
        """
        try:
            return StopReport(await self._while_awake(self._running().thaw()))
        except FreezeFailed as failed:
            self.give_up(f"it could not go on after a hold: {failed}")
            if self._monitor is not None:
                self._monitor.stop_task()
            raise

    def _running(self) -> Pause:
        if self._pause is None:
            raise FreezeFailed("no task is there")
        return self._pause

    def stop_limit_s(self) -> float:
        """The longest that `stop` takes now, in seconds, beyond the end of the processes."""
        self._vram.notice()
        moving_s = CHECKPOINT_S if self._pause is not None and self._pause.must_move_out else 0.0
        return self.grace_s() + moving_s + (self._vram.limit_s if self._vram.pending else 0.0)

    def grace_s(self) -> float:
        """Seconds between SIGTERM and SIGKILL now; before a sleep no more than logind waits."""
        task_type = self.type
        if task_type is None or task_type.on_yield == "kill" or (self._pause is not None and self._pause.skips_grace):
            return 0.0
        if self._context.sleep.going_down:
            return min(task_type.grace_sec, self._context.stop_limit_s)
        return task_type.grace_sec

    async def stop(self, grace_s: float | None = None) -> StopReport:
        """Stop all processes, and read the GPU until their VRAM is free. `grace_s` None: the type's grace.

        Raises:
            StopFailed: a process is still alive.
        """
        process = self.process
        if process is None:
            return StopReport()
        began_s = self._context.clock.now_s()
        self._vram.notice()
        rungs: tuple[Rung, ...] = ()
        note = ""
        if self._pause is not None and self._checkpoint_s > 0:
            try:
                rungs = await self._while_awake(self._pause.move_out(self._checkpoint_s))
            except FreezeFailed as failed:
                note = str(failed)
        rungs = (*rungs, *await self._stop_processes(process, self.grace_s() if grace_s is None else grace_s))
        self._phase = TaskPhase.ENDED if not self._error else TaskPhase.FAILED
        note = "; ".join(filter(None, (note, self.note)))
        self._end_watch()
        self._stop = StopReport(rungs, await self._vram.read(began_s), note)
        return self._stop

    @property
    def _checkpoint_s(self) -> float:
        """The longest that moving VRAM may take now."""
        return min(CHECKPOINT_S, self._context.stop_limit_s) if self._context.sleep.going_down else CHECKPOINT_S

    async def _while_awake(self, work: Coroutine[Any, Any, tuple[Rung, ...]]) -> tuple[Rung, ...]:
        """Moves VRAM, freezes or thaws. A sleep that is announced meanwhile leaves it as much time as there is.

        Raises:
            FreezeFailed: it was not done, or not in time. The task must be stopped.
        """
        job = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait([job], timeout=SLEEP_POLL_S))[0]:
                if self._context.sleep.going_down and self._context.stop_limit_s <= 0:
                    raise FreezeFailed(f"not done in time: {self._context.sleep.going_down}")
            return await job
        finally:
            job.cancel()

    async def _stop_processes(self, process: RunningTask, grace_s: float) -> tuple[Rung, ...]:
        """A sleep that is announced during the grace shortens it."""
        if grace_s <= 0:
            return await process.stop(0.0)
        kill_at_s = self._context.clock.now_s() + grace_s
        stopping = asyncio.ensure_future(process.stop(grace_s))
        try:
            while not (await asyncio.wait([stopping], timeout=SLEEP_POLL_S))[0]:
                if self._context.clock.now_s() + (left_s := self.grace_s()) < kill_at_s - SLEEP_POLL_S:
                    return (await asyncio.gather(stopping, process.stop(left_s)))[0]
            return await stopping
        finally:
            stopping.cancel()

    async def check_end(self) -> None:
        """The task has ended by itself: read the GPU before anything follows. Takes `stop_limit_s` at most."""
        if self.over_on_gpu:
            note = self.note
            self._end_watch()
            self._stop = StopReport((), await self._vram.read(self._context.clock.now_s()), note)

    @property
    def over_on_gpu(self) -> bool:
        """The task has ended by itself, was on the GPU, and its VRAM has not been read yet."""
        return self.process is not None and not self.process.alive and self._vram.pending

    @property
    def vram_limit_s(self) -> float:
        """The longest that `check_end` takes, in seconds."""
        return self._vram.limit_s

    def _end_watch(self) -> None:
        if self._monitor is not None:
            self._monitor.end()
        if self._pause is not None:
            if self._pause.vram_out:
                self.give_up("it ended while its VRAM was moved out of the way")
            self._pause.end()

    def close(self) -> None:
        """The ending is with the source. Processes that would not stop are still watched."""
        if self.process is None or not self.process.alive:
            self._end_watch()

    # --- the ending

    def ending(self) -> Ending:
        """How the attempt ended."""
        if self._node_fault and not self._limit:
            return self._handed_back(self._node_fault)
        if error := self._error or self._limit:
            ended = self.process.result if self.process is not None and self.process.error is not None else {}
            shown = {name: value for name, value in ended.items() if name in SHOWN_OF_A_FAILURE}
            return failed(error, shown, self._stop, kind=self._kind)
        if self.process is None:
            return failed("the task never ran")
        if (process_error := self.process.error) is not None:
            return failed(process_error, self.process.result, self._stop)
        return succeeded(self.process.result, self._stop)

    def ending_for(self, reason: str, otherwise: str = "") -> Ending:
        """The ending of an attempt that the node gives up for `reason` (empty: that of the last try, else `otherwise`). A task
        that has passed a limit of its own fails instead: it would fail elsewhere as well."""
        self._hand_back_reason = self._node_fault or reason or self._hand_back_reason or otherwise or "no task can run here now"
        return self.ending() if self._limit else self._handed_back(self._hand_back_reason)

    def _handed_back(self, reason: str) -> Ending:
        return handed_back(reason, None if self.process is None else self.process.state, self._stop)

    # --- for people

    def usage(self) -> dict[str, Any] | None:
        """The running task's use beside its limits, for `status`; None: it does not run."""
        alive = self.process is not None and self.process.alive
        return self._monitor.report() if alive and self._monitor is not None and not self._stop else None

    @property
    def note(self) -> str:
        """What the operator should know about the running task; usually empty."""
        if self._monitor is not None and self._monitor.error:
            return self._monitor.error
        return "" if self._pause is None else self._pause.note


@dataclass(frozen=True, slots=True)
class LastAttempt:
    """What became of the attempt that ended last, for `status`; nothing of the task's own. `reason`: of a hand-back; `at_s`:
    seconds of CLOCK_BOOTTIME."""

    id: str
    type: str
    kind: EndingKind
    reason: str
    at_s: float


class Attempts:
    """The attempts of a node: at most one at a time, and the processes that an earlier one has left."""

    def __init__(self, source: Source, context: TaskContext, attempt_type: type[Attempt] = Attempt) -> None:
        self.source, self.context, self._attempt_type = source, context, attempt_type
        self.current: Attempt | None = None
        self.last: LastAttempt | None = None
        self._survivor: Attempt | None = None  # its ending is with the source, but its processes would not stop

    def observe(self) -> Task:
        """The task as the table sees it: phase, id and type, never the payload."""
        if self.current is not None:
            return Task(self.current.phase, self.current.claim.id, self.current.claim.type)
        if (waiting := self.source.waiting) is not None:
            return Task(TaskPhase.CLAIMED, waiting.id, waiting.type)
        return Task(TaskPhase.ASKED) if self.source.asking else NO_TASK

    def take(self) -> Attempt:
        """The attempt in hand; one is made of the claim that waits at the source.

        Raises:
            LookupError: there is neither.
        """
        if self.current is None:
            if (claim := self.source.take()) is None:
                raise LookupError("no task is in hand")
            self.current = self._attempt_type(claim, self.context)
        return self.current

    async def stop(self) -> StopReport | None:
        """Stop the current attempt, or what an earlier one has left; None: there is nothing to stop.

        Raises:
            StopFailed: a process is still alive.
        """
        if self.current is not None and self.current.process is not None:
            return await self.current.stop()
        if self._survivor is None:
            return None
        report = await self._survivor.stop(0.0)
        self._survivor = None
        return report

    def deliver(self, ending: Ending) -> None:
        """Give the ending of the current attempt to the source; the attempt is over.

        Raises:
            OSError: the source cannot keep it; the attempt stays.
        """
        attempt = self.take()
        if ending.kind is EndingKind.HANDED_BACK:
            self.source.hand_back(attempt.claim, ending, attempt.type.on_preempt if attempt.type else "resubmit")
        else:
            self.source.settle(attempt.claim, ending)
        reason = (ending.error or "") if ending.kind is EndingKind.HANDED_BACK else ""
        self.last = LastAttempt(attempt.claim.id, attempt.claim.type, ending.kind, reason, self.context.clock.now_s())
        attempt.close()
        self.current = None
        if attempt.process is not None and attempt.process.alive:
            self._survivor = attempt

    @property
    def process(self) -> RunningTask | None:
        """Our processes, also those that would not stop."""
        if self.current is not None and self.current.process is not None:
            return self.current.process
        return None if self._survivor is None else self._survivor.process

    def pids(self) -> frozenset[int]:
        """The pids of our processes."""
        return frozenset() if (process := self.process) is None else process.pids()

    def cpu_s(self) -> float:
        """The CPU seconds that our processes have used so far."""
        return 0.0 if (process := self.process) is None else process.cpu_s()

    @property
    def in_hand(self) -> bool:
        """A task is handed over, or alive. A poll in flight is not: it may last (a fleet's queue lets it wait)."""
        return self.process is not None or self.current is not None or self.source.waiting is not None

    @property
    def empty(self) -> bool:
        """Nothing is asked for, in hand, or alive."""
        return not self.in_hand and not self.source.asking
