"""What a node tells a fleet of itself, and reading it back. Nothing of its person but that somebody is there (R16)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from supervisor import VERSION
from supervisor.linux.clock import iso
from supervisor.linux.text import one_line

# What each guard waits for, in words for those who are not at that machine.
WORDS: Final[Mapping[str, str]] = {
    "automation_on": "switched off there",
    "user_away": "in use by its person",
    "gpu_free": "its GPU is in use",
    "cpu_free": "its CPU is in use",
    "host_fit": "the machine is not fit to work now",
    "task_gone": "the last task is not gone yet",
    "cooldown_over": "rests after work",
}
COUNTS: Final = frozenset({"done", "failed", "handed_back", "second"})
MAX_CHARS: Final = 300
FIELDS: Final = ("node", "availability", "state", "reason", "since", "done", "failed", "handed_back", "second", "types",
                 "version", "time")


def entry(known: Mapping[str, Any], described: Mapping[str, Any], wall_s: float) -> bytes:
    """A node's entry. `described`: state, since, blocked_by, from the daemon."""
    waits_for = described.get("blocked_by", ())
    told = {
        **known,
        "state": str(described.get("state", "")),
        "since": str(described.get("since", "")),
        "reason": ", ".join(WORDS.get(name, name) for name in waits_for),
        "version": VERSION,
        "time": iso(wall_s),
    }
    return json.dumps(told, separators=(",", ":")).encode()


def read(entries: Iterable[bytes]) -> list[dict[str, Any]]:
    """Entries as every reader gets them: these keys, sorted by node; what is no entry is left out, what is not as it should
    be is empty: each node writes its own."""
    nodes = []
    for data in entries:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and isinstance(value.get("node"), str):
            nodes.append({name: _sound(name, value.get(name)) for name in FIELDS})
    return sorted(nodes, key=lambda node: str(node["node"]))


def _sound(name: str, value: Any) -> Any:
    if name in COUNTS:
        return value if type(value) is int and 0 <= value < 1 << 53 else 0
    if name == "types":
        return [_sound("", one) for one in value if isinstance(one, str)] if isinstance(value, list) else []
    return one_line(value, MAX_CHARS) if isinstance(value, str) else ""
