"""`rae-node status`."""

from __future__ import annotations

from typing import Any

from supervisor.cli.common import ConfigOption, JsonOption, ask_daemon, document

KEYS = ("state", "since", "reason", "guards", "task", "paused_until", "source", "version")
MARK = {True: "ok", False: "no", None: "??"}


def status(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Say how the node is now.

    State, reason and time to go, guards, task, control node. `rae-node why` tells more about what keeps it from working.

    Exit 3: the daemon is not running. Exit 4: it does not answer, or is another version.
    """
    answer = ask_daemon(config, "status")
    if json:
        document({key: value for key, value in answer.items() if key not in ("v", "ok")})
        return
    print(answer["status"])
    print(f"since {answer['since']}")
    print()
    for guard in answer["guards"]:
        print(f"  {MARK[guard['ok']]}  {guard['name']:<14} {guard['reason']}")
    print()
    for name, text in _rest(answer):
        print(f"{name:<13} {text}")


def _rest(answer: dict[str, Any]) -> list[tuple[str, str]]:
    task, source = answer["task"], answer["source"]
    lines = [("task", f"{task['type']} {task['id']}, {task['phase']}" if task else "none")]
    link = f"{source['url']}: {source['link']} since {source['since']}"
    if source["reason"]:
        link += f", {source['reason']}"
    if source["next_try_s"] is not None:
        link += f", next try in {source['next_try_s']:g} s"
    lines.append(("control node", link))
    if source["outbox"]:
        lines.append(("to deliver", f"{source['outbox']} outcomes"))
    if answer["paused_until"]:
        lines.append(("paused", answer["paused_until"]))
    lines.append(("inhibitor", answer["inhibitor"]))
    lines += [("note", note) for note in answer["notes"]]
    lines.append(("version", answer["version"]))
    return lines
