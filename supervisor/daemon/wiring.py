"""The parts of one node, made from its configuration and kept in step with it. Decides nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from states.memory import State
from states.observation import Observation, TaskPhase
from supervisor.config.executor_names import NoExecutor
from supervisor.config.load import Config, ConfigErrors, fingerprint, load
from supervisor.config.schema import TaskType
from supervisor.daemon.automation import Will
from supervisor.daemon.inhibitor import Inhibitor, ReleaseFailed
from supervisor.daemon.performer import Performer
from supervisor.linux.clock import Clock
from supervisor.linux.dbus import SystemBus
from supervisor.sensors.base import Wake
from supervisor.sensors.sensor_set import SensorSet
from supervisor.sources.api_key import TokenError, token
from supervisor.sources.base import Source
from supervisor.sources.factory import make_source
from supervisor.tasks.attempt import Slot
from supervisor.tasks.executors import registry
from supervisor.tasks.executors.base import Executor, StartFailed, StopFailed
from supervisor.tasks.monitor import Minder
from supervisor.tasks.process.containment import Containment, detect
from supervisor.tasks.workdir import Workdir

if TYPE_CHECKING:
    from supervisor.journal.metrics import Metrics

# The daemon's first tick does not wait for a driver to load: what has not been seen by then is unknown.
FIRST_TICK_S: Final = 0.01
# How often a GPU that is in use by others is looked at, to see that it is free again.
GPU_AGAIN_S: Final = 5.0
LOOK_INTERVAL_S: Final = 2.0  # between two looks at a GPU that works for us
# What a claim waits for a reading of the GPU of this very moment (it is checked once more before the start).
GPU_CHECK_S: Final = 1.0
# How long a sweep that failed is left alone; longer than one may take, so that two never run at once.
SWEEP_AGAIN_S: Final = 10.0


class _OwnTask:
    """The processes of the node's task, whatever slot it is in."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def pids(self) -> frozenset[int]:
        return self._node.slot.pids()

    def cpu_s(self) -> float:
        return self._node.slot.cpu_s()


