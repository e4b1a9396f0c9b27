"""Effects by name → what carries them out: in order, each bounded in time, none stopping the next, each reported."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from states.effects import VETOING, Effect
from states.ending import failed, handed_back, succeeded
from states.lifecycle import EffectResult, Outcome, Plan
from states.memory import State
from states.observation import TaskPhase
from states.words import elapsed
from supervisor.config.schema import TaskType
from supervisor.daemon.inhibitor import Inhibitor, InhibitRefused
from supervisor.linux.clock import Clock
from supervisor.tasks.attempt import Slot
from supervisor.tasks.executors.base import Executor, FreezeFailed, StartFailed, StopFailed, describe
from supervisor.tasks.monitor import Minder
from supervisor.tasks.pause import CHECKPOINT_S
from supervisor.tasks.workdir import Workdir

# Seconds that an effect may take; `stop` also gets the type's grace.
DEADLINE_S: Final[Mapping[Effect, float]] = {
    Effect.INHIBIT: 5.0,
    Effect.START: 10.0,
    Effect.FREEZE: 10.0,
    Effect.THAW: 10.0,
    Effect.STOP: 10.0,
    Effect.SETTLE: 2.0,
    Effect.HAND_BACK: 2.0,
    Effect.WIPE: 20.0,
    Effect.RELEASE: 5.0,
}

WHY_BACK: Final[Mapping[str, str]] = {
    "switched-off": "automation was switched off",
    "going-down": "the machine is going down",
    "user-returned": "the person came back",
    "gpu-taken": "the GPU was needed",
    "cpu-taken": "the CPU was needed",
    "host-unfit": "the machine is not fit to work",
    "unsafe": "it was no longer safe to start",
    "task-claimed": "the sleep inhibitor was refused",
}

# Before the machine sleeps, logind waits five seconds by default: leave one for the rest (T26).
SLEEP_GRACE_S: Final = 4.0


class Failed(Exception):
    """An effect did not succeed; the text says why, in words."""


class Performer:
    """Carries out plans on the slot, the inhibitor, the work dir and the executors."""

    def __init__(
        self,
        slot: Slot,
        inhibitor: Inhibitor,
        workdir: Workdir,
        executor_of: Callable[[TaskType], Executor],
        task_types: Callable[[], Mapping[str, TaskType]],
        clock: Clock,
        wake: Callable[[], None],
        extend: Callable[[float], None] = lambda _: None,
        minder: Minder | None = None,
    ) -> None:
        self._slot = slot
        self._minder = minder
        self.inhibitor = inhibitor
        self.workdir = workdir
        self._executor_of = executor_of
        self._task_types = task_types
        self._clock = clock
        self._wake = wake
        self._extend = extend
        self._carry: Mapping[Effect, Callable[[Plan], Awaitable[str]]] = {
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

    async def perform(self, plan: Plan) -> Outcome:
        """Do what the plan says; returns how each effect went and never raises, but for cancellation."""
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
        limit_s = DEADLINE_S[effect] + (self._stop_s(plan) if effect is Effect.STOP else 0.0)
        self._extend(limit_s)
        try:
            async with asyncio.timeout(limit_s):
                ok, detail = True, await self._carry[effect](plan)
        except TimeoutError:
            ok, detail = False, f"not done within {elapsed(limit_s)}"
        except (Failed, FreezeFailed, StopFailed, InhibitRefused) as failure:
            ok, detail = False, str(failure)
        except Exception as error:  # noqa: BLE001 - none may stop the next: whatever fails is reported and owed
            ok, detail = False, f"{type(error).__name__}: {error}"
        return EffectResult(effect, ok, detail, self._clock.now_s() - began_s)

    async def _inhibit(self, plan: Plan) -> str:
        return await self.inhibitor.take(f"runs task {self._slot.task().id}")

    async def _start(self, plan: Plan) -> str:
        slot = self._slot
        claim = slot.take()
        task_type = self._task_types().get(claim.type)
        try:
            if task_type is None:
                known = ", ".join(sorted(self._task_types())) or "none"
                raise StartFailed(f"unknown task type {claim.type!r}; this node runs: {known}")
            slot.workdir = self.workdir.fresh(claim.id)
            slot.tree = await self._executor_of(task_type).start(claim, slot.workdir, self._wake)
            if self._minder is not None:
                self._minder.begin(claim.type, slot.tree, slot.workdir, slot.condemn, slot.spoil)
        except (StartFailed, OSError) as failure:
            slot.failure = str(failure) or type(failure).__name__
            raise Failed(slot.failure) from failure
        except asyncio.CancelledError:
            slot.failure = "the task did not start in time"
            raise
        except Exception as error:
            slot.failure = f"the task could not be started ({type(error).__name__})"  # its words may hold the payload (R6)
            raise Failed(slot.failure) from error
        return ""

    async def _freeze(self, plan: Plan) -> str:
        return await self._on_ice().take()

    async def _thaw(self, plan: Plan) -> str:
        return await self._on_ice().let_go()

    def _on_ice(self) -> Minder:
        if self._minder is None:
            raise FreezeFailed("nobody minds the task")
        return self._minder

    async def _stop(self, plan: Plan) -> str:
        tree = self._slot.tree
        if tree is None:
            return "nothing to stop"
        began_s, minder = self._clock.now_s(), self._minder
        if minder is not None:
            minder.look_back()
            first = await minder.hold.before_stop()
        rungs = describe(*await tree.stop(self._grace_s(plan)))
        if self._slot.claim is None:
            self._slot.tree = None
        else:
            self._slot.stopped = True
        if minder is None:
            return rungs
        note = minder.note()
        minder.end()
        vram = await minder.vram_freed(began_s, hurry=plan.row is not None and plan.row.id == "going-down")
        return "; ".join(filter(None, (", ".join(filter(None, (first, rungs, vram))), note)))

    def _stop_s(self, plan: Plan) -> float:
        """What a stop may take on top: the type's grace, and the VRAM's."""
        return self._grace_s(plan) + (self._minder.vram_limit_s + CHECKPOINT_S if self._minder is not None else 0.0)

    async def look_after(self) -> None:
        """A task that has ended by itself: read its VRAM until it is free, or known to be held, before anything follows."""
        slot, minder = self._slot, self._minder
        if minder is None or slot.claim is None or slot.tree is None or slot.tree.alive or not minder.unread:
            return
        self._extend(minder.vram_limit_s)
        note = minder.note()
        minder.end()
        slot.after = "; ".join(filter(None, (await minder.vram_freed(self._clock.now_s()), note)))

    def _grace_s(self, plan: Plan) -> float:
        claim = self._slot.claim
        task_type = self._task_types().get(claim.type) if claim else None
        if task_type is None or task_type.on_yield == "kill" or (self._minder is not None and self._minder.hold.graceless):
            return 0.0
        going_down = plan.row is not None and plan.row.id == "going-down"
        return min(task_type.grace_sec, SLEEP_GRACE_S) if going_down else task_type.grace_sec

    async def _settle(self, plan: Plan) -> str:
        slot = self._slot
        claim = slot.take()
        if slot.spoilt and not slot.fault:
            return await self._hand_back(plan)
        if plan.row is not None and plan.row.id == "timed-out":
            limit_s = plan.limits.timeout_s(claim.type)
            own = limit_s < plan.limits.task_timeout_s
            setting = f"tasks.{claim.type}.timeout_minutes" if own else "execution.task_timeout_minutes"
            slot.failure = f"timeout: stopped after {elapsed(limit_s)}, the most that this node gives ({setting})"
        result, error = slot.outcome()
        slot.source.settle(claim, succeeded(result) if error is None else failed(error, result))
        words = ["succeeded" if error is None else f"failed: {error}", slot.after]
        self._close()
        return ", ".join(filter(None, words))

    def _close(self) -> None:
        if self._minder is not None and (self._slot.tree is None or not self._slot.tree.alive):
            self._minder.end()
        self._slot.close()

    async def _hand_back(self, plan: Plan) -> str:
        slot = self._slot
        claim = slot.take()
        row = plan.row.id if plan.row is not None else ""
        # An owed hand-back comes without its row: the reason is the one of the first try.
        slot.why_back = why = slot.spoilt or WHY_BACK.get(row, slot.why_back or "no task can run here now")
        if slot.fault:  # it would fail elsewhere as well
            result, error = slot.outcome()
            slot.source.settle(claim, failed(error or "", result))
            self._close()
            return f"settled in place of that, failed: {error}"
        task_type = self._task_types().get(claim.type)
        state = None if slot.tree is None else slot.tree.state
        slot.source.hand_back(claim, handed_back(why, state), task_type.on_preempt if task_type else "resubmit")
        self._close()
        return why if state is None else f"{why}; with the place that it has saved"

    async def _wipe(self, plan: Plan) -> str:
        slot = self._slot
        # An owed wipe may come while the next task runs: its folder stays.
        in_use = plan.memory.state is State.RUNNING and plan.row is None and slot.task().phase is TaskPhase.RUNNING
        kept = (slot.workdir,) if in_use and slot.workdir is not None else ()
        await asyncio.to_thread(self.workdir.wipe_all, kept)
        return ""

    async def _release(self, plan: Plan) -> str:
        return await self.inhibitor.release()
