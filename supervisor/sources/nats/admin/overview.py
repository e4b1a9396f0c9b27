"""A fleet at one look: its nodes by what they tell of themselves, and its tasks."""

from __future__ import annotations

from typing import Any

from supervisor.sources.errors import RequestError
from supervisor.sources.nats import registry
from supervisor.sources.nats import subjects as layout
from supervisor.sources.nats.connection import Connection


async def overview(wire: Connection) -> dict[str, Any]:
    """`nodes` (see registry.FIELDS) and `tasks` (waiting, running, results, dead).

    Raises:
        RequestError: the servers do not answer.
    """
    nodes = registry.read(await wire.everything(layout.NODES_STREAM))
    try:
        running = await _with_a_node(wire)
        queue, results, dead = [
            int((await wire.api(f"STREAM.INFO.{stream}"))["state"]["messages"])
            for stream in (layout.TASKS, layout.RESULTS, layout.DEAD)
        ]
    except (KeyError, TypeError, ValueError):
        raise RequestError(f"{wire.url} tells of its streams in a form that is not known") from None
    return {"nodes": nodes, "tasks": {"waiting": max(0, queue - running), "running": running, "results": results, "dead": dead}}


async def _with_a_node(wire: Connection) -> int:
    """Tasks that a node has now, by whichever consumer: a fleet of unlike nodes has one a kind."""
    running = seen = 0
    while True:
        page = await wire.api(f"CONSUMER.LIST.{layout.TASKS}", {"offset": seen})
        found = page["consumers"] or []
        running += sum(int(one["num_ack_pending"]) for one in found)
        seen += len(found)
        if not found or seen >= page["total"]:
            return running


def screen(seen: dict[str, Any]) -> list[str]:
    """The overview in lines."""
    rows = [("NODE", "STATE", "SINCE", "DONE", "FAILED", "BACK", "WHY")]
    for node in seen["nodes"]:
        state = node["state"] or node["availability"]
        shown = "OFFLINE" if node["availability"] == "OFFLINE" else state
        counts = (str(node[name]) for name in ("done", "failed", "handed_back"))
        rows.append((node["node"], shown, node["since"], *counts, node["reason"]))
    widths = [max(len(str(row[n])) for row in rows) for n in range(6)]
    lines = ["  ".join([*(f"{row[n]!s:<{widths[n]}}" for n in range(6)), str(row[6])]).rstrip() for row in rows]
    tasks = seen["tasks"]
    summary = ", ".join(f"{tasks[name]} {name}" for name in ("waiting", "running", "results", "dead"))
    return [*lines, "", f"{len(seen['nodes'])} nodes; tasks: {summary}"]
