"""A fleet at one look: its nodes by what they tell of themselves, and its tasks."""

from __future__ import annotations

from typing import Any

from supervisor.fleet import layout, registry
from supervisor.fleet.wire import Wire


async def overview(wire: Wire) -> dict[str, Any]:
    """`nodes` (see registry.FIELDS) and `tasks` (waiting, running, results, dead).

    Raises:
        Trouble: the servers do not answer.
    """
    nodes = registry.read(await wire.everything(layout.NODES_STREAM))
    queue = (await wire.api(f"STREAM.INFO.{layout.TASKS}"))["state"]["messages"]
    running = (await wire.api(f"CONSUMER.INFO.{layout.TASKS}.{layout.CONSUMER}"))["num_ack_pending"]
    tasks = {"waiting": max(0, queue - running), "running": running}
    for name, stream in (("results", layout.RESULTS), ("dead", layout.DEAD)):
        tasks[name] = (await wire.api(f"STREAM.INFO.{stream}"))["state"]["messages"]
    return {"nodes": nodes, "tasks": tasks}


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
