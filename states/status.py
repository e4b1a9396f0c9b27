"""The node's state in one line for people: `STATE: reason[, time to go]`."""

from __future__ import annotations

from states.formatting import duration, elapsed
from states.guards import Verdict, hold_left_s, task_gone
from states.lifecycle import blocked_by
from states.limits import Limits
from states.memory import Memory, State
from states.observation import Link, Observation, TaskPhase

_AFTER = {
    "going-down": "the machine went down",
    "user-returned": "the person came back",
    "gpu-taken": "the GPU was needed",
    "cpu-taken": "the CPU was needed",
    "host-unfit": "the machine was not fit",
    "timed-out": "a task took too long",
    "task-ended": "the work was done",
    "switched-off": "automation was switched off",
}


def time_to_go(blocked: tuple[Verdict, ...]) -> float | None:
    """Seconds until nothing blocks any more, if nothing else happens; None when no end is known, or nothing blocks."""
    waits = [v.wait_s for v in blocked]
    known = [w for w in waits if w is not None and w != float("inf")]
    return max(known) if known and len(known) == len(waits) else None


def _main_block(o: Observation, m: Memory, lim: Limits) -> str:
    blocked = blocked_by(o, m, lim)
    first = blocked[0]
    text = first.reason
    if first.name == "user_away" and first.ok is False and o.person.value is not None:
        text = o.person.value.sign
    to_go = time_to_go(blocked)
    return text if to_go is None else f"{text}, {duration(to_go)} to go"


def reason(o: Observation, m: Memory, lim: Limits) -> str:
    """Why the node is in its state, with the time to go where it is known."""
    if m.state is State.RUNNING:
        task = " ".join(part for part in (o.task.type, o.task.id) if part) or "a task"
        if (left_s := hold_left_s(o, m, lim)) is not None:
            why = f": {_main_block(o, m, lim)}" if blocked_by(o, m, lim) else ""
            return f"{task} is on hold{why}; stopped in {elapsed(left_s)} if it stays so"
        if o.task.phase is TaskPhase.RUNNING and m.started_at_s is not None:
            return f"{task} for {elapsed(o.now_s - m.started_at_s)} of at most {elapsed(lim.timeout_s(o.task.type))}"
        if o.task.phase in (TaskPhase.NONE, TaskPhase.ASKED):
            return "asking for the next task"
        return f"{task} is {o.task.phase}"
    if blocked_by(o, m, lim):
        text = _main_block(o, m, lim)
        if m.state is State.COOLDOWN and m.last_row in _AFTER:
            return f"resting after {_AFTER[m.last_row]}" + text[text.rfind(",") :] * (" to go" in text)
        return text
    if m.state is State.READY:
        if m.veto:
            return f"safe, but no task can start: {m.veto}"
        if o.link is not Link.UP:
            return f"safe, but no link to the control node: {o.link_reason or 'no answer yet'}"
        return "safe, waiting for a task"
    if m.state is State.DISABLED:
        gone = task_gone.explain(o, m, lim)
        return "switching on" if gone.ok else f"automation is on, but {gone.reason}"
    return "about to go on"


def cause(o: Observation, m: Memory, lim: Limits) -> str:
    """Why the node is in its state, without the time to go."""
    blocked = blocked_by(o, m, lim)
    if m.state is State.RUNNING and o.task.phase is TaskPhase.RUNNING:
        task = f"{o.task.type} {o.task.id[:8]}…" if o.task.id else "a task"
        on_hold = hold_left_s(o, m, lim) is not None
        return task + (" is on hold" + (f": {blocked[0].reason}" if blocked else "") if on_hold else "")
    if m.state is State.RUNNING or not blocked:
        return reason(o, m, lim)
    if m.state is State.COOLDOWN and m.last_row in _AFTER:
        return _AFTER[m.last_row]
    first = blocked[0]
    if first.name == "user_away" and first.ok is False and o.person.value is not None:
        idle_s = o.now_s - o.person.value.last_sign_at_s
        return o.person.value.sign if idle_s < 1.0 else f"{o.person.value.sign} {elapsed(idle_s)} ago"
    return first.reason