class Node:
    """Everything that the loop drives. `refresh` keeps it in step with the configuration files.

    Limits and task types are taken over at once. Parts whose settings changed are made anew when no task is in hand and no
    lock is held; the source, unless the control node's own settings changed, also not before it has delivered every
    outcome (R21). Folders (`paths`) change only at the next start. `mend` tries again what the folders forbid.
    """

    def __init__(self, config: Config, clock: Clock, wake: Wake, extend: Callable[[float], None]) -> None:
        self.clock = clock
        self.config = config
        self.will = Will(config.paths.state, clock)
        self.on_event: Callable[[str, dict[str, Any]], None] = lambda _kind, _fields: None
        self.describe: Callable[[], dict[str, Any]] = dict  # what a fleet may know of this node
        self.containment: Containment | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._sweep_again_s = 0.0
        self._metrics: Metrics | None = None
        self._metrics_file: str | None = None
        self.workdir = Workdir(config.paths.workdir)
        self.mend: Callable[[], Awaitable[str]] | None = None
        self._wake = wake
        self._extend = extend
        self._seen = fingerprint(config.folder)
        self._reload = False
        self._made_from = config
        self._paths_at_start = config.paths
        self._pending = False
        self._connected = False
        self.will.hindrances["leftovers"] = ""
        self._build_source(config)
        self._build_sensors(config)
        self._build_performer()

    def _build_source(self, config: Config) -> None:
        key, self.will.hindrances["key"] = None, ""
        try:
            key = token(config.control, os.environ)
        except TokenError as error:
            self.will.hindrances["key"] = str(error)
        self.source: Source = make_source(config, self.clock, key, self)
        self.slot = Slot(self.source)
        self.will.in_hand = lambda: self.slot.claim is not None

    def link_event(self, event: str, fields: Mapping[str, Any]) -> None:
        """See SourceEvents."""
        self.on_event("link", {"event": event, **fields})

    def _build_sensors(self, config: Config) -> None:
        bus = SystemBus()
        self._inhibitor = Inhibitor(bus, config.node.host.inhibitor, on_change=self._wake)
        self.sensors = SensorSet(config, self.clock, _OwnTask(self), bus, self._inhibitor, daemon=True)

    def _build_performer(self) -> None:
        self.minder = Minder(
            self.clock,
            lambda: self.sensors.gpu,
            lambda: self.limits,
            lambda: self.config.node.gpu,
            lambda: self.config.node.tasks,
            lambda: bool(self.sensors.sessions.going_down),
        )
        self.performer = Performer(
            self.slot,
            self._inhibitor,
            self.workdir,
            self._executor,
            lambda: self.config.node.tasks,
            self.clock,
            self._wake,
            self._extend,
            self.minder,
        )

    async def start(self) -> None:
        """Begin to sweep what a crash has left, and start the sensors."""
        self.will.hindrances["leftovers"] = "removing what the last run left"
        self._sweep_again_s = self.clock.now_s() + SWEEP_AGAIN_S
        self._sweeping = asyncio.ensure_future(self._sweep())
        await self.sensors.start(self._wake, FIRST_TICK_S)

    async def _sweep(self) -> None:
        """What a crash has left is killed and wiped; until that is done, the node does not work."""
        try:
            await asyncio.to_thread(self._remove_leftovers)
            self.will.hindrances["leftovers"] = ""
        except (OSError, StopFailed) as failure:
            self.will.hindrances["leftovers"] = f"what the last run left could not be removed: {failure}"
        self._wake()

    def _remove_leftovers(self) -> None:
        """Blocks: finding out what can hold tasks tries it on a process."""
        self.containment = self.containment or detect()
        self.containment.sweep(self.workdir.root)
        self.workdir.wipe_all()

    def _executor(self, task_type: TaskType) -> Executor:
        if self.containment is None:
            raise StartFailed("it is not known yet what can hold a task")
        self.containment.cpu_percent = self.limits.max_cpu_percent
        try:
            return registry.make(task_type.executor, task_type, self.containment)
        except NoExecutor as missing:
            raise StartFailed(f"executor {task_type.executor}: allowed: {missing}") from None

    async def connect(self) -> None:
        """Start the link; after READY, for it is what costs time to import."""
        self._connected = True
        await self.source.start(self._wake)

    async def stop(self, deadline_s: float) -> None:
        """Say OFFLINE, deliver what there is, let go of everything."""
        if self._sweeping is not None:
            await asyncio.wait([self._sweeping], timeout=deadline_s)
        if self._connected:
            await self.source.stop(deadline_s)
        await self._stop_sensors()

    async def _stop_sensors(self) -> None:
        with contextlib.suppress(ReleaseFailed):
            await self.performer.inhibitor.release()
        await self.sensors.stop()
        await self.sensors.bus.stop()

    @property
    def metrics(self) -> Metrics | None:
        """What counts for Prometheus, where `metrics.file` names a file; its library is loaded only then."""
        file = self.config.node.metrics.file
        if file != self._metrics_file:
            self._metrics_file, self._metrics = file, None
            if file is not None:
                from supervisor.journal.metrics import Metrics

                self._metrics = Metrics(self.config.resolve(file))
        return self._metrics

    # --- the configuration

    def reload(self) -> None:
        """Read the files again at the next tick (SIGHUP)."""
        self._reload = True
        self._wake()

    async def refresh(self) -> None:
        """Take over a changed configuration; a broken one is off, with its first line as the reason."""
        seen = fingerprint(self.config.folder)
        if self._reload or seen != self._seen:
            self._reload, self._seen = False, seen
            self._read()
        if self.will.hindrances["leftovers"] and self.clock.now_s() >= self._sweep_again_s:
            self._sweep_again_s = self.clock.now_s() + SWEEP_AGAIN_S
            self._sweeping = asyncio.ensure_future(self._sweep())
        if self.mend is not None and self.will.hindrances.get("folders"):
            self.will.hindrances["folders"] = await self.mend()
        if self.slot.task().phase is TaskPhase.CLAIMED:
            await self._check_gpu()
        await self.performer.look_after()
        if self._pending and self._free:
            await self._rebuild(self.config)

    def _read(self) -> None:
        try:
            new = load(self.config.folder)
        except ConfigErrors as errors:
            self.will.refuse([str(p) for p in errors.problems])
            self.on_event("config", {"problem": str(errors.problems[0])})
            return
        self.config = new
        self.will.accept(new.runtime.automation.enabled)
        self.on_event("config", {"limits": new.limits})
        self._pending = bool(self._changed())

    def _changed(self) -> set[str]:
        """The parts that are still made from other settings: `source`, `control` (its own section), `sensors`."""
        old, new = self._made_from, self.config
        changed = {name for name, parts in _PARTS.items() if parts(old) != parts(new)}
        return changed | ({"source", "control"} if self.will.hindrances["key"] else set())

    @property
    def _free(self) -> bool:
        """Nothing is in hand or held that a change of the parts would lose."""
        changed = self._changed()
        delivered = "source" not in changed or "control" in changed or not self.source.status.outbox
        return self.slot.empty and not self.performer.inhibitor.held and delivered

    async def _rebuild(self, config: Config) -> None:
        changed = self._changed()
        self._made_from, self._pending = config, False
        if "source" in changed:
            if self._connected:
                await self.source.stop(1.0)
            self._build_source(config)
        if "sensors" in changed:
            told = self.sensors.agent_reports.snapshot()["desktop"]
            await self._stop_sensors()
            self._build_sensors(config)
            self.sensors.agent_reports.restore(told)  # the agents are back in a moment
            await self.sensors.start(self._wake, FIRST_TICK_S)
        self._build_performer()
        if "source" in changed and self._connected:
            await self.source.start(self._wake)

    # --- what the loop asks

    @property
    def limits(self) -> Any:
        """The limits in force."""
        return self.config.limits

    @property
    def poll_interval_s(self) -> float:
        """Seconds between polls in READY (R20)."""
        return self.config.runtime.execution.poll_interval_sec

    @property
    def may_ask(self) -> bool:
        """Nothing is in hand, and no change of the parts waits for that."""
        return not self._pending and self.slot.empty and not self.will.paused

    @property
    def source_kind(self) -> str:
        """control.source."""
        return self.config.node.control.source

    def look(self, now_s: float) -> Observation:
        """One whole look."""
        status = self.source.status
        automation = self.will.automation(now_s)
        seen = self.sensors.observer.look(
            now_s, self.config.limits, automation, self.slot.task(), status.link, status.reason
        )
        if self.minder.pinned and seen.gpu.value is not None:
            return replace(seen, gpu=replace(seen.gpu, value=replace(seen.gpu.value, pinned=True)))
        return seen

    def demand(self, state: State, gpu_free: bool) -> None:
        """How closely the GPU is watched, and whether logind may go on with a sleep: nothing of ours runs.

        At rest opens of its nodes tell of who comes; that somebody has gone is told by nothing, so it is looked for.
        """
        interval_s: float | None = None
        if state is State.RUNNING or (gpu_free and self.sensors.gpu.own.left):
            interval_s = LOOK_INTERVAL_S
        elif not gpu_free:
            interval_s = GPU_AGAIN_S
        self.sensors.gpu.demand(interval_s)
        if state is not State.RUNNING and self.slot.tree is None:
            self.sensors.sessions.release_delay()

    async def _check_gpu(self) -> None:
        """Before a start: a reading at rest may be a minute old."""
        reading, now_s = self.sensors.gpu.latest(self.clock.now_s()), self.clock.now_s()
        absent = reading.value is not None and not reading.value.present
        if not absent and now_s - reading.read_at_s > LOOK_INTERVAL_S:
            await self.sensors.gpu.refresh(GPU_CHECK_S)

    def inhibitor_words(self) -> str:
        """For `status`."""
        if self.config.node.host.inhibitor == "none":
            return "not used (host.inhibitor: none)"
        return "held" if self.performer.inhibitor.held else "free"

    def notes(self, *more: str) -> list[str]:
        """What an operator should know and no guard says."""
        held = "" if self.containment is None else self.containment.summary()
        later = [
            (self._pending, "the new configuration takes effect when no task is in hand and every outcome is delivered"),
            (self._paths_at_start != self.config.paths, "other folders (paths in node.yaml) take effect at the next start"),
        ]
        first = (*self.config.notes, self.will.finishing_words(), held)
        return [note for note in (*first, *(text for true, text in later if true), *more) if note]


# The settings that parts are made from; limits and task types are read at every use.
_PARTS: Final[dict[str, Callable[[Config], object]]] = {
    "control": lambda c: (c.node_id, c.node.control),
    "source": lambda c: (
        (c.node_id, c.node.control, c.node.gpu.presence, sorted(c.node.tasks)),
        (c.runtime.execution.heartbeat_interval_sec, c.runtime.execution.retry_on_disconnect),
        c.runtime.execution.poll_interval_sec if c.node.control.source == "nats" else None,
    ),
    "sensors": lambda c: (c.node.gpu, c.node.presence, c.node.host, c.node.work),
}
