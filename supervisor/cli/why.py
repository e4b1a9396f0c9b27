"""`rae-node why`."""

from __future__ import annotations

from typing import Any

from supervisor.cli.common import ConfigOption, JsonOption, ask_daemon, document
from supervisor.cli.status import MARK

# Somebody is there, nobody is, or the source cannot tell.
PRESENT = {True: "no", False: "ok", None: "??"}


def why(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Say why the node does not work now.

    Guard by guard: reading, limit, source, time still to wait; and the one thing that would unblock it.

    Exit 3: the daemon is not running. Exit 4: it does not answer, or is another version.
    """
    answer = ask_daemon(config, "status")
    if json:
        keys = ("state", "reason", "guards", "blocked_by", "unblock", "presence", "contradictions")
        document({key: answer[key] for key in keys})
        return
    print(answer["status"])
    print()
    blocked = set(answer["blocked_by"])
    for guard in answer["guards"]:
        print(f"{'>' if guard['name'] in blocked else ' '} {MARK[guard['ok']]}  {guard['name']:<14} {guard['reason']}")
        if details := _details(guard):
            print(f"       {'':<14} {details}")
    print()
    print("Signs of the person, by source:")
    for source in answer["presence"]:
        print(f"  {PRESENT[source['present']]}  {source['source']:<14} {source['line']}")
        for detail in source["details"]:
            print(f"       {'':<14} {detail}")
    for text in answer["contradictions"]:
        print(f"      {text}")
    print()
    print(f"To unblock it: {answer['unblock']}")


def _details(guard: dict[str, Any]) -> str:
    from states.words import duration, number

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
