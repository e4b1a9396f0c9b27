"""The text of a journal line for people: the terminal, the text log, journald, `rae-node top`.

Always one line: text from others in a reason (a control node's answer, a task's id) cannot begin a second one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from supervisor.linux.text import one_line

LONGEST: Final = 1000


def summary(kind: str, fields: Mapping[str, Any]) -> str:
    """The text of the line; empty where people need none."""
    indent = "  " if kind == "effect" else ""  # effects stand under their decision
    return indent + one_line(_text_of(kind, fields), LONGEST)


def _text_of(kind: str, fields: Mapping[str, Any]) -> str:
    match kind:
        case "start":
            return f"rae-node {fields['version']} has started"
        case "decision":
            row = fields["row"] or "no row"
            move = fields["from"] if fields["from"] == fields["to"] else f"{fields['from']} → {fields['to']}"
            return _because(f"{move}: {row}" + _about(fields["task"] or {}, "({})"), fields["reason"])
        case "effect":
            mark = "done" if fields["ok"] else "FAILED"
            return _because(f"{fields['effect']} {mark} in {fields['took_s'] * 1000:.0f} ms", fields["detail"])
        case "config":
            return f"configuration refused: {fields['problem']}" if "problem" in fields else ""
        case "link":
            event = str(fields["event"])
            where = fields.get("url", "") if event in ("up", "down", "lost") else ""
            task = {"type": fields.get("type"), "id": fields.get("task")}
            as_new = f" as {_short(fields['new_task'])}" if "new_task" in fields else ""
            failed = " (failed)" if fields.get("error") else ""
            text = f"link: {event}" + (f" {where}" if where else "") + _about(task, "{}") + as_new + failed
            return _because(text, fields.get("reason", ""))
        case "operator":
            until = f" until {fields['until']}" if fields.get("until") and fields["until"] != "until resumed" else ""
            return _because(f"operator: {fields['word']}{until}", fields.get("trouble", ""))
        case "alive":
            return f"presence: {fields['presence']}" if "presence" in fields else str(fields.get("note", ""))
        case "stop":
            return _because("stopped", fields["reason"])
    return ""


def _because(text: str, reason: str) -> str:
    return f"{text}: {reason}" if reason else text


def _about(task: Mapping[str, Any], form: str) -> str:
    text = " ".join(filter(None, (task.get("type"), _short(task.get("id")))))
    return " " + form.format(text) if text else ""


def _short(task_id: str | None) -> str:
    """Enough of an id to tell tasks apart; the file has it whole."""
    return f"{task_id[:8]}…" if task_id and len(task_id) > 12 else task_id or ""
