"""The first three lines of `status`, `why` and `top`: what the node does and why, what comes next, what it did last.

On a terminal a plain word stands before the state's name, and colours help; a script gets the line that systemd shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from states.formatting import elapsed

PLAIN: Final[Mapping[str, str]] = {
    "DISABLED": "OFF (DISABLED)", "IDLE_WAIT": "WAITING (IDLE_WAIT)", "READY": "READY", "RUNNING": "WORKING (RUNNING)",
    "COOLDOWN": "RESTING (COOLDOWN)",
}  # fmt: skip
# No state is an alarm: a waiting node is normal.
COLOURS: Final[Mapping[str, str]] = {
    "DISABLED": "bright_black", "IDLE_WAIT": "yellow", "READY": "cyan", "RUNNING": "green", "COOLDOWN": "blue",
}  # fmt: skip
ENDINGS: Final[Mapping[str, str]] = {
    "succeeded": "done", "failed": "failed", "timed_out": "stopped at its time limit", "handed_back": "handed back",
}  # fmt: skip
# What matters in each state beside what blocks: with a task, what could end it.
SAFE: Final = ("user_away", "gpu_free", "cpu_free", "host_fit")
MARK: Final = {True: "ok", False: "no", None: "??"}


def headline(answer: Mapping[str, Any], wall_s: float, *, plain: bool) -> list[str]:
    """Three lines. `plain`: for a script; `wall_s`: now, in seconds since the epoch."""
    state = answer["state"]
    lasts = ago(answer["since"], wall_s)
    first = answer["status"] if plain else f"{PLAIN.get(state, state)}{f' for {lasts}' if lasts else ''}: {answer['cause']}"
    return [first, f"Next: {answer['next']}", f"Last: {_last(answer['last'], wall_s)}"]


def style_of(first: str) -> str:
    """How a first line is drawn."""
    shown = next((state for state in COLOURS if f"({state})" in first or first.startswith(state)), "")
    return f"bold {COLOURS.get(shown, '')}".strip()


def _last(last: Mapping[str, str] | None, wall_s: float) -> str:
    if last is None:
        return "no task since the start"
    text = f"{last['type']} {ENDINGS.get(last['ending'], last['ending'])} {clock(last['at'], wall_s)}"
    return text + (f", {last['reason']}" if last["reason"] else "")


def shown_guards(answer: Mapping[str, Any], *, every: bool) -> list[Mapping[str, Any]]:
    """The guards that matter now: what blocks, and with a task what could end it; all with `every`."""
    blocking = set(answer["blocked_by"])
    running = answer["state"] == "RUNNING"
    return [
        guard for guard in answer["guards"] if every or guard["name"] in blocking or (running and guard["name"] in SAFE)
    ]


def ago(stamp: str, wall_s: float) -> str:
    """How long ago an ISO time is; empty where it is none."""
    then_s = _wall_s(stamp)
    return "" if then_s is None else elapsed(max(0.0, wall_s - then_s))


def clock(stamp: str, wall_s: float) -> str:
    """The time of day of an ISO time on this machine's clock, with the weekday where it is not today's."""
    import time

    if (then_s := _wall_s(stamp)) is None:
        return stamp
    then, now = time.localtime(then_s), time.localtime(wall_s)
    return time.strftime("%H:%M" if then[:3] == now[:3] else "%a %H:%M", then)


def _wall_s(stamp: str) -> float | None:
    from datetime import datetime

    try:
        return datetime.fromisoformat(stamp).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
