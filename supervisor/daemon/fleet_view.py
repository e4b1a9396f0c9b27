"""What a node answers its fleet's operator: why it does not work, and its last decisions.

Of its person it says only that they are there. Texts about the person and about what uses the GPU name users and programs,
so they stay here; words for everybody, and figures, take their place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from states.formatting import number
from states.guards import SAFE, Verdict, automation_on, gpu_free, user_away
from supervisor.journal.decision_log import tail
from supervisor.journal.summary import summary
from supervisor.linux.text import one_line
from supervisor.sources.nats.registry import REASONS

PRIVATE: Final = frozenset({user_away.name, gpu_free.name})
BLOCKING: Final = frozenset(guard.name for guard in (automation_on, *SAFE))
MAX_TEXT: Final = 300
TAIL_BYTES: Final = 512 * 1024  # of one day; a node at work writes some 100 lines a task


def guard_for_fleet(verdict: Verdict, *, of_its_person: bool) -> dict[str, Any]:
    """A guard with `text`: its reading. `of_its_person`: the node's person has paused it."""
    private = verdict.name in PRIVATE or (verdict.name == automation_on.name and of_its_person)
    text = _reading(verdict) if private else verdict.reason
    return {"name": verdict.name, "ok": verdict.ok, "text": one_line(text, MAX_TEXT), "wait_s": verdict.as_dict()["wait_s"]}


def _reading(verdict: Verdict) -> str:
    """What stands in place of a private text."""
    if verdict.ok is None:
        return "cannot be told: `rae-node why` at that machine says more"
    general = "" if verdict.ok else REASONS[verdict.name]
    value, limit = verdict.value, verdict.limit
    if verdict.name != gpu_free.name or not isinstance(value, float | int) or not isinstance(limit, float | int):
        return general
    figures = f"{number(value)} {verdict.unit}" + (f", limit {number(limit)} {verdict.unit}" if limit else "")
    return f"{general}: {figures}" if general else figures


def log_for_fleet(folder: Path, lines: int) -> list[dict[str, str]]:
    """The last `lines` lines of the journal in `folder` that an operator may see, oldest first: `time`, `text`. Blocks.

    Raises:
        OSError: the journal cannot be read.
    """
    found: list[dict[str, str]] = []
    for entry in tail(folder, TAIL_BYTES):
        text = _line(entry)
        if text:
            found.append({"time": str(entry.get("time", "")), "text": text})
            if len(found) >= lines:
                break
    return found[::-1]


def _line(entry: Mapping[str, Any]) -> str:
    """The line of the journal for an operator; empty where it has nothing for them."""
    kind = str(entry["kind"])
    try:
        if kind == "decision":
            entry = {**entry, "reason": _cause(entry["guards"]) if entry["reason"] else ""}
        elif kind == "effect":
            if entry["ok"] and "ending" not in entry:
                return ""
        elif kind == "alive":  # contradictions name sessions
            return ""
        return one_line(summary(kind, entry), MAX_TEXT)
    except (KeyError, TypeError, ValueError, AttributeError):
        return ""  # not of the form that this version writes


def _cause(guards: Sequence[Mapping[str, Any]]) -> str:
    """What blocked when this was decided."""
    for guard in guards:
        if guard["ok"] is not True and guard["name"] in BLOCKING:
            named = guard["name"] in PRIVATE or guard["name"] == automation_on.name
            return REASONS[guard["name"]] if named else str(guard["reason"])
    return ""
