"""`rae-node pause` and `rae-node resume`."""

from __future__ import annotations

import re
import time
from typing import Annotated, Final

import typer

from supervisor.cli.common import ConfigOption, Exit, ask_daemon, exit_with, values

_DURATION: Final = re.compile("".join(rf"(?:(\d+(?:\.\d+)?){unit})?" for unit in "dhms"))
_UNITS_S: Final = (86400, 3600, 60, 1)
CLOCK: Final = r"(\d{1,2})(?::(\d{2}))? ?(am|pm)?"
MORNING: Final = 8  # when `tomorrow` begins
EXAMPLES: Final = ("30m", "2h", "1d", "until 18:00", "until tomorrow", "7am")


def pause(
    how_long: Annotated[list[str] | None, typer.Argument(
        metavar="[2h | until 18:00]", help="Default: until `resume`.", autocompletion=values(*EXAMPLES)
    )] = None,
    after_task: Annotated[
        bool, typer.Option("--after-task", help="Let the current task finish first; take no other.")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Lend nothing for a while.

    A running task is handed back at once. With --after-task it may finish, unless the person comes back before. A pause
    survives restarts; `rae-node status` shows its end.

    Examples: `rae-node pause`, `rae-node pause 2h`, `pause 1d`, `pause until 18:00`, `pause until 7am`, `pause until tomorrow`
    (8 in the morning), `pause --after-task`.

    For root, the node's user and members of its group. The person at the machine may pause too, and end their own pause.

    Exit codes: 0 done. 1 refused. 2 wrong usage. 3 the daemon is not running. 4 it does not answer, or is another version.
    """
    more = {"after_task": True} if after_task else {}
    answer = ask_daemon(config, "pause", **end_of(" ".join(how_long or []), time.time()), **more)
    print(answer["status"])


def resume(config: ConfigOption = None) -> None:
    """End a pause.

    Also tries the control node again at once, even if it was given up (execution.retry_on_disconnect: false) or asked the
    node to wait. For root, the node's user and members of its group; who sits at this machine ends their own pause.

    Exit codes: 0 done. 1 refused. 3 the daemon is not running. 4 it does not answer, or is another version.
    """
    print(ask_daemon(config, "resume")["status"])


def end_of(text: str, now: float) -> dict[str, float | None]:
    """The end as the daemon is asked for it: `until` a time in seconds since the epoch (None: no end), or `for_s` seconds. A
    time of day that has passed is tomorrow's."""
    from supervisor.daemon.automation import LONGEST_S, YEAR_S

    if not text:
        return {"until": None}
    moment = text.removeprefix("until ").strip()
    if moment == "tomorrow":
        return {"until": _day_s(now, 1, MORNING, 0)}
    clock = re.fullmatch(CLOCK, moment)
    if clock and (clock[2] or clock[3] or moment != text) and (end := clock_s(clock, now)) is not None:
        return {"until": end}
    span_s = length_s(text)
    if span_s is not None and span_s < LONGEST_S:
        return {"for_s": span_s}
    allowed = f"a duration such as 2h, 90m or 1d, below {LONGEST_S / YEAR_S:g} years, or `until` 18:00, 7am or tomorrow"
    return exit_with(Exit.WRONG, f"pause: found {text!r}, allowed: {allowed}")


def length_s(text: str) -> float | None:
    """The seconds of a duration such as 1h30m; None: it is none."""
    span = _DURATION.fullmatch(text)
    if span is None or not any(span.groups()):
        return None
    length = sum(float(part or 0) * unit_s for part, unit_s in zip(span.groups(), _UNITS_S, strict=True))
    return length if length > 0 else None


def clock_s(clock: re.Match[str], now: float, days: tuple[int, int] = (0, 1), *, later: bool = True) -> float | None:
    """The next such time of day after `now` (not `later`: the last before), in seconds since the epoch; None: there is none."""
    hour, minute, half = int(clock[1]), int(clock[2] or 0), clock[3]
    if half:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if half == "pm" else 0)
    if hour > 23 or minute > 59:
        return None
    moments = (_day_s(now, day, hour, minute) for day in days)
    return next((moment for moment in moments if (moment > now) is later), None)


def _day_s(now: float, day: int, hour: int, minute: int) -> float:
    local = time.localtime(now)
    return time.mktime((local.tm_year, local.tm_mon, local.tm_mday + day, hour, minute, 0, 0, 0, -1))
