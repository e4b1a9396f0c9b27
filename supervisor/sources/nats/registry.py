"""A node's entry in the fleet's registry, written and read. About its user it says only that the machine is in use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from supervisor import VERSION
from supervisor.linux.clock import iso
from supervisor.linux.text import one_line
from supervisor.sources.sanitize import decode, encode

# What each guard waits for, for people who are not at that machine.
REASONS: Final[Mapping[str, str]] = {
    "automation_on": "switched off there",
    "user_away": "in use by its person",
    "gpu_free": "its GPU is in use",
    "cpu_free": "its CPU is in use",
    "host_fit": "the machine is not fit to work now",
    "task_gone": "the last task is not gone yet",
    "cooldown_over": "rests after work",
}
BRIDGE: Final = "BRIDGE"  # the state of a bridge, which has an entry beside those of the nodes
COUNTS: Final = frozenset({"done", "failed", "handed_back", "second", "lost_polls"})
PAUSERS: Final = frozenset({"person", "operator"})  # who may have paused a node, in its entry
MAX_CHARS: Final = 300
FIELDS: Final = ("node", "availability", "state", "reason", "since", "done", "failed", "handed_back", "second", "lost_polls",
                 "paused_by", "paused_until", "types", "version", "time")


def entry(known: Mapping[str, Any], described: Mapping[str, Any], wall_s: float, reason: str = "") -> bytes:
    """A node's entry. `described`: see SourceEvents. `reason` is one of a bridge's."""
    return encode({
        **known,
        "state": str(described.get("state", "")),
        "since": str(described.get("since", "")),
        "reason": reason or ", ".join(REASONS.get(name, name) for name in described.get("blocked_by", ())),
        "paused_by": str(described.get("paused_by", "")),
        "paused_until": str(described.get("paused_until", "")),
        "version": VERSION,
        "time": iso(wall_s),
    })


def read(entries: Iterable[bytes]) -> list[dict[str, Any]]:
    """The entries, sorted by node, each with all FIELDS.

    Each node writes its own entry, so nothing in it is trusted: what is not an entry is left out, a bad value becomes empty.
    """
    nodes = []
    for data in entries:
        try:
            value = decode(data)
        except ValueError:
            continue
        if isinstance(value, dict) and isinstance(value.get("node"), str):
            nodes.append({name: _checked(name, value.get(name)) for name in FIELDS})
    return sorted(nodes, key=lambda node: str(node["node"]))


def _checked(name: str, value: Any) -> Any:
    if name in COUNTS:
        return value if type(value) is int and 0 <= value < 1 << 53 else 0
    if name == "types":
        return [_checked("", one) for one in value if isinstance(one, str)] if isinstance(value, list) else []
    return one_line(value, MAX_CHARS) if isinstance(value, str) else ""
