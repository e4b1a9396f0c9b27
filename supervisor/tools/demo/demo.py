"""The first try (`rae-node demo`): the real loop, the real control node, real tasks.

First this machine's own sensors, then a scripted person, so that every state is seen in under a minute. Everything is in a
temporary folder that is removed at the end.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from states.guards import SAFE
from states.lifecycle import Lifecycle
from states.memory import Memory, State
from states.observation import Cpu, Gpu, Host, Reading
from supervisor.config.load import load
from supervisor.daemon.inhibitor import Inhibitor, InhibitRefused
from supervisor.daemon.loop import Daemon, Inbox
from supervisor.daemon.wiring import Node
from supervisor.journal.decision_log import Journal
from supervisor.linux.clock import SystemClock
from supervisor.linux.dbus import SystemBus
from supervisor.linux.sd_notify import Notifier
from supervisor.sensors.base import Presence, PresenceSensor, Wake
from supervisor.sensors.observer import Observer
from supervisor.tools.history.timeline.reader import load as load_timeline
from supervisor.tools.history.timeline.sums import summary

TASKS_FILE: Final = Path(__file__).with_name("tasks.py")
REAL_S: Final = 4.0
PATIENCE_S: Final = 180.0

RUNTIME: Final = """\
automation: {{enabled: true, auto_start: true}}
safety: {{detect_active_user: true, idle_required_minutes: {idle}, max_cpu_percent: 80, max_gpu_percent: 90,
  max_vram_gb: 14, cooldown_minutes: {cooldown}}}
execution: {{poll_interval_sec: 1, heartbeat_interval_sec: 1, task_timeout_minutes: 2, retry_on_disconnect: true}}
"""


class ScriptedPerson(PresenceSensor):
    """A person who comes and goes on order; a presence sensor like any other."""

    name = "scripted person"

    def __init__(self, clock: SystemClock, wake: Wake) -> None:
        self._clock = clock
        self._wake = wake
        self._left_at_s: float | None = None  # None: at the desk

    def latest(self, now_s: float) -> Presence:
        if self._left_at_s is None:
            return Presence(self.name, now_s, present="user active (scripted)")
        return Presence(self.name, now_s, self._left_at_s, "user active (scripted)")

    def come(self) -> None:
        self._left_at_s = None
        self._wake()

    def go(self) -> None:
        self._left_at_s = self._clock.now_s()
        self._wake()


class Submitter:
    """A client that posts tasks to the control node and asks for them."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """GET, or POST of a JSON body; blocks for 5 s at most."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"})  # noqa: S310
        with self._open(request, timeout=5) as answer:
            return json.load(answer)


@dataclass
class Summary:
    """What the demo has shown. `handed_back`: how often; `seen`: seconds in each state; `stopped_in_s`: from the person's
    return until RUNNING was left."""

    tasks: list[dict[str, Any]]
    handed_back: int
    seen: dict[str, float]
    stopped_in_s: float | None

    @property
    def complete(self) -> bool:
        """Every task is done and every state was seen."""
        return all(t["status"] == "COMPLETED" for t in self.tasks) and set(self.seen) == set(State)


