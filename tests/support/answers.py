"""What a daemon answers in each state: the texts are the product's own, the signs are made."""

from __future__ import annotations

from typing import Any

from support.model import LIMITS

from states.lifecycle import blocked_by, verdicts
from states.memory import Memory, State
from states.observation import Automation, Cpu, Gpu, Host, Link, Observation, Person, Reading, Task, TaskPhase
from states.status import cause, next_step, reason, status_text, unblock

NOW_S = 100_000.0
WALL_S = 1_800_000_000.0  # Friday 15 January 2027, 08:00:00 UTC
ID = "5e29f042-9a82-4c7f-aa38-b868953919d2"


def at(ago_s: float) -> str:
    """An ISO time."""
    from supervisor.linux.clock import iso

    return iso(WALL_S - ago_s)


def seen(**parts: Any) -> Observation:
    """All is free and nobody there, but for `parts`."""
    fresh: dict[str, Any] = {
        "person": Reading(Person(NOW_S - 5_000, "anna active on seat0"), "", "seat0", NOW_S),
        "gpu": Reading(Gpu(1, 0.5), "", "nvml", NOW_S), "cpu": Reading(Cpu(3.0), "", "/proc/stat", NOW_S),
        "host": Reading(Host(), "", "UPower", NOW_S), "link": Link.UP,
    }  # fmt: skip
    return Observation(NOW_S, **{"automation": Automation(True, source="runtime.yaml"), **fresh, **parts})


SEEN: dict[State, tuple[Observation, Memory]] = {
    State.DISABLED: (
        seen(automation=Automation(False, "paused by anna until 10:00", "operator", NOW_S + 7200)),
        Memory(State.DISABLED, NOW_S - 300),
    ),
    State.IDLE_WAIT: (
        seen(person=Reading(Person(NOW_S - 40, "anna active on seat0"), "", "seat0", NOW_S)),
        Memory(State.IDLE_WAIT, NOW_S - 180),
    ),
    State.READY: (seen(), Memory(State.READY, NOW_S - 3600)),
    State.RUNNING: (
        seen(task=Task(TaskPhase.RUNNING, ID, "render"), gpu=Reading(Gpu(9, 1.5), "", "nvml", NOW_S)),
        Memory(State.RUNNING, NOW_S - 190, running_since_s=NOW_S - 190, started_at_s=NOW_S - 185),
    ),
    State.COOLDOWN: (
        seen(person=Reading(Person(NOW_S - 12, "anna active on seat0"), "", "seat0", NOW_S)),
        Memory(State.COOLDOWN, NOW_S - 12, cooldown_from_s=NOW_S - 12, last_row="user-returned"),
    ),
}  # fmt: skip


def answer(state: State, **changes: Any) -> dict[str, Any]:
    """The daemon's answer to `status`."""
    observation, memory = SEEN[state]
    seen_by = [("seat0", state is State.IDLE_WAIT), ("ttys", False), ("ssh", False)]
    running = state is State.RUNNING
    task = {"id": ID, "type": "render", "phase": "running"} if running else None
    use = {
        "memory_gb": 1.25, "max_memory_gb": 8.0, "vram_gb": 3.5, "max_vram_gb": 14.0, "disk_gb": 0.01, "max_disk_gb": 20.0,
        "processes": 4, "max_processes": None, "mean_gpu_percent": 71.0, "gpu_percent": 80.0, "max_gpu_percent": 90.0,
        "frozen": False,
    }  # fmt: skip
    paused = state is State.DISABLED
    last = {"id": ID, "type": "render", "ending": "handed_back", "reason": "the person came back", "at": at(1500)}
    given = {
        "state": state, "since": at(NOW_S - memory.since_s), "reason": reason(observation, memory, LIMITS),
        "cause": cause(observation, memory, LIMITS), "next": next_step(observation, memory, LIMITS), "last": last,
        "guards": [v.as_dict() for v in verdicts(observation, memory, LIMITS)],
        "blocked_by": [v.name for v in blocked_by(observation, memory, LIMITS)],
        "unblock": unblock(observation, memory, LIMITS), "status": status_text(observation, memory, LIMITS), "task": task,
        "task_usage": use if running else None, "paused_until": at(-7200) if paused else None,
        "source": {
            "kind": "rae", "url": "https://control.example.org", "link": "up", "since": at(10_800), "reason": "",
            "next_try_s": None, "dialect": "C", "outbox": 0, "lost_polls": 0, "lost_poll_at": None, "error": "",
            "error_at": None,
        },
        "version": "0.1.0", "contradictions": [], "inhibitor": "held" if running else "not held", "notes": [],
        "presence": [
            {"source": name, "present": there, "line": f"{'anna active' if there else 'nobody'}", "details": []}
            for name, there in seen_by
        ],
        "recent": [{"time": at(1500 - n), "text": text} for n, text in enumerate((
            "RUNNING → COOLDOWN: user-returned (render 5e29f042…): anna active on seat0", "hand-back done in 1 ms",
            "COOLDOWN → IDLE_WAIT: cooled-down",
        ))],
    }  # fmt: skip
    return given | changes

