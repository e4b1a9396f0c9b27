"""The stage of a presence source: the real sensor under the mind, a person who acts, and a bare listener.

A stage is an asynchronous context. It yields who makes one sign (and says when), what is undone before the next, and how
the source is broken. The bare listener calls `seen` for the same sign, in the same process.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from inotify_simple import INotify

from states.lifecycle import Lifecycle, blocked_by
from states.limits import Limits
from states.memory import Memory, State
from states.observation import NO_TASK, Automation, Cpu, Gpu, Host, Reading
from supervisor.config.schema import PresenceSettings
from supervisor.daemon.loop import BUSY_S
from supervisor.linux.clock import SystemClock
from supervisor.sensors.base import Presence, PresenceSensor
from supervisor.sensors.observer import Observer

CLOCK = SystemClock()
AWAY_S = 0.03  # so soon after a sign the mind is at ease again, here
REST_S = 0.1  # people rest for longer than the pause that an agent makes after a report
SETTINGS = PresenceSettings()

Deed = Callable[[], Awaitable[None]]


class Seen:
    """When the bare listener knew, by time.perf_counter."""

    def __init__(self) -> None:
        self.at: float | None = None

    def __call__(self) -> None:
        if self.at is None:
            self.at = time.perf_counter()


class Decider:
    """The mind in READY over real sensors; `decided_at` is set when a look after a wake leaves READY."""

    def __init__(
        self,
        presence: Sequence[PresenceSensor],
        gpu: Callable[[float], Reading[Gpu]] | None = None,
        away_s: float = AWAY_S,
    ) -> None:
        def ok(value: Any) -> Callable[[float], Reading[Any]]:
            return lambda now_s: Reading(value, "", "bench", now_s)

        self.observer = Observer(presence, gpu or ok(Gpu(4, 1)), ok(Cpu(5)), ok(Host()))
        self.limits = Limits(idle_required_s=away_s)
        self.lifecycle = Lifecycle(self.limits, memory=Memory(state=State.READY))
        self.decided_at: float | None = None
        self.reason = ""

    def wake(self) -> None:
        """As the loop does: the look follows in the loop's next turn."""
        asyncio.get_running_loop().call_soon(self.look)

    def look(self) -> bool:
        """One whole look; True while it is safe."""
        observation = self.observer.look(CLOCK.now_s(), self.limits, Automation(True), NO_TASK)
        row = self.lifecycle.propose(observation).row
        if row is None:
            self.reason = ""
            return True
        if self.decided_at is None:
            self.decided_at = time.perf_counter()
        person = observation.person.value
        guard = blocked_by(observation, self.lifecycle.memory, self.limits)[0]
        self.reason = person.sign if guard.name == "user_away" and guard.ok is False and person else guard.reason
        return False


@dataclass
class Stage:
    """A source that is ready. `sign` makes one sign and returns when; `breaks`: each way to break it, after the signs."""

    decider: Decider
    sign: Callable[[], Awaitable[float]]
    undo: Deed | None = None
    breaks: dict[str, Deed] = field(default_factory=dict)
    rest_s: float = 0.0
    within_ms: float = 0.0  # soon enough in any case: a driver is asked, which no listener does


@dataclass(frozen=True)
class Scene:
    """A source. `share` of the signs asked for are made: some need seconds each. `instead`: what happens without the
    source, where that is no blindness. `lacks`: why it cannot be played here."""

    name: str
    against: str
    stage: Callable[[Seen], AbstractAsyncContextManager[Stage]]
    share: float = 1.0
    instead: str = ""
    lacks: Callable[[], str] = lambda: ""


class Quiet(PresenceSensor):
    """A source by which nobody is there."""

    name = "quiet"

    def latest(self, now_s: float) -> Presence:
        return Presence(self.name, now_s)


@contextlib.contextmanager
def rested(module: Any, **pauses: float) -> Iterator[None]:
    """Signs here are first ones after a rest; further ones wake the loop only now and then, which these constants say."""
    before = {name: getattr(module, name) for name in pauses}
    for name, value in pauses.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def now_and(act: Callable[[], Any]) -> Callable[[], Coroutine[Any, Any, float]]:
    """The sign that an act of a moment is."""

    async def sign() -> float:
        began = time.perf_counter()
        act()
        return began

    return sign


def deed(act: Callable[[], Any]) -> Deed:
    """An act of a moment, to be awaited."""

    async def do() -> None:
        act()

    return do


@contextlib.contextmanager
def inotify_on(path: str, mask: int, seen: Seen) -> Iterator[None]:
    """The ten lines: an inotify watch read by the loop."""
    inotify = INotify(nonblocking=True)
    inotify.add_watch(path, mask)
    loop = asyncio.get_running_loop()

    def read() -> None:
        inotify.read(timeout=0)
        seen()

    loop.add_reader(inotify.fileno(), read)
    try:
        yield
    finally:
        loop.remove_reader(inotify.fileno())
        inotify.close()


@contextlib.asynccontextmanager
async def ticking(decider: Decider) -> AsyncIterator[None]:
    """What is no event is seen at a look: the loop looks so often while a task runs."""

    async def look() -> None:
        while True:
            await asyncio.sleep(BUSY_S)
            decider.look()

    task = asyncio.ensure_future(look())
    try:
        yield
    finally:
        task.cancel()
