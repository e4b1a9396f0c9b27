"""A fleet at one look: its nodes by their entries in the registry, and its tasks."""

from __future__ import annotations

from typing import Any

from supervisor.sources.errors import RequestError
from supervisor.sources.nats import registry, subjects
from supervisor.sources.nats.connection import Connection


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
    nodes = sum(node["state"] != registry.BRIDGE for node in seen["nodes"])
    return [*lines, "", f"{nodes} nodes; tasks: {summary}"]
