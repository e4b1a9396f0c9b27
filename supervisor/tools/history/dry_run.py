"""The dry run: user, GPU, CPU and host in every combination, judged by the daemon's own rules. Nothing is executed.

What must come out is written here apart from those rules, so that the dry run can fail: work is allowed if and only if
the person is away (or not watched), and GPU, CPU and host are all known and free.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from states.effects import Effect
from states.lifecycle import EffectResult, Lifecycle, Outcome, blocked_by
from states.limits import Limits
from states.memory import Memory, State
from states.observation import Observation
from supervisor.journal.codec import ABSENT, UNKNOWN, observation_of

NOW_S: Final = 1_000_000.0

# The first of CPUS and HOSTS give the basic cases: user active or idle, GPU busy or free. The rest follows.
USERS: Final = ("active", "idle", "unknown")
GPUS: Final = ("busy", "free", "unknown")
CPUS: Final = ("free", "busy", "unknown")
HOSTS: Final = ("fit", "unfit", "unknown")
# Other ways in which one reading alone keeps the node from work, while all else is well.
FURTHER: Final = (
    ("idle", "VRAM full", "free", "fit"),
    ("idle", "foreign process", "free", "fit"),
    ("idle", "absent", "free", "fit"),
    ("idle", "stale", "free", "fit"),
    ("stale", "free", "free", "fit"),
    ("idle", "free", "stale", "fit"),
    ("idle", "free", "free", "stale"),
    ("idle", "free", "free", "going-down"),
)


@dataclass(frozen=True, slots=True)
class Case:
    """One combination, where it leads, and why. `required`: whether work must be allowed."""

    case: str
    user: str
    gpu: str
    cpu: str
    host: str
    allowed: bool
    state: State
    reasons: tuple[str, ...]
    required: bool

    @property
    def reason(self) -> str:
        return "; ".join(self.reasons) or "nothing blocks"

    @property
    def as_required(self) -> bool:
        return self.allowed is self.required

    def as_dict(self) -> dict[str, Any]:
        """The JSON form (interface §4)."""
        names = ("case", "user", "gpu", "cpu", "host", "allowed", "state", "reason")
        return {name: getattr(self, name) for name in names}


def dry_run(limits: Limits) -> list[Case]:
    combinations = ((u, g, c, h) for c, h, g, u in itertools.product(CPUS, HOSTS, GPUS, USERS))
    return [_case(*combination, limits) for combination in (*combinations, *FURTHER)]


def required(user: str, gpu: str, cpu: str, host: str, limits: Limits) -> bool:
    """Whether work must be allowed, without asking the daemon's rules."""
    away = user == "idle" or not limits.detect_active_user
    free = gpu == "free" or (gpu == "absent" and not limits.gpu_required)
    return away and free and cpu == "free" and host == "fit"


def _case(user: str, gpu: str, cpu: str, host: str, limits: Limits) -> Case:
    seen = _observation(user, gpu, cpu, host, "none", limits)
    lifecycle = Lifecycle(limits, memory=Memory(State.IDLE_WAIT, NOW_S))
    lifecycle.commit(lifecycle.propose(seen))
    state = lifecycle.state
    blocked = tuple(verdict.reason for verdict in blocked_by(seen, lifecycle.memory, limits))
    return Case(
        f"user {user}, GPU {gpu}, CPU {cpu}, host {host}",
        *(user, gpu, cpu, host),
        state is State.READY and _would_run(lifecycle, _observation(user, gpu, cpu, host, "claimed", limits)),
        state,
        blocked,
        required(user, gpu, cpu, host, limits),
    )


def _would_run(lifecycle: Lifecycle, offered: Observation) -> bool:
    """A task that is claimed now would start; all effects count as done."""
    plan = lifecycle.propose(offered)
    lifecycle.commit(plan, Outcome(tuple(EffectResult(effect, ok=True) for effect in plan.effects)))
    return lifecycle.state is State.RUNNING and Effect.START in plan.effects


def _observation(user: str, gpu: str, cpu: str, host: str, task: str, limits: Limits) -> Observation:
    away = {"idle": limits.idle_required_s}
    fine = {"percent": limits.max_gpu_percent, "vram_gb": limits.max_vram_gb, "foreign": 0}
    gpus: dict[str, Any] = {
        "busy": fine | {"percent": limits.max_gpu_percent + 1},
        "VRAM full": fine | {"vram_gb": limits.max_vram_gb + 1},
        "foreign process": fine | {"foreign": 1},
        "absent": ABSENT,
        "unknown": UNKNOWN,
    }
    see = {
        "automation": "on",
        "user": {"active": {"idle": 0.0}, "unknown": UNKNOWN}.get(user, away),
        "gpu": gpus.get(gpu, fine),
        "cpu": {"busy": limits.max_cpu_percent + 1, "unknown": UNKNOWN}.get(cpu, limits.max_cpu_percent),
        "host": {"unfit": {"unfit": "for the dry run"}, "going-down": "going-down", "unknown": UNKNOWN}.get(host, "fit"),
        "task": task,
        "link": "up",
        "stale": [name for name, said in (("user", user), ("gpu", gpu), ("cpu", cpu), ("host", host)) if said == "stale"],
    }
    return observation_of(see, NOW_S, source="dry run")


def exit_code(cases: Iterable[Case]) -> int:
    """0, or 1 if one comes out otherwise than required (interface §4)."""
    return 0 if all(case.as_required for case in cases) else 1


def as_table(cases: list[Case]) -> str:
    """Plain text: a line for each case with the first thing that blocks it, then the sum."""
    head = ("USER", "GPU", "CPU", "HOST", "TASKS", "STATE", "REASON")
    rows = [head]
    for case in cases:
        tasks = "allowed" if case.allowed else "blocked"
        why = "" if case.as_required else f"MUST BE {'allowed' if case.required else 'blocked'}: "
        why += case.reasons[0] if case.reasons else case.reason
        why += f" (and {len(case.reasons) - 1} more)" if len(case.reasons) > 1 else ""
        rows.append((case.user, case.gpu, case.cpu, case.host, tasks, str(case.state), why))
    widths = [*(max(map(len, column)) for column in zip(*(row[:-1] for row in rows), strict=True)), 0]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    allowed = sum(case.allowed for case in cases)
    wrong_cases = sum(not case.as_required for case in cases)
    verdict = "all as required" if not wrong_cases else f"{wrong_cases} NOT as required"
    return "\n".join([*lines, "", f"{len(cases)} cases: {allowed} allowed, {len(cases) - allowed} blocked; {verdict}"])