class Demo:
    """One run. `say` gets lines for people; `watch` is called with the daemon ten times a second, to draw it."""

    def __init__(self, speed: float, say: Callable[[str], None], watch: Callable[[Daemon], None]) -> None:
        self._speed = speed
        self._say = say
        self._watch = watch
        self._clock = SystemClock()
        self._stopped_in_s: float | None = None

    async def run(self) -> Summary:
        """From an empty folder to the summary.

        Raises:
            TimeoutError: a task was not done in time.
            OSError: the control node did not start.
        """
        with tempfile.TemporaryDirectory(prefix="rae-node-demo-", ignore_cleanup_errors=True) as folder:
            async with asyncio.timeout(PATIENCE_S / self._speed + 60), self._control_node() as url:
                return await self._with_control(Path(folder), url)

    @asynccontextmanager
    async def _control_node(self) -> AsyncIterator[str]:
        """A control node as a process of its own; its URL."""
        control = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-m", "supervisor.cli.main", "control", "--listen", "127.0.0.1:0"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            assert control.stdout is not None
            url = (await control.stdout.readline()).decode().strip()
            if not url:
                raise OSError("the control node did not start; try `rae-node control --listen 127.0.0.1:8000`")
            self._say(f"Control node: {url}, a process of its own, in memory.")
            yield url
        finally:
            if control.returncode is None:
                control.terminate()
            await control.wait()

    async def _sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self._speed)

    async def _with_control(self, folder: Path, url: str) -> Summary:
        submitter = Submitter(url)
        with self._daemon(folder, url, await self._inhibitor_mode()) as (node, daemon):
            await node.start()
            loop = asyncio.create_task(daemon.run())
            screen = asyncio.create_task(self._draw(daemon))
            try:
                await self._sleep(1)
                self._say("The operator switches automation on.")
                node.automation.configure(True)
                daemon.wake()
                await self._real_sensors(daemon)
                person = self._script_the_person(node, daemon)
                tasks, handed_back = await self._play(submitter, person, daemon, loop)
            finally:
                daemon.stop("the demo is over")
                await loop
                screen.cancel()
                await node.stop(2.0)
        states_h = summary(load_timeline([folder / "logs"], 2)).states_h
        return Summary(tasks, handed_back, {state: hours * 3600 for state, hours in states_h.items()}, self._stopped_in_s)

    def _tasks(self) -> list[dict[str, Any]]:
        text = "the quick brown fox jumps over the lazy dog and the dog sleeps on"
        return [
            {"type": "primes", "payload": {"below": 3_000_000}, "priority": 3},
            {"type": "words", "payload": {"text": text}, "priority": 2},
            {"type": "render", "payload": {"seconds": 6 / self._speed}, "priority": 1},
            {"type": "primes", "payload": {"below": 1_000_000}, "priority": 0},
        ]

    @contextmanager
    def _daemon(self, folder: Path, url: str, inhibitor: str) -> Iterator[tuple[Node, Daemon]]:
        minutes = 0.1 / self._speed
        python = {"sandbox_read": [sys.prefix, sys.base_prefix], "grace_sec": 1}
        types = {
            name: {"executor": "command", "argv": [sys.executable, "-I", str(TASKS_FILE), name], **python}
            for name in ("primes", "words", "render")
        }
        settings = {
            "control": {"source": "embedded", "url": url},
            "tasks": types,
            "gpu": {"presence": "optional"},
            "host": {"inhibitor": inhibitor},
            "work": {"run_minutes": 5},
            "paths": {"logs": "logs", "workdir": "work", "runtime": "run", "state": "state"},
        }
        (folder / "runtime.yaml").write_text(RUNTIME.format(idle=minutes, cooldown=minutes))
        (folder / "node.yaml").write_text(json.dumps(settings, indent=1))
        config = load(folder)
        journal, inbox = Journal(config.paths.logs, self._clock, say=self._say), Inbox()
        memory = Memory(since_s=self._clock.now_s())
        lifecycle = Lifecycle(config.limits, memory=memory)
        node = Node(config, self._clock, inbox.wake, lambda _: None, journal, lifecycle)
        daemon = Daemon(node, lifecycle, journal, self._clock, Notifier({}), inbox)
        journal.start("demo", config.limits, memory)
        try:
            yield node, daemon
        finally:
            journal.close()

    async def _draw(self, daemon: Daemon) -> None:
        while True:
            self._watch(daemon)
            await asyncio.sleep(0.1)

    async def _real_sensors(self, daemon: Daemon) -> None:
        """Some seconds with this machine's own sensors, and what would keep the node from working."""
        self._say("First, this machine's real sensors:")
        await self._sleep(REAL_S)
        observation, memory, limits = daemon.node.last, daemon.lifecycle.memory, daemon.lifecycle.limits
        for verdict in (guard.explain(observation, memory, limits) for guard in SAFE):
            if verdict.ok is not True:
                self._say(f"  blocked by {verdict.name}: {verdict.reason}")

    async def _inhibitor_mode(self) -> str:
        """`required` where the lock can be taken, else `none`."""
        bus = SystemBus()
        inhibitor = Inhibitor(bus, "required")
        await bus.start()
        try:
            self._say(f"Sleep inhibitor: {await inhibitor.take('the demo tries the lock')}.")
            await inhibitor.release()
        except InhibitRefused as refused:
            self._say(f"Sleep inhibitor: {refused}; the demo goes on with host.inhibitor: none.")
            return "none"
        finally:
            await bus.stop()
        return "required"

    def _script_the_person(self, node: Node, daemon: Daemon) -> ScriptedPerson:
        """From here on the signs are scripted; loop, link, tasks and times stay real."""
        self._say("From here on a scripted person comes and goes, on a free machine; loop, link and tasks stay real.")
        person = ScriptedPerson(self._clock, daemon.wake)

        def free(value: Any) -> Callable[[float], Reading[Any]]:
            return lambda now_s: Reading(value, "", "scripted", now_s)

        node.sensors.observer = Observer((person,), free(Gpu(4, 1)), free(Cpu(5)), free(Host()), self._clock.now_s())
        daemon.wake()
        return person

    async def _play(
        self, submitter: Submitter, person: ScriptedPerson, daemon: Daemon, loop: asyncio.Task[None]
    ) -> tuple[list[dict[str, Any]], int]:
        await self._sleep(2)
        self._say("The person leaves the desk.")
        person.go()
        await self._until(loop, lambda: daemon.lifecycle.state is State.READY)
        await self._sleep(1.5)
        posted = [await asyncio.to_thread(submitter.call, "/control/tasks", task) for task in self._tasks()]
        self._say(f"{len(posted)} tasks are posted to the control node: " + ", ".join(t["type"] for t in posted) + ".")
        attempts, lifecycle = daemon.node.attempts, daemon.lifecycle
        await self._until(loop, lambda: attempts.observe().type == "render" and lifecycle.state is State.RUNNING)
        await self._sleep(1.5)
        self._say("The person comes back, in the middle of a task.")
        began_s = time.monotonic()
        person.come()
        await self._until(loop, lambda: daemon.lifecycle.state is not State.RUNNING)
        self._stopped_in_s = time.monotonic() - began_s
        await self._sleep(1)
        self._say("The person leaves again.")
        person.go()
        tasks, handed_back = [], 0
        for task in posted:
            done, again = await self._done(submitter, task["id"], loop)
            tasks.append(done)
            handed_back += again
        await self._until(loop, lambda: daemon.lifecycle.state is State.COOLDOWN)
        return tasks, handed_back

    async def _until(self, loop: asyncio.Task[None], condition: Callable[[], bool]) -> None:
        while not condition():
            if loop.done():
                loop.result()
                raise OSError("the daemon has ended early")
            await asyncio.sleep(0.02)

    async def _done(self, submitter: Submitter, task_id: str, loop: asyncio.Task[None]) -> tuple[dict[str, Any], int]:
        """The finished task, and how often it was handed back before."""
        again = 0
        while True:
            task = await asyncio.to_thread(submitter.call, f"/control/tasks/{task_id}")
            if task["status"] == "FAILED" and "resubmitted as " in (task["error"] or ""):
                task_id, again = task["error"].rpartition("resubmitted as ")[2].split()[0], again + 1
            elif task["status"] in ("COMPLETED", "FAILED"):
                return task, again
            else:
                await self._until(loop, lambda: True)
                await asyncio.sleep(0.2)
