"""`rae-node why`."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from supervisor.cli.common import AllOption, ConfigOption, JsonOption, ask_daemon, print_json, print_lines
from supervisor.cli.headline import MARK, headline, shown_guards
from supervisor.cli.status import lost_polls

# Values of an ok guard that its reason already shows.
_SELF_EVIDENT = (True, "none", "ended", "failed", "gone", "claimed", None)
# Somebody is present, nobody is, or the source cannot say.
PRESENT = {True: "no", False: "ok", None: "??"}


def why(config: ConfigOption = None, json: JsonOption = False, every: AllOption = False) -> None:
    """Say why the node does not work now.

    What it does, what comes next, what it did last. Then each guard that blocks: reading, limit, source, time to wait; and
    each source that sees the person, or cannot say. With --all every guard and source. At the end, what would unblock the
    node.

    Exit codes: 0 answered. 3 the daemon is not running. 4 it does not answer, or is another version.
    """
    answer = ask_daemon(config, "status")
    if json:
        keys = ("state", "reason", "guards", "blocked_by", "unblock", "presence", "contradictions")
        print_json({key: answer[key] for key in keys})
        return
    print_lines(screen(answer, time.time(), every=every, plain=not sys.stdout.isatty()), headed=True)


def screen(answer: Mapping[str, Any], wall_s: float, *, every: bool = False, plain: bool = False) -> list[str]:
    """The answer in lines."""
    lines = [*headline(answer, wall_s, plain=plain), ""]
    blocked = set(answer["blocked_by"])
    for guard in shown_guards(answer, every=every):
        lines.append(f"{'>' if guard['name'] in blocked else ' '} {MARK[guard['ok']]}  {guard['name']:<14} {guard['reason']}")
        if not (guard["ok"] and guard["value"] in _SELF_EVIDENT) and (details := _details(guard)):
            lines.append(f"       {'':<14} {details}")
    if not every:
        which = "the other guards do not block" if blocked else "no guard blocks"
        lines.append(f"  {which} (--all shows them)")
    lines += _signs(answer, every)
    if answer["source"]["lost_polls"]:
        lines += ["", f"Lost polls: {lost_polls(answer['source'], wall_s)}"]
    return [*lines, "", f"To unblock it: {answer['unblock']}"]


def _signs(answer: Mapping[str, Any], every: bool) -> list[str]:
    """What each source of signs of the person says. Where the person does not block, they are a number."""
    if not answer["presence"]:
        return ["", "Signs of the person: only root, the node's user and members of its group may see them"]
    away = "user_away" not in answer["blocked_by"] and answer["state"] != "RUNNING"
    quiet = [source for source in answer["presence"] if source["present"] is False]
    shown = answer["presence"] if every else [] if away else [s for s in answer["presence"] if s["present"] is not False]
    lines = ["", "Signs of the person, by source:"]
    for source in shown:
        lines.append(f"  {PRESENT[source['present']]}  {source['source']:<14} {source['line']}")
        lines += [f"       {'':<14} {detail}" for detail in source["details"]]
    if not every:
        lines.append(f"  {len(quiet)} of {len(answer['presence'])} sources see nobody (--all shows them)")
    return lines + [f"      {text}" for text in answer["contradictions"]]


def _details(guard: Mapping[str, Any]) -> str:
    from states.formatting import duration, number

    parts = []
    if isinstance(guard["value"], (int, float)) and not isinstance(guard["value"], bool):
        limit = guard["limit"]
        reading = f"reading {number(guard['value'])} {guard['unit']}".rstrip()
        parts.append(reading + (f", limit {number(limit)} {guard['unit']}".rstrip() if isinstance(limit, (int, float)) else ""))
    if guard["source"]:
        parts.append(f"source {guard['source']}")
    if guard["age_s"] is not None:
        parts.append(f"{number(guard['age_s'])} s old")
    if guard["ok"] is not True:
        wait_s = guard["wait_s"]
        parts.append("no end known" if wait_s is None else f"{duration(wait_s)} to wait")
    return ", ".join(parts)
