"""What a source reports, recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from supervisor.sources.desired import Order


class Recorded:
    """A `SourceEvents` that keeps each event; `describe` is what a fleet is told about this node."""

    def __init__(self, describe: Callable[[], Mapping[str, Any]] = dict) -> None:
        self.events: list[dict[str, Any]] = []
        self.describe = describe
        self.orders: list[Order] = []

    async def answer(self, question: str, lines: int) -> Mapping[str, Any]:
        """What was asked."""
        return {"asked": question, "wanted": lines}

    def obey(self, order: Order) -> None:
        """See SourceEvents."""
        self.orders.append(order)

    def link_event(self, event: str, fields: Mapping[str, Any]) -> None:
        """See SourceEvents."""
        self.events.append({"event": event, **fields})
