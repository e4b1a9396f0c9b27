"""A fleet at one look: its nodes by their entries in the registry, and its tasks."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from states.formatting import duration, elapsed
from supervisor.linux.text import one_line
from supervisor.sources.errors import RequestError
from supervisor.sources.nats import registry, subjects
from supervisor.sources.nats.connection import Connection

MAX_STATE: Final = 9
MIN_NAME: Final = 8
OTHERS: Final = 56  # columns that all but the name get, with a few for the reason


async def overview(connection: Connection) -> dict[str, Any]:
    """`nodes` (see registry.FIELDS) and `tasks` (waiting, running, results, dead). Raises RequestError."""
    nodes = registry.read(await connection.last_of_each(subjects.NODES_STREAM))
    try:
        running = await _running(connection)
        queue, results, dead = [
            int((await connection.api(f"STREAM.INFO.{stream}"))["state"]["messages"])
            for stream in (subjects.TASKS, subjects.RESULTS, subjects.DEAD)
        ]
    except (KeyError, TypeError, ValueError):
        raise RequestError(f"{connection.url} describes its streams in an unknown form") from None
    return {"nodes": nodes, "tasks": {"waiting": max(0, queue - running), "running": running, "results": results, "dead": dead}}


async def _running(connection: Connection) -> int:
    """Tasks that a node has now, by all consumers: a fleet of unlike nodes has one for each kind."""
    running = seen = 0
    while True:
        page = await connection.api(f"CONSUMER.LIST.{subjects.TASKS}", {"offset": seen})
        found = page["consumers"] or []
        running += sum(int(one["num_ack_pending"]) for one in found)
        seen += len(found)
        if not found or seen >= page["total"]:
            return running


def screen(seen: dict[str, Any], wall_s: float, width: int | None = None, height: int | None = None) -> list[str]:
    """The overview in lines, one a node; none is wider than `width`. Of more nodes than `height` has room for, those that wait
    for something or are paused come first, and the others are a number. Times are relative to `wall_s`."""
    rows: list[tuple[str, ...]] = [("NODE", "STATE", "FOR", "DONE", "FAILED", "BACK", "LOST", "WHY")]
    shown_nodes = list(seen["nodes"])
    if height is not None and len(shown_nodes) > (room := max(1, height - 5)):
        shown_nodes = sorted(shown_nodes, key=lambda node: (not node["reason"] and not node["paused_by"], node["node"]))[:room]
    for node in shown_nodes:
        state = node["state"] or node["availability"]
        shown = "OFFLINE" if node["availability"] == "OFFLINE" else state
        name = node["node"] if width is None else one_line(node["node"], max(MIN_NAME, width - OTHERS))
        counts = (str(node[count]) for count in ("done", "failed", "handed_back", "lost_polls"))
        rows.append((name, one_line(shown, MAX_STATE), since(node["since"], wall_s), *counts, _why(node, wall_s)))
    widths = [max(len(row[n]) for row in rows) for n in range(7)]
    lines = [" ".join([*(f"{row[n]:<{widths[n]}}" for n in range(7)), row[7]]).rstrip() for row in rows]
    tasks = seen["tasks"]
    summary = ", ".join(f"{tasks[name]} {name}" for name in ("waiting", "running", "results", "dead"))
    nodes = sum(node["state"] != registry.BRIDGE for node in seen["nodes"])
    left_out = len(seen["nodes"]) - len(shown_nodes)
    lines += [f"… and {left_out} more"] * bool(left_out) + ["", f"{nodes} nodes; tasks: {summary}"]
    return lines if width is None else [line if len(line) <= width else line[: width - 1] + "…" for line in lines]


def _why(node: Mapping[str, Any], wall_s: float) -> str:
    """What a node waits for. Of a pause: whose it is, and how long it lasts yet."""
    return paused(node, wall_s) or str(node["reason"])


def paused(node: Mapping[str, Any], wall_s: float) -> str:
    """Whose the pause of a node is, and how long it lasts yet; empty without one."""
    if node["paused_by"] not in registry.PAUSERS:
        return ""
    end_s = _wall_s(node["paused_until"])
    left = "" if end_s is None else f", {duration(max(0.0, end_s - wall_s))} to go"
    return f"paused by its {node['paused_by']}{left}"


def since(time: str, wall_s: float) -> str:
    """How long ago a node's time stamp is; empty when it is none."""
    start_s = _wall_s(time)
    return "" if start_s is None else elapsed(max(0.0, wall_s - start_s))


def _wall_s(time: str) -> float | None:
    """A node's time stamp, in seconds since the epoch; None: it is none."""
    try:
        return datetime.fromisoformat(time).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