def next_step(o: Observation, m: Memory, lim: Limits) -> str:
    """What happens next if nothing else comes between, and when."""
    blocked = blocked_by(o, m, lim)
    if m.state is State.RUNNING:
        if (left_s := hold_left_s(o, m, lim)) is not None:
            return f"the task is stopped in {duration(left_s)}, or goes on if it was a false alarm"
        if o.task.phase is TaskPhase.RUNNING and m.started_at_s is not None:
            left_s = max(0.0, m.started_at_s + lim.timeout_s(o.task.type) - o.now_s)
            return f"it ends within {duration(left_s)}, or at once when somebody comes back"
        return "takes one more task, or rests"
    if not blocked:
        free = m.state is State.READY and not m.veto and o.link is Link.UP
        return "works as soon as the control node has a task" if free else unblock(o, m, lim)
    if (to_go := time_to_go(blocked)) is None:
        return unblock(o, m, lim)
    names = {verdict.name for verdict in blocked}
    if "automation_on" in names:
        return f"goes on in {duration(to_go)}, or after `rae-node resume`"
    if m.state is State.COOLDOWN:
        return f"looks in {duration(to_go)} whether it may work again"
    return f"may work in {duration(to_go)}" + (" if nobody comes back" if "user_away" in names else "")


def status_text(o: Observation, m: Memory, lim: Limits) -> str:
    """`STATUS=` for systemd and the first line of `status`."""
    return f"{m.state}: {reason(o, m, lim)}"


def unblock(o: Observation, m: Memory, lim: Limits) -> str:
    """The one thing that would unblock the node, or what it waits for if nothing blocks it."""
    blocked = blocked_by(o, m, lim)
    if not blocked:
        return _missing(o, m)
    endless = [v for v in blocked if v.wait_s is None]
    first = endless[0] if endless else max(blocked, key=lambda v: v.wait_s or 0.0)
    if first.wait_s is not None:
        setting = {"user_away": "safety.idle_required_minutes", "cooldown_over": "safety.cooldown_minutes"}.get(first.name)
        sooner = ", or `rae-node resume`" if first.name == "automation_on" else ""
        return f"wait {duration(first.wait_s)}{sooner}" + (f" ({setting})" if setting else "")
    hints = {
        "automation_on": _switch_on(first),
        "user_away": ("this must end first: " if first.ok is False else "make the person's signs readable: ") + first.reason,
        "gpu_free": "free the GPU: " + first.reason + (_NOT_FOREIGN if first.unit == "processes" else ""),
        "cpu_free": "let the CPU load of others fall: " + first.reason,
        "host_fit": "repair the host: " + first.reason,
        "task_gone": ("free the GPU: " if first.value == "held" else "end the task's last process: ") + first.reason,
    }
    return hints.get(first.name, first.reason)


_NOT_FOREIGN = "; name what is RAE's in gpu.own_units or gpu.own_processes (node.yaml)"


def _switch_on(verdict: Verdict) -> str:
    """What switches automation on again, by what switched it off."""
    ways = {
        "operator": "the node is stopping; start it again" if "resume" not in verdict.reason else "`rae-node resume`",
        "configuration": f"correct the configuration: {verdict.reason}",
        "runtime.yaml": "set automation.enabled to true in runtime.yaml",
        "link": f"`rae-node resume` tries the control node again: {verdict.reason}",
    }
    return ways.get(verdict.source, verdict.reason)


def _missing(o: Observation, m: Memory) -> str:
    """What an unblocked node still waits for."""
    if m.state is State.READY and m.veto:
        return f"let a task start: {m.veto}"
    if m.state is State.READY and o.link is not Link.UP:
        return f"reach the control node: {o.link_reason or 'no answer yet'}"
    return "nothing blocks it" + (", it waits for a task" if m.state is State.READY else "")
