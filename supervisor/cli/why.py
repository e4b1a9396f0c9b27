"""`rae-node why`."""

from __future__ import annotations

from typing import Any

from supervisor.cli.common import ConfigOption, JsonOption, ask_daemon, print_json, print_lines
from supervisor.cli.status import MARK, lost_polls

# Values of an ok guard that its reason already shows.
_SELF_EVIDENT = (True, "none", "ended", "failed", "gone", "claimed", None)
# Somebody is present, nobody is, or the source cannot say.
PRESENT = {True: "no", False: "ok", None: "??"}


def why(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Say why the node does not work now.

    For each guard: reading, limit, source, time to wait. Then the signs of the person by source, and what would unblock
    the node.

    Exit codes: 0 answered. 3 the daemon is not running. 4 it does not answer, or is another version.
    """
    answer = ask_daemon(config, "status")
    if json:
        keys = ("state", "reason", "guards", "blocked_by", "unblock", "presence", "contradictions")
        print_json({key: answer[key] for key in keys})
        return
    lines = [answer["status"], ""]
    blocked = set(answer["blocked_by"])
    for guard in answer["guards"]:
        lines.append(f"{'>' if guard['name'] in blocked else ' '} {MARK[guard['ok']]}  {guard['name']:<14} {guard['reason']}")
        if not (guard["ok"] and guard["value"] in _SELF_EVIDENT) and (details := _details(guard)):
            lines.append(f"       {'':<14} {details}")
    lines += ["", "Signs of the person, by source:"]
    for source in answer["presence"]:
        lines.append(f"  {PRESENT[source['present']]}  {source['source']:<14} {source['line']}")
        lines += [f"       {'':<14} {detail}" for detail in source["details"]]
    lines += [f"      {text}" for text in answer["contradictions"]]
    if not answer["presence"]:
        lines.append("  only root, the node's user and members of its group may see them")
    if answer["source"]["lost_polls"]:
        lines += ["", f"Lost polls: {lost_polls(answer['source'])}"]
    print_lines([*lines, "", f"To unblock it: {answer['unblock']}"])


def _details(guard: dict[str, Any]) -> str:
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
