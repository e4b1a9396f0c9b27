"""One predicate for each rule. Each claims that something is safe and answers True, False or None. None is unknown, and
never passes.

Rules of this file: a guard is two functions over the same (Observation, Memory, Limits). `judge` only decides; every tick
calls it, and it makes no text. `explain` makes the text of the same judgement when somebody reads it. Readings are compared
so that a NaN never passes. A reading fails above its limit; a time is up when it is reached.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final

from states.effects import Effect
from states.formatting import duration, elapsed, number
from states.limits import Limits
from states.memory import Memory
from states.observation import Link, Observation, Reading, TaskPhase

# Sums of decimal seconds are off by less than this; a time is up when it is reached.
GRAIN_S: Final = 1e-3

Judgement = bool | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judgement with its text: what `status`, `why`, the journal and the dry run show as `guards[]`.

    `ok` is None for unknown. `value` and `limit` are in `unit`; `age_s` is the age of the reading; `wait_s` the time
    after which it will be ok if nothing else happens, None if no end is known.
    """

    name: str
    ok: bool | None
    reason: str
    value: float | str | bool | None = None
    limit: float | str | bool | None = None
    unit: str = ""
    source: str = ""
    age_s: float | None = None
    wait_s: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The JSON form; keys are stable. JSON has no infinity: a time without end is None."""
        return {name: _finite(getattr(self, name)) for name in self.__dataclass_fields__}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not isfinite(value) else value


Judge = Callable[[Observation, Memory, Limits], Judgement]
Explain = Callable[[Observation, Memory, Limits], Verdict]


@dataclass(frozen=True, slots=True)
class Guard:
    """A named rule: `judge` decides, `explain` says why."""

    name: str
    judge: Judge
    explain: Explain


def _age(reading: Reading[Any], now_s: float) -> float | None:
    age_s = now_s - reading.read_at_s
    return age_s if age_s != float("inf") else None


def _unseen(name: str, what: str, o: Observation, reading: Reading[Any], max_age_s: float) -> Verdict:
    """The verdict over a reading that proves nothing: an error, or too old."""
    age_s = _age(reading, o.now_s)
    if reading.value is None:
        reason = f"{what} unknown: {reading.error}"
    elif age_s is None:
        reason = f"{what} unknown: the last look is too old, at most {duration(max_age_s)} allowed"
    else:
        reason = f"{what} unknown: last look {duration(age_s)} ago, at most {duration(max_age_s)} allowed"
    return Verdict(name, None, reason, source=reading.source, age_s=age_s)


# --- automation_on: runtime.yaml, the operator's pause, a sound configuration, a link that was not given up


def _automation_on(o: Observation, _m: Memory, _lim: Limits) -> Judgement:
    return o.automation.on and o.link is not Link.LOST


def _explain_automation_on(o: Observation, _m: Memory, _lim: Limits) -> Verdict:
    a = o.automation
    wait_s = None if a.until_s is None or a.on else max(0.0, a.until_s - o.now_s)
    if not a.on:
        reason, source = a.reason or "automation is off", a.source
    elif o.link is Link.LOST:
        reason = o.link_reason or "the control node was given up (execution.retry_on_disconnect is false)"
        source = "link"
    else:
        reason, source = "automation is on", a.source
    ok = _automation_on(o, _m, _lim)
    return Verdict("automation_on", ok, reason, ok, True, "", source, 0.0, 0.0 if ok else wait_s)


# --- user_away: no sign of the person for idle_required_minutes


def _user_away(o: Observation, _m: Memory, lim: Limits) -> Judgement:
    if not lim.detect_active_user:
        return True
    person = o.person
    value = person.value
    if value is None or not o.now_s - person.read_at_s <= lim.max_age_person_s:
        return None
    return o.now_s - value.last_sign_at_s >= lim.idle_required_s - GRAIN_S


def _explain_user_away(o: Observation, m: Memory, lim: Limits) -> Verdict:
    name, r, ok = "user_away", o.person, _user_away(o, m, lim)
    if not lim.detect_active_user:
        reason = "user not watched: safety.detect_active_user is false"
        return Verdict(name, True, reason, unit="s", source="runtime.yaml", wait_s=0.0)
    if ok is None or r.value is None:
        return _unseen(name, "user", o, r, lim.max_age_person_s)
    idle_s = o.now_s - r.value.last_sign_at_s
    wait_s = None if r.value.lasts else max(0.0, lim.idle_required_s - idle_s)
    if ok:
        reason = f"user away for {elapsed(idle_s)}, {elapsed(lim.idle_required_s)} required"
    elif idle_s < 1.0:
        reason = f"{r.value.sign}, away for {elapsed(lim.idle_required_s)} required"
    else:
        reason = f"{r.value.sign} {elapsed(idle_s)} ago, away for {elapsed(lim.idle_required_s)} required"
    return Verdict(name, ok, reason, idle_s, lim.idle_required_s, "s", r.source, _age(r, o.now_s), 0.0 if ok else wait_s)


# --- gpu_free: the lent GPU is there, within its limits without the own task, and nobody else uses it


def _gpu_free(o: Observation, _m: Memory, lim: Limits) -> Judgement:
    reading = o.gpu
    gpu = reading.value
    if gpu is None or not o.now_s - reading.read_at_s <= lim.max_age_gpu_s:
        return None
    if not gpu.present:
        return not lim.gpu_required
    if gpu.percent < 0 or gpu.vram_gb < 0 or gpu.foreign < 0:
        return None
    return gpu.percent <= lim.max_gpu_percent and gpu.vram_gb <= lim.max_vram_gb and gpu.foreign == 0 and not gpu.held


def _still_held(held: str) -> str:
    return f"VRAM is still held after the task: {held}"


def _explain_gpu_free(o: Observation, m: Memory, lim: Limits) -> Verdict:
    name, r, ok = "gpu_free", o.gpu, _gpu_free(o, m, lim)
    gpu, age_s = r.value, _age(r, o.now_s)
    if gpu is None or not o.now_s - r.read_at_s <= lim.max_age_gpu_s:
        return _unseen(name, "GPU", o, r, lim.max_age_gpu_s)
    if not gpu.present:
        asked = "; gpu.presence: required in node.yaml asks for one"
        reason = "no GPU" + (asked if lim.gpu_required else ", and none is asked for (gpu.presence)")
        return Verdict(name, ok, reason, "absent", None, "", r.source, age_s, 0.0 if ok else None)
    if ok is None:
        found = f"{number(gpu.percent)} %, {number(gpu.vram_gb)} GiB, {gpu.foreign} foreign processes"
        reason = f"GPU unknown: impossible reading ({found})"
        return Verdict(name, None, reason, gpu.percent, lim.max_gpu_percent, "%", r.source, age_s)
    if gpu.foreign:
        who = f" ({', '.join(gpu.foreign_names)})" if gpu.foreign_names else ""
        count = "1 process" if gpu.foreign == 1 else f"{gpu.foreign} processes"
        return Verdict(name, ok, f"GPU used by {count} not RAE's{who}", gpu.foreign, 0, "processes", r.source, age_s)
    if gpu.held:
        return Verdict(name, ok, _still_held(gpu.held), "held", None, "", r.source, age_s)
    if not gpu.percent <= lim.max_gpu_percent:
        on = f" {gpu.busiest}" if gpu.busiest else ""
        reason = f"GPU{on} at {number(gpu.percent)} %, limit {number(lim.max_gpu_percent)} % (safety.max_gpu_percent)"
        return Verdict(name, ok, reason, gpu.percent, lim.max_gpu_percent, "%", r.source, age_s)
    if not gpu.vram_gb <= lim.max_vram_gb:
        on = f" of {gpu.fullest}" if gpu.fullest else ""
        limit = f"limit {number(lim.max_vram_gb)} GiB (safety.max_vram_gb)"
        reason = f"VRAM{on} {number(gpu.vram_gb)} GiB in use by others, {limit}"
        return Verdict(name, ok, reason, gpu.vram_gb, lim.max_vram_gb, "GiB", r.source, age_s)
    reason = (
        f"GPU at {number(gpu.percent)} % of {number(lim.max_gpu_percent)} %, "
        f"VRAM {number(gpu.vram_gb)} GiB of {number(lim.max_vram_gb)} GiB, no foreign process"
    )
    return Verdict(name, ok, reason, gpu.percent, lim.max_gpu_percent, "%", r.source, age_s, 0.0)


# --- cpu_free: others use no more than max_cpu_percent


def _cpu_free(o: Observation, _m: Memory, lim: Limits) -> Judgement:
    reading = o.cpu
    cpu = reading.value
    if cpu is None or not o.now_s - reading.read_at_s <= lim.max_age_cpu_s or cpu.percent < 0:
        return None
    return cpu.percent <= lim.max_cpu_percent


def _explain_cpu_free(o: Observation, m: Memory, lim: Limits) -> Verdict:
    name, r, ok = "cpu_free", o.cpu, _cpu_free(o, m, lim)
    cpu = r.value
    if cpu is None or not o.now_s - r.read_at_s <= lim.max_age_cpu_s:
        return _unseen(name, "CPU", o, r, lim.max_age_cpu_s)
    if ok is None:
        reason = f"CPU unknown: impossible reading ({number(cpu.percent)} %)"
    elif ok:
        reason = f"CPU of others at {number(cpu.percent)} %, limit {number(lim.max_cpu_percent)} %"
    else:
        reason = f"CPU of others at {number(cpu.percent)} %, limit {number(lim.max_cpu_percent)} % (safety.max_cpu_percent)"
    return Verdict(name, ok, reason, cpu.percent, lim.max_cpu_percent, "%", r.source, _age(r, o.now_s), 0.0 if ok else None)


# --- host_fit: power, memory, temperature allow work, and the machine is not about to sleep


def _host_fit(o: Observation, _m: Memory, lim: Limits) -> Judgement:
    reading = o.host
    host = reading.value
    if host is None or not o.now_s - reading.read_at_s <= lim.max_age_host_s:
        return None
    return host.fit and not host.going_down


def _explain_host_fit(o: Observation, m: Memory, lim: Limits) -> Verdict:
    name, r, ok = "host_fit", o.host, _host_fit(o, m, lim)
    host = r.value
    if ok is None or host is None:
        return _unseen(name, "host", o, r, lim.max_age_host_s)
    if host.going_down:
        reason = host.reason or "the machine is about to sleep or shut down"
    elif not host.fit:
        reason = f"host unfit: {host.reason}" if host.reason else "host unfit"
    else:
        reason = "host fit" + (f": {host.reason}" if host.reason else "")
    value = "going-down" if host.going_down else ("fit" if host.fit else "unfit")
    return Verdict(name, ok, reason, value, "fit", "", r.source, _age(r, o.now_s), 0.0 if ok else None)


# --- host_staying: nobody has announced a sleep or shutdown; host_fit handles unknown


def _host_staying(o: Observation, _m: Memory, lim: Limits) -> Judgement:
    host = o.host.value
    if host is None or not o.now_s - o.host.read_at_s <= lim.max_age_host_s:
        return True
    return not host.going_down


# --- the task: claimed, in time, over, gone


def _ending_owed(m: Memory) -> bool:
    """Settling or handing back the claim failed and is owed: it must not be started, nor settled a second time."""
    return Effect.SETTLE in m.owed or Effect.HAND_BACK in m.owed


def _task_claimed(o: Observation, m: Memory, _lim: Limits) -> Judgement:
    return o.task.phase is TaskPhase.CLAIMED and not (m.owed and _ending_owed(m))


def _task_name(o: Observation) -> str:
    return " ".join(part for part in (o.task.type, o.task.id) if part)


def _explain_task_claimed(o: Observation, m: Memory, lim: Limits) -> Verdict:
    ok, phase = _task_claimed(o, m, lim), o.task.phase
    if ok:
        reason = f"a task is here: {_task_name(o) or 'claimed'}"
    elif phase is TaskPhase.CLAIMED:
        reason = "the task is being handed back"
    elif phase is TaskPhase.ASKED:
        reason = "asking the control node for a task"
    elif phase is TaskPhase.NONE:
        down = o.link is Link.DOWN and o.link_reason
        reason = "no task is here" + (f": no link to the control node ({o.link_reason})" if down else "")
    else:
        reason = f"the task is {phase}"
    return Verdict("task_claimed", ok, reason, str(phase), "claimed", "", "source", 0.0, 0.0 if ok else None)


def _task_in_time(o: Observation, m: Memory, lim: Limits) -> Judgement:
    """A process runs no longer than its limit, counted from its start."""
    if o.task.phase is not TaskPhase.RUNNING or m.started_at_s is None:
        return True
    return o.now_s - m.started_at_s < lim.timeout_s(o.task.type) - GRAIN_S


def _may_hold(o: Observation, m: Memory, lim: Limits) -> Judgement:
    """The task may be frozen: it runs, its type has a hold that is not used up, and a fresh reading shows that it would keep
    nothing on the GPU."""
    if not (lim.hold_s or lim.holds_s) or o.task.phase is not TaskPhase.RUNNING or m.hold_from_s is not None:
        return False
    gpu = o.gpu.value
    if gpu is None or not o.now_s - o.gpu.read_at_s <= lim.max_age_gpu_s:
        return None
    return not gpu.pinned and lim.hold_of(o.task.type) > 0


def _on_hold(o: Observation, m: Memory, _lim: Limits) -> Judgement:
    """The task is frozen because of a sign that may be a false alarm."""
    return m.hold_from_s is not None and o.task.phase is TaskPhase.RUNNING


def _hold_over(o: Observation, m: Memory, lim: Limits) -> Judgement:
    """No task is on hold, or its hold is used up."""
    if m.hold_from_s is None or o.task.phase is not TaskPhase.RUNNING:
        return True
    return o.now_s - m.hold_from_s >= lim.hold_of(o.task.type) - GRAIN_S


def hold_left_s(o: Observation, m: Memory, lim: Limits) -> float | None:
    """Seconds until the task on hold is stopped; None: no task is on hold."""
    if m.hold_from_s is None or o.task.phase is not TaskPhase.RUNNING:
        return None
    return max(0.0, m.hold_from_s + lim.hold_of(o.task.type) - o.now_s)


def _task_over(o: Observation, m: Memory, _lim: Limits) -> Judgement:
    """Nothing is asked for, claimed or running, and no ending is owed."""
    phase = o.task.phase
    if phase is TaskPhase.ENDED or phase is TaskPhase.FAILED:
        return not (m.owed and _ending_owed(m))
    return phase is TaskPhase.NONE


def _explain_task_over(o: Observation, m: Memory, lim: Limits) -> Verdict:
    ok, phase = _task_over(o, m, lim), o.task.phase
    if phase is TaskPhase.RUNNING:
        timeout_s = lim.timeout_s(o.task.type)
        ran_s = 0.0 if m.started_at_s is None else o.now_s - m.started_at_s
        reason = f"{_task_name(o) or 'the task'} runs for {elapsed(ran_s)}, at most {elapsed(timeout_s)}"
        return Verdict("task_over", ok, reason, ran_s, timeout_s, "s", "executor", 0.0, max(0.0, timeout_s - ran_s))
    texts = {
        TaskPhase.NONE: "no task",
        TaskPhase.ASKED: "asking the control node for a task",
        TaskPhase.CLAIMED: "the task has not started",
        TaskPhase.ENDED: "the task has ended" if ok else "the task has ended, its result waits for the outbox",
        TaskPhase.FAILED: "the task has failed" if ok else "the task has failed, its error waits for the outbox",
    }
    return Verdict("task_over", ok, texts[phase], str(phase), "ended", "", "executor", 0.0, 0.0 if ok else None)


def _task_gone(o: Observation, m: Memory, _lim: Limits) -> Judgement:
    """No process of ours is alive, no stop is owed, and the VRAM of the last task is given back."""
    if o.task.phase is TaskPhase.RUNNING or (m.owed and Effect.STOP in m.owed):
        return False
    gpu = o.gpu.value
    return gpu is None or not gpu.held


def _explain_task_gone(o: Observation, m: Memory, lim: Limits) -> Verdict:
    ok, gpu = _task_gone(o, m, lim), o.gpu.value
    if ok:
        reason, value = "no task process is alive", "gone"
    elif Effect.STOP in m.owed:
        reason, value = "a task process would not stop; stopping it is tried at every tick", "alive"
    elif o.task.phase is TaskPhase.RUNNING or gpu is None:
        reason, value = "a task process is alive", "alive"
    else:
        reason, value = _still_held(gpu.held), "held"
    source = "executor" if value != "held" else o.gpu.source
    return Verdict("task_gone", ok, reason, value, "gone", "", source, 0.0, 0.0 if ok else None)


# --- cooldown_over: cooldown_minutes have passed since RUNNING was left


def _cooldown_over(o: Observation, m: Memory, lim: Limits) -> Judgement:
    if m.cooldown_from_s is None:
        return True
    return o.now_s - m.cooldown_from_s >= lim.cooldown_s - GRAIN_S


def _explain_cooldown_over(o: Observation, m: Memory, lim: Limits) -> Verdict:
    ok = _cooldown_over(o, m, lim)
    if m.cooldown_from_s is None:
        return Verdict("cooldown_over", ok, "no cooldown pending", None, lim.cooldown_s, "s", "memory", 0.0, 0.0)
    rested_s = o.now_s - m.cooldown_from_s
    if ok:
        reason = f"cooldown of {elapsed(lim.cooldown_s)} is over"
    else:
        reason = f"cooling down for {elapsed(rested_s)} of {elapsed(lim.cooldown_s)} (safety.cooldown_minutes)"
    wait_s = 0.0 if ok else lim.cooldown_s - rested_s
    return Verdict("cooldown_over", ok, reason, rested_s, lim.cooldown_s, "s", "memory", 0.0, wait_s)


def _stay_young(o: Observation, m: Memory, lim: Limits) -> Judgement:
    """This stay in RUNNING, counted from its entry, may take a further task (work.run_minutes)."""
    return m.running_since_s is not None and o.now_s - m.running_since_s < lim.run_s - GRAIN_S


def _task_here(o: Observation, _m: Memory, _lim: Limits) -> Judgement:
    """A task was handed over. Without one, `task_over` means that nothing was there."""
    return o.task.phase is not TaskPhase.NONE


def _not_explained(o: Observation, m: Memory, lim: Limits) -> Verdict:
    raise AssertionError("this guard only splits rows; nobody asks it for a text")


automation_on: Final = Guard("automation_on", _automation_on, _explain_automation_on)
user_away: Final = Guard("user_away", _user_away, _explain_user_away)
gpu_free: Final = Guard("gpu_free", _gpu_free, _explain_gpu_free)
cpu_free: Final = Guard("cpu_free", _cpu_free, _explain_cpu_free)
host_fit: Final = Guard("host_fit", _host_fit, _explain_host_fit)
task_claimed: Final = Guard("task_claimed", _task_claimed, _explain_task_claimed)
task_over: Final = Guard("task_over", _task_over, _explain_task_over)
task_gone: Final = Guard("task_gone", _task_gone, _explain_task_gone)
cooldown_over: Final = Guard("cooldown_over", _cooldown_over, _explain_cooldown_over)

# These only split what one of the nine above explains.
host_staying: Final = Guard("host_staying", _host_staying, _not_explained)
task_in_time: Final = Guard("task_in_time", _task_in_time, _not_explained)
task_here: Final = Guard("task_here", _task_here, _not_explained)
stay_young: Final = Guard("stay_young", _stay_young, _not_explained)
may_hold: Final = Guard("may_hold", _may_hold, _not_explained)
on_hold: Final = Guard("on_hold", _on_hold, _not_explained)
hold_over: Final = Guard("hold_over", _hold_over, _not_explained)

SAFE: Final = (user_away, gpu_free, cpu_free, host_fit)

# What is shown everywhere as `guards[]`, in this order.
GUARDS: Final = (automation_on, *SAFE, task_claimed, task_over, task_gone, cooldown_over)
