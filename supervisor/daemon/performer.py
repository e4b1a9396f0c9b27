"""Carries out the effects of a plan: in order, each with a time limit, none stopping the next, each reported."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from states.effects import VETOING, Effect
from states.ending import Ending, StopReport
from states.formatting import elapsed
from states.lifecycle import EffectResult, Outcome, Plan, blocked_by
from states.memory import State
from states.observation import Link, Observation, TaskPhase
from supervisor.config.schema import TaskType
from supervisor.daemon.inhibitor import Inhibitor, InhibitRefused, LockReport
from supervisor.linux.clock import Clock
from supervisor.tasks.attempt import Attempts
from supervisor.tasks.executors.base import Executor, FreezeFailed, NodeFault, StartFailed, StopFailed
from supervisor.tasks.workdir import Workdir

# Seconds that an effect may take; `stop` gets what the attempt needs on top.
DEADLINE_S: Final[Mapping[Effect, float]] = {
    Effect.INHIBIT: 5.0,
    Effect.START: 22.0,  # more than its two parts may take, so that their reasons are told
    Effect.FREEZE: 10.0,
    Effect.THAW: 10.0,
    Effect.STOP: 10.0,
    Effect.SETTLE: 2.0,
    Effect.HAND_BACK: 2.0,
    Effect.WIPE: 20.0,
    Effect.RELEASE: 5.0,
}

# Why a task goes back, for its submitter, by the row that fired.
HAND_BACK_REASONS: Final[Mapping[str, str]] = {
    "switched-off": "automation was switched off",
    "going-down": "the machine is going down",
    "user-returned": "the person came back",
    "gpu-taken": "the GPU was needed",
    "cpu-taken": "the CPU was needed",
    "host-unfit": "the machine is not fit to work",
    "unsafe": "it was no longer safe to start",
    "task-claimed": "the sleep inhibitor was refused",
}

# The same where no such row fired, by the first guard that is not ok.
BLOCKED_REASONS: Final[Mapping[str, str]] = {
    "user_away": "somebody is at the machine",
    "gpu_free": "the GPU is needed",
    "cpu_free": "the CPU is needed",
    "host_fit": "the machine is not fit to work",
    "cooldown_over": "the node rests after its last task",
    "task_gone": "its last task is not gone yet",
}

# At these rows the task may have filled the machine's memory: then it is not fit to work, and busy with swapping.
SHORT_OF_MEMORY: Final = ("host-unfit", "cpu-taken")

FREEZING: Final = (Effect.STOP, Effect.FREEZE)

Report = Ending | StopReport | LockReport | None


def _why_off(o: Observation) -> str:
    """Why automation is off, for a submitter."""
    if o.automation.on and o.link is Link.LOST:
        return "the control node was given up"
    if o.automation.on or not o.automation.reason:
        return HAND_BACK_REASONS["switched-off"]
    # of an operator: a pause, with who asked for it, or a stop
    return "the node's configuration is broken" if o.automation.source == "configuration" else o.automation.reason


def _blocked(plan: Plan) -> str:
    """What the state of the plan waits for; empty: nothing."""
    first = next(iter(blocked_by(plan.observation, plan.memory, plan.limits)), None)
    if first is None:
        return ""
    return _why_off(plan.observation) if first.name == "automation_on" else BLOCKED_REASONS.get(first.name, "")


class Performer:
    """Carries out plans. `executor_of` makes the executor of a task type; `extend` asks systemd for so many seconds more."""

    def __init__(
        self,
        attempts: Attempts,
        inhibitor: Inhibitor,
        workdir: Workdir,
        executor_of: Callable[[TaskType], Executor],
        clock: Clock,
        wake: Callable[[], None],
        extend: Callable[[float], None],
    ) -> None:
        self._attempts = attempts
        self.inhibitor = inhibitor
        self.workdir = workdir
        self._executor_of = executor_of
        self._clock = clock
        self._wake = wake
        self._extend = extend
        self.node_fault = ""  # why this node could not start the last task
        self._starting: asyncio.Timeout | None = None
        self._actions: Mapping[Effect, Callable[[Plan], Awaitable[Report]]] = {
            Effect.INHIBIT: self._inhibit,
            Effect.START: self._start,
            Effect.FREEZE: self._freeze,
            Effect.THAW: self._thaw,
            Effect.STOP: self._stop,
            Effect.SETTLE: self._settle,
            Effect.HAND_BACK: self._hand_back,
            Effect.WIPE: self._wipe,
            Effect.RELEASE: self._release,
        }

    def begin(self, plan: Plan) -> bool:
        """The person's path: order the freeze at once, before anything is written or waited for. `perform` must follow.

        Returns whether the plan stops or freezes a task.
        """
        attempt = self._attempts.current
        if plan.row is None or attempt is None or not any(effect in FREEZING for effect in plan.effects):
            return False
        attempt.freeze_now(to_stop=Effect.STOP in plan.effects)
        return True

    async def perform(self, plan: Plan) -> Outcome:
        """Do what the plan says. Reports how each effect went; raises nothing but cancellation."""
        results: list[EffectResult] = []
        todo = list(plan.effects)
        while todo:
            result = await self._one(todo.pop(0), plan)
            results.append(result)
            if not result.ok and result.effect in VETOING:
                todo = list(plan.after_veto)
        return Outcome(tuple(results))

    async def _one(self, effect: Effect, plan: Plan) -> EffectResult:
        began_s = self._clock.now_s()
        limit_s = DEADLINE_S[effect]
        if effect is Effect.STOP and self._attempts.current is not None:
            limit_s += self._attempts.current.stop_limit_s()
        self._extend(limit_s)
        report, error = None, ""
        try:
            async with asyncio.timeout(limit_s):
                report = await self._actions[effect](plan)
        except TimeoutError:
            error = f"not done within {elapsed(limit_s)}"
        except (StartFailed, FreezeFailed, StopFailed, InhibitRefused) as failure:
            error = str(failure)
        except Exception as failure:  # noqa: BLE001 - whatever fails is reported and owed; the next effect is still done
            error = f"{type(failure).__name__}: {failure}"
        return EffectResult(effect, not error, error, self._clock.now_s() - began_s, report)

    async def check_end(self) -> None:
        """A task that has ended by itself: read the GPU until its VRAM is free or known to be held."""
        attempt = self._attempts.current
        if attempt is not None and attempt.over_on_gpu:
            self._extend(attempt.vram_limit_s)
            await attempt.check_end()

    async def _inhibit(self, plan: Plan) -> LockReport:
        return await self.inhibitor.take(f"runs task {self._attempts.observe().id}")

    def call_off_start(self, reason: str) -> None:
        """A task that is being started goes back instead; nothing happens where none is."""
        if self._starting is not None:
            self._attempts.take().call_off(reason)
            self._starting.reschedule(0.0)

    async def _start(self, plan: Plan) -> None:
        try:
            async with asyncio.timeout(None) as self._starting:
                await self._attempts.take().start(self._executor_of, self.workdir, self._wake)
        except TimeoutError:
            raise StartFailed("called off: it was no longer safe") from None
        except NodeFault as fault:
            self.node_fault = str(fault)
            raise
        except asyncio.CancelledError:
            self.node_fault = "the task did not start in time"
            raise
        finally:
            self._starting = None

    async def _freeze(self, plan: Plan) -> StopReport:
        return await self._attempts.take().freeze()

    async def _thaw(self, plan: Plan) -> StopReport:
        return await self._attempts.take().thaw()

    async def _stop(self, plan: Plan) -> StopReport | None:
        attempt = self._attempts.current
        if attempt is not None and plan.row is not None and plan.row.id in SHORT_OF_MEMORY:
            await attempt.judge_memory()  # it stands still meanwhile
        return await self._attempts.stop()

    async def _settle(self, plan: Plan) -> Ending:
        attempt = self._attempts.take()
        if plan.row is not None and plan.row.id == "timed-out":
            limit_s = plan.limits.timeout_s(attempt.claim.type)
            attempt.time_out(limit_s, own_limit=limit_s < plan.limits.task_timeout_s)
        return self._deliver(attempt.ending())

    async def _hand_back(self, plan: Plan) -> Ending:
        row = "" if plan.row is None else plan.row.id
        reason = _why_off(plan.observation) if row == "switched-off" else HAND_BACK_REASONS.get(row, "")
        blocked = _blocked(plan) if row in ("", "unsafe") else ""
        reason = blocked if row == "unsafe" and blocked else reason
        return self._deliver(self._attempts.take().ending_for(reason, blocked))

    def _deliver(self, ending: Ending) -> Ending:
        self._attempts.deliver(ending)
        return ending

    async def _wipe(self, plan: Plan) -> None:
        # An owed wipe may come while the next task runs: its folder stays.
        attempt = self._attempts.current
        in_use = plan.memory.state is State.RUNNING and plan.row is None and attempt is not None
        kept = attempt.workdir if in_use and attempt is not None and attempt.phase is TaskPhase.RUNNING else None
        await asyncio.to_thread(self.workdir.wipe_all, () if kept is None else (kept,))

    async def _release(self, plan: Plan) -> LockReport:
        return await self.inhibitor.release()
