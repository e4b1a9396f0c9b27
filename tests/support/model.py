"""A small world around the lifecycle: one process, one claim, one lock, and effects that may fail.

It is written apart from the product's own scripted world, so that the proof does not lean on what it proves. Time is
abstract: a cooldown is pending or over, a stay young or old, a task in time or overdue; which of them holds is part of
the state, and `Model.step` gives the lifecycle real numbers that say so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from states.effects import OWED, Effect
from states.lifecycle import EffectResult, Lifecycle, Outcome, Plan
from states.limits import Limits
from states.memory import USED_UP, Memory, State
from states.observation import (
    NEVER,
    Automation,
    Cpu,
    Gpu,
    Host,
    Link,
    Observation,
    Person,
    Reading,
    Task,
    TaskPhase,
)

NOW: Final = 1_000_000.0
LIMITS: Final = Limits(idle_required_s=600, cooldown_s=900, task_timeout_s=3600, run_s=1800)
HOLDING: Final = replace(LIMITS, hold_s=30)
PINNED: Final = "pinned"  # the GPU is free, and the own task holds memory there

OK, NO, UNKNOWN = "ok", "no", "unknown"
VALUES = (OK, NO, UNKNOWN)
HOSTS = (OK, NO, UNKNOWN, "going-down")
AUTOMATION = ("on", "off", "lost")


@dataclass(frozen=True, slots=True)
class Signs:
    """What the sensors say in one tick."""

    user: str = OK
    gpu: str = OK
    cpu: str = OK
    host: str = OK
    automation: str = "on"

    @property
    def safe(self) -> bool:
        return self.user == self.cpu == self.host == OK and self.gpu in (OK, PINNED)

    @property
    def perhaps(self) -> bool:
        """A sign that may be a false alarm, of which a frozen task is out of the way."""
        return not self.safe and self.host == OK and self.gpu not in (UNKNOWN, PINNED)


_PERSON = {
    OK: Reading(Person(NOW - 600), "", "t", NOW),
    NO: Reading(Person(NOW - 599), "", "t", NOW),
    UNKNOWN: Reading(None, "blind", "t", NOW),
}
_GPU = {
    OK: Reading(Gpu(90, 14, 0), "", "t", NOW),
    NO: Reading(Gpu(4, 1, 1), "", "t", NOW),
    UNKNOWN: Reading(Gpu(4, 1, 0), "", "t", NEVER),
    PINNED: Reading(Gpu(4, 1, 0, pinned=True), "", "t", NOW),
    "held": Reading(Gpu(4, 1, 0, held="2 GiB by pid 7, which is gone"), "", "t", NOW),
}
_CPU = {
    OK: Reading(Cpu(80), "", "t", NOW),
    NO: Reading(Cpu(80.5), "", "t", NOW),
    UNKNOWN: Reading(Cpu(float("nan")), "", "t", NEVER),
}
_HOST = {
    OK: Reading(Host(), "", "t", NOW),
    NO: Reading(Host(fit=False, reason="on battery"), "", "t", NOW),
    UNKNOWN: Reading(None, "blind", "t", NOW),
    "going-down": Reading(Host(going_down=True), "", "t", NOW),
}
_AUTOMATION = {
    "on": (Automation(True), Link.UP),
    "off": (Automation(False, "off"), Link.UP),
    "lost": (Automation(True), Link.LOST),
}
_TASKS = {phase: Task(phase, "t1", "work") for phase in TaskPhase}


def observe(signs: Signs, phase: TaskPhase) -> Observation:
    """The observation that says these signs."""
    automation, link = _AUTOMATION[signs.automation]
    return Observation(
        NOW,
        automation,
        _PERSON[signs.user],
        _GPU[signs.gpu],
        _CPU[signs.cpu],
        _HOST[signs.host],
        _TASKS[phase],
        link,
    )


@dataclass(frozen=True, slots=True)
class World:
    """Everything outside the lifecycle, and the abstract times of its memory."""

    state: State = State.DISABLED
    phase: TaskPhase = TaskPhase.NONE
    owed: tuple[Effect, ...] = ()
    alive: bool = False  # the process, also one that would not die after its claim was handed back
    held: bool = False  # our block locks
    claim: bool = False  # a task was handed over, and is neither settled nor handed back
    ask_next: bool = False  # task-settled wants to ask once the claim is out of the way
    resting: bool | None = None  # the cooldown: None never began, True pending, False over
    old: bool = False  # the stay in RUNNING is no longer young
    overdue: bool = False  # the task has outlived its time
    holding: bool = False  # tasks may be put on hold
    hold: bool | None = None  # None: none is, True: one is, False: and has been for as long as it may, or could not be
    frozen: bool = False

    @property
    def limits(self) -> Limits:
        """Those of this world."""
        return HOLDING if self.holding else LIMITS

    def memory(self) -> Memory:
        """The concrete memory of this abstract state."""
        running = self.state is State.RUNNING
        return Memory(
            state=self.state,
            since_s=NOW - 5000,
            running_since_s=(NOW - (1800 if self.old else 1799)) if running else None,
            started_at_s=(NOW - (3600 if self.overdue else 3599)) if running and self.alive else None,
            hold_from_s=None if self.hold is None else NOW - (29 if self.hold else 30),
            cooldown_from_s=None if self.resting is None else NOW - (899 if self.resting else 900),
            owed=self.owed,
        )


@dataclass(frozen=True, slots=True)
class Step:
    """One tick: before, what was planned, what was done, after."""

    before: World
    signs: Signs
    plan: Plan
    outcome: Outcome
    after: World
    fired: str | None


class Broken(AssertionError):
    """An invariant does not hold."""


def perform(world: World, plan: Plan, failing: frozenset[Effect]) -> tuple[World, Outcome]:
    """Carry out a plan; effects in `failing` fail. Raises Broken on what may never be done."""
    results: list[EffectResult] = []
    todo = list(plan.effects)
    while todo:
        effect = todo.pop(0)
        ok = effect not in failing
        results.append(EffectResult(effect, ok))
        if effect is Effect.INHIBIT:
            if ok:
                world = replace(world, held=True)
            else:
                todo = list(plan.after_veto)
        elif effect is Effect.START:
            if world.alive:
                raise Broken("a second task was started")
            if not world.held:
                raise Broken("a task was started without the inhibitor")
            if not world.claim:
                raise Broken("a task was started that was not handed over")
            world = replace(world, phase=TaskPhase.RUNNING if ok else TaskPhase.FAILED, alive=ok, overdue=False)
        elif effect is Effect.STOP and ok:
            phase = TaskPhase.ENDED if world.phase is TaskPhase.RUNNING else world.phase
            world = replace(world, alive=False, phase=phase, frozen=False)
        elif effect is Effect.FREEZE:
            if not world.alive:
                raise Broken("nothing was frozen")
            world = replace(world, frozen=ok)
        elif effect is Effect.THAW:
            # One that does not go on is stopped by who could not thaw it.
            world = replace(world, frozen=False) if ok else replace(world, alive=False, phase=TaskPhase.FAILED, frozen=False)
        elif effect in (Effect.SETTLE, Effect.HAND_BACK) and ok:
            if not world.claim:
                raise Broken(f"{effect} of a task that was settled or handed back before")
            world = replace(world, claim=False, phase=TaskPhase.NONE)
        elif effect is Effect.RELEASE and ok:
            world = replace(world, held=False)
    return world, Outcome(tuple(results))


def step(world: World, signs: Signs, failing: frozenset[Effect] = frozenset()) -> Step:
    """One tick of the real lifecycle in this world."""
    lifecycle = _lifecycle(world.memory(), world.limits)
    plan = lifecycle.propose(observe(signs, world.phase))
    done, outcome = perform(world, plan, failing)
    memory = lifecycle.commit(plan, outcome)
    fired = plan.row.id if plan.row is not None and not outcome.vetoed else None
    entered = memory.state is State.RUNNING and world.state is not State.RUNNING
    left = memory.state is not State.RUNNING and world.state is State.RUNNING
    _check_hold(world, memory, fired, Effect.FREEZE in failing)
    _check_times(world.memory(), memory, entered, left, any(r.ok and r.effect is Effect.START for r in outcome.results))
    ask_next = done.ask_next or fired == "task-settled"
    phase = done.phase
    if memory.state is not State.RUNNING:
        ask_next = False
    elif ask_next and phase is TaskPhase.NONE:
        phase, ask_next = TaskPhase.ASKED, False
    after = replace(
        done,
        state=memory.state,
        owed=memory.owed,
        phase=phase,
        ask_next=ask_next,
        resting=True if left else done.resting,
        old=False if entered or left else done.old,
        hold=None if memory.hold_from_s is None else memory.hold_from_s == NOW if fired == "on-hold" else world.hold,
        overdue=done.overdue and done.alive and memory.state is State.RUNNING,
    )
    return Step(world, signs, plan, outcome, after, fired)


def _check_hold(world: World, after: Memory, fired: str | None, freeze_fails: bool) -> None:
    """A hold counts from its freeze, is used up by one that failed, and lasts until the task goes on or is left."""
    if fired == "on-hold":
        expected: float | None = USED_UP if freeze_fails else NOW
    else:
        over = fired is not None and fired not in ("switched-on", "safe", "unsafe")
        expected = None if over else world.memory().hold_from_s
    if after.hold_from_s != expected:
        raise Broken(f"the hold is from {after.hold_from_s}, not from {expected}")


def _check_times(before: Memory, after: Memory, entered: bool, left: bool, started: bool) -> None:
    """The times that the lifecycle remembers are those of the ticks at which things happened."""
    if after.cooldown_from_s != (NOW if left else before.cooldown_from_s):
        raise Broken("the cooldown does not count from the moment at which RUNNING was left")
    if entered and after.running_since_s != NOW:
        raise Broken("the stay does not count from its entry")
    if after.state is State.RUNNING and not entered and after.running_since_s != before.running_since_s:
        raise Broken("the stay was counted anew")
    if started and after.state is State.RUNNING and after.started_at_s != NOW:
        raise Broken("the timeout does not count from the start")
    if after.state is not before.state and after.since_s != NOW:
        raise Broken("since when is wrong")


_LIFECYCLES: list[Lifecycle] = []


def _lifecycle(memory: Memory, limits: Limits) -> Lifecycle:
    """One with this memory. To make a machine costs a millisecond, so one is kept and reset."""
    if not _LIFECYCLES:
        _LIFECYCLES.append(Lifecycle(limits))
    (kept,) = _LIFECYCLES
    kept.machine.set_state(memory.state)
    kept.memory, kept.limits = memory, limits
    return kept


def events(world: World) -> list[World]:
    """What may happen between two ticks, by itself: an answer, an exit, the passing of time."""
    out = [world]
    if world.phase is TaskPhase.NONE and world.state is State.READY and not world.claim:
        out.append(replace(world, phase=TaskPhase.ASKED))
    if world.phase is TaskPhase.ASKED:
        out.append(replace(world, phase=TaskPhase.CLAIMED, claim=True))
        out.append(replace(world, phase=TaskPhase.NONE))
    if world.phase is TaskPhase.RUNNING and world.alive:
        out.append(replace(world, phase=TaskPhase.ENDED, alive=False, overdue=False, frozen=False))
        out.append(replace(world, phase=TaskPhase.FAILED, alive=False, overdue=False, frozen=False))
    if world.hold:
        out += [replace(w, hold=False) for w in list(out)]
    if world.resting:
        out += [replace(w, resting=False) for w in list(out)]
    if world.state is State.RUNNING and not world.old:
        out += [replace(w, old=True) for w in list(out)]
    if world.state is State.RUNNING and world.alive and not world.overdue:
        out += [replace(w, overdue=True) for w in list(out) if w.alive]
    return out


def check(s: Step) -> None:
    """The invariants of the house, for one step. Raises Broken, in words."""
    before, after, signs = s.before, s.after, s.signs
    done = [r.effect for r in s.outcome.results]
    if after.state is State.RUNNING and not after.held:
        raise Broken("RUNNING without the inhibitor")
    if after.state is not State.RUNNING and after.held and Effect.RELEASE not in after.owed:
        raise Broken("the inhibitor is held outside RUNNING and its release is not owed")
    if after.alive and after.state is not State.RUNNING:
        if after.state not in (State.COOLDOWN, State.DISABLED):
            raise Broken(f"a task process lives in {after.state}")
        if Effect.STOP not in after.owed:
            raise Broken("a task process lives outside RUNNING and its stop is not owed")
    waits = s.fired == "on-hold" or (before.hold is True and before.phase is TaskPhase.RUNNING)
    if after.state in (State.READY, State.RUNNING) and not signs.safe and not waits:
        raise Broken(f"{after.state} without proof of safety: {signs}")
    if after.state is State.RUNNING and not signs.safe and after.alive and not after.frozen and after.hold is not False:
        raise Broken("a task runs without proof of safety")
    if after.state is State.RUNNING and waits and (signs.host != OK or not before.holding):
        raise Broken(f"a hold that may not be: {signs}")
    if s.fired == "on-hold" and not (signs.perhaps and before.hold is None and before.phase is TaskPhase.RUNNING):
        raise Broken(f"a task was put on hold at {signs}")
    if after.frozen and (after.state is not State.RUNNING or after.hold is None) and Effect.STOP not in after.owed:
        raise Broken("a task is frozen, and nobody thinks of it")
    if signs.safe and before.frozen and after.frozen and after.state is State.RUNNING and not {"timed-out"} & {s.fired}:
        raise Broken("a task stays frozen although it is safe again")
    resting = before.state in (State.COOLDOWN, State.DISABLED)
    if signs.gpu == "held" and resting and after.state not in (before.state, State.DISABLED):
        raise Broken("the node went on although a task's VRAM is still held")
    if signs.automation != "on" and after.state is not State.DISABLED:
        raise Broken(f"automation is {signs.automation}, yet {after.state}")
    if before.resting and after.state is State.READY and before.state is not State.READY:
        raise Broken("READY before the cooldown was over")
    if before.resting and before.state is State.COOLDOWN and after.state not in (State.COOLDOWN, State.DISABLED):
        raise Broken("COOLDOWN was left too early")
    if before.state is State.RUNNING and after.state is not State.RUNNING and not after.resting:
        raise Broken("RUNNING was left without a cooldown")
    if before.phase is TaskPhase.CLAIMED and not after.claim and done.count(Effect.HAND_BACK) != 1:
        raise Broken("a claim vanished without being handed back")
    ends = [r for r in s.outcome.results if r.ok and r.effect in (Effect.SETTLE, Effect.HAND_BACK)]
    if before.claim and not after.claim and len(ends) != 1:
        raise Broken("a task was not settled or handed back exactly once")
    if after.claim and after.phase is TaskPhase.NONE:
        raise Broken("a claim was forgotten")
    if after.claim and after.state is not State.RUNNING and not {Effect.SETTLE, Effect.HAND_BACK} & set(after.owed):
        raise Broken(f"a claim is kept in {after.state} and nothing is owed for it")
    if before.state is State.RUNNING and after.state is not State.RUNNING:
        order = [e for e in done if e in OWED]
        own = order[len(before.owed) :]
        if own != sorted(own, key=OWED.index):
            raise Broken(f"the way out is out of order: {order}")
        if Effect.RELEASE not in done or (before.alive and Effect.STOP not in done):
            raise Broken(f"the way out forgot something: {done}")
        if before.alive and Effect.WIPE not in done[done.index(Effect.STOP) :]:
            raise Broken("the work dir was not wiped after the stop")
    if any(e not in done for e in before.owed):
        raise Broken(f"an owed effect was not tried: {before.owed}, done {done}")
