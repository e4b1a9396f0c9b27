"""The operator's order to a node, stored where the node reads it."""

from __future__ import annotations

from supervisor.sources.base import Availability
from supervisor.sources.desired import MAX_BYTES, BadOrder, Order, Want, read_order
from supervisor.sources.nats import registry, subjects
from supervisor.sources.nats.connection import Connection
from supervisor.sources.nats.errors import read_answer

FAR_S = 1e12  # reading what is stored: its own time does not matter


class NotSaid(Exception):
    """The order is not stored; one line says why."""


async def nodes_there(connection: Connection) -> list[str]:
    """Nodes that have an entry now. Raises RequestError when the fleet does not say."""
    nodes = registry.read(await connection.last_of_each(subjects.NODES_STREAM))
    there = (one for one in nodes if one["state"] != registry.BRIDGE and one["availability"] != Availability.OFFLINE)
    return [str(one["node"]) for one in there]


async def must_be_there(connection: Connection, node: str) -> None:
    """Raises NotSaid when no such node has an entry now, RequestError when the fleet does not say."""
    there = await nodes_there(connection)
    if node not in there:
        names = f"there are: {', '.join(there)}" if there else "there is none"
        raise NotSaid(f"no node {node} is there now; {names}")


async def place(connection: Connection, node: str, order: Order, *, takes_back: Want | None = None, away: bool = False) -> bool:
    """Store the order. Whether the node is there now; one that is not reads it when it connects. `takes_back`: what a RUN ends.

    Raises:
        NotSaid: no such node is there and `away` is not set, or there is nothing to take back.
        RequestError: the fleet does not take it.
    """
    try:
        await must_be_there(connection, node)
        there = True
    except NotSaid as absent:
        if not away:
            raise NotSaid(f"{absent}. With --away it reads this when it connects") from None
        there = False
    subject, before = subjects.desired_subject(node), None
    data = await connection.last(subjects.DESIRED_STREAM, subject)
    if data is not None and len(data) <= MAX_BYTES:
        try:
            before = read_order(data, FAR_S)
        except BadOrder:
            before = None
    if takes_back is not None and (before is None or before.want is not takes_back):
        is_off = before is not None and before.want is Want.OFF
        hint = "it is disabled: `rae-node fleet enable`" if is_off else "the fleet has nothing to take back there"
        raise NotSaid(f"{node}: {hint}")
    if before is not None and order.at <= before.at:
        order = Order(order.want, before.at + 0.001, order.by, order.until, order.after_task)
    read_answer((await connection.request(subject, order.encode())).data, "the order")
    return there
