"""The HTTP source with short times, at a server of `support.rae_server`, its events recorded."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from support.clock import MadeLoop, ManualClock
from support.constants import constants, split
from support.rae_server import RaeServer, until
from support.recorded_events import Recorded

from states.observation import Link
from supervisor.config.schema import Control, Token
from supervisor.linux.bounded import end
from supervisor.linux.clock import SystemClock
from supervisor.sources.base import Claim, SourceSettings
from supervisor.sources.rae.source import RaeSource

NODE_ID = "node-1"
# a machine that is busy is not silent
UNHURRIED = {"read_timeout_s": 5, "total_timeout_s": 10, "patient_s": 10, "lost_poll_first_s": 0.02}


class MadeTime(MadeLoop):
    """Made time, on both sides of the connection."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        super().__init__(self.clock, sockets=True)


def in_made_time(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test in time that passes only where nothing else happens: to the loop, the source and the server."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        with asyncio.Runner(loop_factory=MadeTime) as runner:
            runner.run(test(*args, **kwargs))  # type: ignore[arg-type]

    return run


def clock() -> Any:
    """The clock of the running test."""
    return getattr(asyncio.get_running_loop(), "clock", None) or SystemClock()


class Rig:
    """A source under test."""

    def __init__(self, source: RaeSource, events: list[dict[str, Any]], state_dir: Path) -> None:
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
    token_from: Token | None = None,
    heartbeat_s: float = 30.0,
    on_preempt: str = "resubmit",
    node_id: str = NODE_ID,
    capabilities: dict[str, Any] | None = None,
    **control: Any,
) -> AsyncIterator[Rig]:
    """A started source. `stop_s` None: it ends as by a power cut, with nothing said and nothing delivered."""
    url = server if isinstance(server, str) else server.url
    others, control = split({**UNHURRIED, "backoff_longest_s": 0.02, "max_requests_per_sec": 1000, **control})
    with constants(others):
        settings = SourceSettings(
            control=Control(**{"url": url, "token": token_from or Token(), **control}),
            node_id=node_id,
            state_dir=state_dir,
            heartbeat_interval_s=heartbeat_s,
            poll_interval_s=45.0,
            retry_on_disconnect=retry,
            on_preempt={"t": on_preempt, "kind": on_preempt},
            capabilities=capabilities or {"gpu": True},
            token=token,
        )
        events = Recorded()
        source = RaeSource(settings, clock(), events)
        await source.start(lambda: None)
        try:
            yield Rig(source, events.events, state_dir)
        finally:
            if stop_s is None:
                await end(*source._work)
            else:
                await source.stop(stop_s)


@contextlib.asynccontextmanager
async def taken_over(rig: Rig, url: str, capabilities: dict[str, Any] | None = None, **control: Any) -> AsyncIterator[Rig]:
    """The rig's source replaced by one with other settings, as the daemon does it; stopped at the end."""
    old, events = rig.source, Recorded()
    settings = replace(old._settings, control=Control(**{"url": url, **control}))
    if capabilities is not None:
        settings = replace(settings, capabilities=capabilities)
    new = RaeSource(settings, clock(), events)
    await new.take_over(old)
    await old.stop(1.0)
    await new.start(lambda: None)
    try:
        yield Rig(new, events.events, rig.state_dir)
    finally:
        await new.stop(2.0)
