"""`rae-node pause` and `rae-node resume`."""

from __future__ import annotations

import re
import time
from typing import Annotated

import typer

from supervisor.cli.common import ConfigOption, Exit, ask_daemon, exit_with

_DURATION = re.compile(r"^(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?$")


def pause(
    how_long: Annotated[list[str] | None, typer.Argument(metavar="[2h | until 18:00]", help="Default: until `resume`.")] = None,
    after_task: Annotated[
        bool, typer.Option("--after-task", help="Let the current task finish first; take no other.")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Lend nothing for a while.

    A running task is handed back at once. With --after-task it may finish, unless the person comes back before. A pause
    survives restarts; `rae-node status` shows its end.

    Examples: `rae-node pause`, `rae-node pause 2h`, `rae-node pause until 18:00`, `rae-node pause --after-task`.

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
    if clock := re.fullmatch(r"until (\d{1,2}):(\d{2})", text):
        hour, minute = int(clock[1]), int(clock[2])
        if hour < 24 and minute < 60:
            local = time.localtime(now)
            for day in (0, 1):
                fields = (local.tm_year, local.tm_mon, local.tm_mday + day, hour, minute, 0, 0, 0, -1)
                if (end := time.mktime(fields)) > now:
                    return {"until": end}
    elif (span := _DURATION.fullmatch(text)) and any(span.groups()):
        hours, minutes, seconds = (float(part or 0) for part in span.groups())
        if 0 < (length := hours * 3600 + minutes * 60 + seconds) < LONGEST_S:
            return {"for_s": length}
    allowed = f"a duration such as 2h, 90m or 1h30m, below {LONGEST_S / YEAR_S:g} years, or `until HH:MM`"
    return exit_with(Exit.WRONG, f"pause: found {text!r}, allowed: {allowed}")
