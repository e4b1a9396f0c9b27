"""The HTTP source with short times, at a server of `support.rae_server`, its events recorded."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from support.rae_server import RaeServer, until

from states.observation import Link
from supervisor.clock import SystemClock
from supervisor.settings import Control
from supervisor.sources.base import Claim
from supervisor.sources.link import end
from supervisor.sources.rae_http import RaeHttp

NODE_ID = "node-1"


class Rig:
    """A source under test."""

    def __init__(self, source: RaeHttp, events: list[dict[str, Any]], state_dir: Path) -> None:
        self.source = source
        self.events = events
        self.state_dir = state_dir

    def names(self) -> list[str]:
        """The events so far."""
        return [event["event"] for event in self.events]

    async def up(self) -> None:
        """Wait for the link."""
        await until(lambda: self.source.status.link is Link.UP, "link up")

    async def down(self) -> str:
        """Wait until the link has been down; why."""
        await until(lambda: "down" in self.names()[1:], "link down")
        return next(str(event["reason"]) for event in self.events[1:] if event["event"] == "down")

    async def poll(self) -> Claim | None:
        """Ask until one poll has been answered; what it brought."""
        await until(self.source.ask, "a poll is started")
        await until(lambda: not self.source.asking, "the poll is over")
        return self.source.take()

    async def claim(self) -> Claim:
        """A claim; there must be one."""
        claim = await self.poll()
        assert claim is not None
        return claim

    async def delivered(self) -> None:
        """Wait until the outbox is empty."""
        await until(lambda: self.source.status.outbox == 0, "outbox empty")

    @property
    def note(self) -> list[dict[str, Any]]:
        """The note on disk."""
        path = self.state_dir / "task.json"
        return list(json.loads(path.read_text())["tasks"]) if path.exists() else []


@contextlib.asynccontextmanager
async def running(
    server: RaeServer | str,
    state_dir: Path,
    *,
    stop_s: float | None = 2.0,
    retry: bool = True,
    token: str | None = None,
    heartbeat_s: float = 30.0,
    on_preempt: Callable[[str], str] = lambda kind: "resubmit",
    node_id: str = NODE_ID,
    capabilities: dict[str, Any] | None = None,
    **control: Any,
) -> AsyncIterator[Rig]:
    """A started source. `stop_s` None: it ends as by a power cut, with nothing said and nothing delivered."""
    url = server if isinstance(server, str) else server.url
    times = {"connect_timeout_sec": 2, "read_timeout_sec": 0.5, "total_timeout_sec": 1, "backoff_max_sec": 0.02}
    times["max_requests_per_sec"] = 1000
    settings = Control(**{"url": url, **times, **control})
    events: list[dict[str, Any]] = []
    source = RaeHttp(
        settings,
        node_id=node_id,
        clock=SystemClock(),
        state_dir=state_dir,
        heartbeat_interval_s=heartbeat_s,
        retry_on_disconnect=retry,
        capabilities=capabilities or {"gpu": True},
        on_event=lambda kind, fields: events.append({"kind": kind, **fields}),
        token=token,
        on_preempt=on_preempt,
    )
    await source.start(lambda: None)
    try:
        yield Rig(source, events, state_dir)
    finally:
        if stop_s is None:
            await end(*source._work)
        else:
            await source.stop(stop_s)
