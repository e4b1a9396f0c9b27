"""The parts of one node, made from its configuration and kept in step with it. Decides nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from states.formatting import elapsed
from states.lifecycle import Lifecycle, blocked_by, verdicts
from states.limits import Limits
from states.memory import State
from states.observation import Link, Observation, TaskPhase
from supervisor import VERSION
from supervisor.config.executor_names import NoExecutor
from supervisor.config.load import Config, ConfigErrors, fingerprint, load
from supervisor.config.schedule import opens_at_s
from supervisor.config.schema import TaskType
from supervisor.daemon.automation import AutomationSwitch
from supervisor.daemon.inhibitor import Inhibitor, ReleaseFailed
from supervisor.daemon.performer import Performer
from supervisor.journal.decision_log import Journal
from supervisor.linux.clock import Clock, iso
from supervisor.linux.dbus import SystemBus
from supervisor.linux.wake import WakeAlarm
from supervisor.sensors.base import Wake
from supervisor.sensors.gpu.poller import NEVER_LOOK
from supervisor.sensors.sensor_set import SensorSet
from supervisor.sources.base import Source
from supervisor.sources.desired import Order
from supervisor.sources.factory import make_source
from supervisor.tasks.attempt import Attempt, Attempts
from supervisor.tasks.context import TaskContext, TaskSettings
from supervisor.tasks.executors import registry
from supervisor.tasks.executors.base import Executor, NodeFault, StartFailed, StopFailed
from supervisor.tasks.process import sandbox, unit
from supervisor.tasks.process.containment import Containment, detect
from supervisor.tasks.workdir import Workdir

if TYPE_CHECKING:
    from supervisor.journal.metrics import Metrics

# The first tick does not wait for a driver to load: what has not been seen by then is unknown.
FIRST_TICK_S: Final = 0.01
# How often a GPU that others use is looked at, to see that it is free again.
GPU_AGAIN_S: Final = 5.0
LOOK_INTERVAL_S: Final = 2.0  # between two looks at a GPU that works for us
# How long a claim waits for a fresh reading of the GPU (it is checked once more before the start).
GPU_CHECK_S: Final = 2.0
# How long a sweep that failed is left alone; longer than one may take, so that two never run at once.
SWEEP_AGAIN_S: Final = 10.0
WAKE_LEAD_S: Final = 60.0
REPAIRS: Final = 3  # how many `status` shows


class _OwnTask:
    """The processes of the node's task. The sensors ask here: they live longer than the attempts."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def pids(self) -> frozenset[int]:
        return self._node.attempts.pids()

    def cpu_s(self) -> float:
        return self._node.attempts.cpu_s()


class Node:
    """Everything that the loop drives. `refresh` keeps it in step with the configuration files.

    Limits and task types change at once. Parts whose settings changed are made again when no task is in hand and no lock is
    held; the source also not while a poll is in flight. What the control node cannot be given now moves over to the new source.
    Folders (`paths`) change at the next start only.

    Args:
        extend: asks systemd for so many seconds more.
        lifecycle: for what a fleet may know of this node (`describe`).
    """

    attempt_type = Attempt

    def __init__(
        self,
        config: Config,
        clock: Clock,
        wake: Wake,
        extend: Callable[[float], None],
        journal: Journal,
        lifecycle: Lifecycle,
    ) -> None:
        self.clock = clock
        self.config = config
        self.automation = AutomationSwitch(config.paths.state, clock)
        self.containment: Containment | None = None
        self.workdir = Workdir(config.paths.workdir, self.repaired)
        self._wake, self._extend, self._journal, self._lifecycle = wake, extend, journal, lifecycle
        self._sweeping: asyncio.Task[None] | None = None
        self._trying: asyncio.Task[None] | None = None
        self._sweep_again_s = 0.0
        self.look_due_s = 0.0  # when the loop looks next, at the latest
        self._wake_alarm = WakeAlarm()
        self._repairs: deque[str] = deque(maxlen=REPAIRS)
        self._news: deque[str] = deque(maxlen=REPAIRS)
        self._metrics: Metrics | None = None
        self._metrics_file: str | None = None
        self._seen = fingerprint(config.folder)
        self._reload = False
        self._made_from = config
        self._paths_at_start = config.paths
        self._pending = False
        self._connected = False
        self.automation.blockers |= {"leftovers": "", "tasks": ""}
        now_s = clock.now_s()
        self.last = Observation(now_s, self.automation.reading(now_s, task_in_hand=False))
        self._build_source(config)
        self._build_sensors(config)
        self._build_performer()

    def _build_source(self, config: Config) -> None:
        self.source: Source = make_source(config, self.clock, None, self)

    def _build_sensors(self, config: Config) -> None:
        bus = SystemBus()
        self._inhibitor = Inhibitor(bus, config.node.host.inhibitor, on_change=self._wake)
        self.sensors = SensorSet(config, self.clock, _OwnTask(self), bus, self._inhibitor, daemon=True)

    def _build_performer(self) -> None:
        context = TaskContext(self.clock, self.sensors.gpu, self.sensors.sessions, self._task_settings())
        self.attempts = Attempts(self.source, context, self.attempt_type)
        self.performer = Performer(
            self.attempts, self._inhibitor, self.workdir, self._executor, self.clock, self._wake, self._extend
        )

    def _task_settings(self) -> TaskSettings:
        node = self.config.node
        return TaskSettings(self.config.limits, node.gpu, node.tasks, node.host.min_memory_gb)

    # --- what a source needs (SourceEvents)

    def link_event(self, event: str, fields: Mapping[str, Any]) -> None:
        """See SourceEvents."""
        self._journal.write("link", event=event, **fields)

    def describe(self) -> dict[str, Any]:
        """See SourceEvents. Nothing about the person but that it was they who paused the node: no name."""
        memory = self._lifecycle.memory
        since = iso(self.clock.wall_s() - (self.clock.now_s() - memory.since_s))
        blocking = [verdict.name for verdict in blocked_by(self.last_now(), memory, self.limits_now())]
        seen: dict[str, Any] = {"state": memory.state, "since": since, "blocked_by": blocking}
        return seen | self.automation.for_the_fleet()

    async def answer(self, question: str, lines: int) -> dict[str, Any]:
        """See SourceEvents. Only a fleet asks, so only then this is loaded."""
        from supervisor.daemon.fleet_view import guard_for_fleet, log_for_fleet

        if question == "log":
            return {"lines": await asyncio.to_thread(log_for_fleet, self.config.paths.logs, lines)}
        seen, link, now_s = self.describe(), self.source.status, self.clock.now_s()
        of_its_person = seen.get("paused_by") == "person"
        judged = verdicts(self.last_now(), self._lifecycle.memory, self.limits_now())
        return {
            **seen,
            "guards": [guard_for_fleet(verdict, of_its_person=of_its_person) for verdict in judged],
            "link": f"{link.link} for {elapsed(now_s - link.since_s)}",
            "trouble": self._journal.trouble,
            "version": VERSION,
        }

    def obey(self, order: Order) -> None:
        """See SourceEvents."""
        pause = self.automation.fleet
        more: dict[str, Any] = {"after_task": True} if order.after_task else {}
        try:
            if not pause.obey(order):
                return
        except OSError as error:
            more["trouble"] = f"not kept over a restart: {error.filename}: {error.strerror}"
        self._journal.write("operator", word=f"fleet {order.want}", until=pause.paused_end(), by=order.by, **more)
        self._wake()

    # --- start and stop

    async def start(self) -> None:
        """Start the sensors, and begin to remove what a crash has left."""
        self.automation.blockers["leftovers"] = "removing what the last run left"
        self._begin_sweep()
        await self.sensors.start(self._wake, FIRST_TICK_S)

    def _begin_sweep(self) -> None:
        if self._sweeping is not None and not self._sweeping.done():
            return  # it may take longer; a second one at once could meet a task that has started meanwhile
        self._sweep_again_s = self.clock.now_s() + SWEEP_AGAIN_S
        self._sweeping = asyncio.ensure_future(self._sweep())

    async def _sweep(self) -> None:
        """Kill and wipe what a crash has left; until that is done, the node does not work."""
        try:
            await asyncio.to_thread(self._remove_leftovers)
            self.automation.blockers["leftovers"] = ""
        except (OSError, StopFailed) as failure:
            self.automation.blockers["leftovers"] = f"what the last run left could not be removed: {failure}"
        if self.containment is not None:
            self._offer(self.containment.offer)
        self._wake()

    def try_again(self) -> None:
        """What keeps tasks from starting may be repaired: see at the next tick."""
        self._sweep_again_s = 0.0

    def _offer(self, offer: sandbox.Offer) -> None:
        """An installed node without units for tasks takes none: nothing weaker takes their place."""
        missing = offer.unit if offer.units_only else ""
        reason = f"no task can start: {missing}: run deploy/install again, as root"
        self.automation.blockers["tasks"] = reason if missing else ""

    def _remove_leftovers(self) -> None:
        """Blocks: to find out what can contain tasks, it is tried on a process."""
        found = self.containment or detect()
        if self.containment is None or self.automation.blockers["tasks"]:
            found.offer = sandbox.look(sandbox.own_paths(self.config))
        if self.automation.blockers["tasks"] and not found.offer.unit:
            found.offer = replace(found.offer, unit=unit.fault())
        self.containment = found
        unit.sweep()
        self.containment.sweep(self.workdir.root)
        self.workdir.wipe_all()

    async def _try_sandboxes(self, containment: Containment) -> None:
        """Find out again what separates tasks from the machine: an administrator may just have changed it."""
        containment.offer = await asyncio.to_thread(sandbox.look, sandbox.own_paths(self.config))
        self._offer(containment.offer)

    def _executor(self, task_type: TaskType) -> Executor:
        if self.containment is None:
            raise NodeFault("it is not known yet what can contain a task")
        self.containment.cpu_percent = self.limits.max_cpu_percent
        self.containment.gpus = self.sensors.gpu.grant()
        try:
            return registry.make(task_type.executor, task_type, self.containment)
        except NoExecutor as missing:
            raise StartFailed(f"executor {task_type.executor}: allowed: {missing}") from None

    async def connect(self) -> None:
        """Start the link. After READY=1, because its imports cost time."""
        self._connected = True
        await self.source.start(self._wake)

    async def stop(self, deadline_s: float) -> None:
        """Say OFFLINE, deliver what there is, and end all parts."""
        if self._sweeping is not None:
            await asyncio.wait([self._sweeping], timeout=deadline_s)
        if self._connected:
            await self.source.stop(deadline_s)
        self._wake_alarm.close()
        await self._stop_sensors()

    async def _stop_sensors(self) -> None:
        with contextlib.suppress(ReleaseFailed):
            await self.performer.inhibitor.release()
        await self.sensors.stop()
        await self.sensors.bus.stop()

    @property
    def metrics(self) -> Metrics | None:
        """The counters for Prometheus, where `metrics.file` names a file. The library is loaded only then."""
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
        """Everything that may take time between two looks. A broken configuration means off, with its first line as reason."""
        seen = fingerprint(self.config.folder)
        if self._reload or seen != self._seen:
            self._reload, self._seen = False, seen
            self._read()
        blockers = self.automation.blockers
        if fault := self.performer.node_fault:
            self.performer.node_fault = ""
            blockers["tasks"] = f"no task can start: {fault}"
            self._sweep_again_s = self.clock.now_s() + SWEEP_AGAIN_S
        if (blockers["leftovers"] or blockers["tasks"]) and self.clock.now_s() >= self._sweep_again_s:
            self._begin_sweep()
        if self.attempts.observe().phase is TaskPhase.CLAIMED:
            await self._check_gpu()
        if self.config.node.work.wake or self._wake_alarm.wanted:
            self._wake_alarm.set(self._wake_at_s())
        await self.performer.check_end()
        if self._pending and self._free:
            await self._rebuild(self.config)

    def _read(self) -> None:
        try:
            new = load(self.config.folder)
        except ConfigErrors as errors:
            problems = [str(p) for p in errors.problems]
            self.automation.configure(self.automation.enabled, problems)
            self._journal.config(None, problems[0])
            return
        self.config = new
        if self.source.status.link is Link.DOWN:  # a key file may be right now; a link that was given up waits for `resume`
            self.source.resume()
        self.attempts.context.settings = self._task_settings()
        self.automation.configure(new.runtime.automation.enabled)
        self._journal.config(new.limits, "")
        self._pending = bool(self._changed())
        if self.containment is not None and (self._trying is None or self._trying.done()):
            self._trying = asyncio.ensure_future(self._try_sandboxes(self.containment))

    def _changed(self) -> set[str]:
        """The parts that were made from other settings: `source`, `control` (its own section), `fleet`, `sensors`."""
        old, new = self._made_from, self.config
        return {name for name, settings_of in _PARTS.items() if settings_of(old) != settings_of(new)}

    @property
    def _free(self) -> bool:
        """Nothing is in hand or held that a change of the parts would lose."""
        changed = self._changed()
        if self.attempts.in_hand or self.performer.inhibitor.held:
            return False
        if "source" not in changed:
            return True
        link = self.source.status
        if self.source.asking:
            return False
        moves = link.link is not Link.UP and "fleet" not in changed  # while the link is up, it is being delivered
        left_to_others = self._made_from.node.control.source == "nats" and "control" in changed  # another node gets the task
        return moves or left_to_others or not link.outbox

    def _wake_at_s(self) -> float | None:
        """When the machine should be woken, in seconds since the epoch; None: not at all."""
        work = self.config.node.work
        opens_s = opens_at_s(work, self.clock.wall_s()) if work.wake else None
        return None if opens_s is None else opens_s - WAKE_LEAD_S

    async def _rebuild(self, config: Config) -> None:
        changed = self._changed()
        self._made_from, self._pending = config, False
        if "source" in changed:
            old = self.source
            self._build_source(config)
            await self.source.take_over(old)
            if self._connected:
                await old.stop(1.0)
        if "sensors" in changed:
            reports = self.sensors.agent_reports.snapshot()["desktop"]
            await self._stop_sensors()
            self._build_sensors(config)
            self.sensors.agent_reports.restore(reports)  # the agents reconnect in a moment
            await self.sensors.start(self._wake, FIRST_TICK_S)
        last = self.attempts.last
        self._build_performer()
        self.attempts.last = last
        if "source" in changed and self._connected:
            await self.source.start(self._wake)

    # --- what the loop asks

    @property
    def limits(self) -> Limits:
        """The limits in force."""
        return self.config.limits

    @property
    def may_ask(self) -> bool:
        """Nothing is in hand, and no change of the parts waits for that."""
        return not self._pending and self.attempts.empty and not self.automation.first.paused

    def look(self, now_s: float) -> Observation:
        """One whole look. Reads no file and waits for nothing."""
        status = self.source.status
        automation = self.automation.reading(now_s, task_in_hand=self.attempts.current is not None)
        seen = self.sensors.observer.look(now_s, self.limits, automation, self.attempts.observe(), status.link, status.reason)
        attempt, gpu = self.attempts.current, seen.gpu.value
        if attempt is not None and gpu is not None and attempt.pinned:
            seen = replace(seen, gpu=replace(seen.gpu, value=replace(gpu, pinned=True)))
        self.last = seen
        return seen

    def last_now(self) -> Observation:
        """The last look, as old as it is by now, with the task as it is now."""
        return replace(self.last, now_s=self.clock.now_s(), task=self.attempts.observe())

    def limits_now(self) -> Limits:
        """The limits for `last_now`. A reading grows too old from when the next look is due: until then nothing is missing."""
        return self.limits.older_by(max(0.0, min(self.clock.now_s(), self.look_due_s) - self.last.now_s))

    def demand(self, state: State, gpu_free: bool) -> None:
        """Tell the GPU sensor how closely to watch. Let a sleep go on when nothing of ours runs.

        At rest, events tell who opens the GPU; that somebody has left it is seen by looking only. A node that is switched off
        leaves it alone.
        """
        interval_s: float | None = None
        if state is State.DISABLED and self.attempts.process is None and not self.sensors.gpu.own.left:
            interval_s = NEVER_LOOK
        elif state is State.RUNNING or (gpu_free and self.sensors.gpu.own.left):
            interval_s = LOOK_INTERVAL_S
        elif not gpu_free:
            interval_s = GPU_AGAIN_S
        self.sensors.gpu.demand(interval_s)
        if state is not State.RUNNING and self.attempts.process is None:
            self.sensors.sessions.release_delay()

    async def _check_gpu(self) -> None:
        """Before a start: at rest, a reading may be a minute old."""
        reading, now_s = self.sensors.gpu.latest(self.clock.now_s()), self.clock.now_s()
        absent = reading.value is not None and not reading.value.present
        if not absent and now_s - reading.read_at_s > LOOK_INTERVAL_S:
            await self.sensors.gpu.refresh(GPU_CHECK_S)

    def repaired(self, text: str) -> None:
        """Something of the node's own was broken, and what was done about it: for the journal and `status`. From any thread."""
        self._repairs.append(f"{iso(self.clock.wall_s())}: {text}")
        self._news.append(text)

    def news(self) -> list[str]:
        """What was repaired since the last call."""
        return [self._news.popleft() for _ in range(len(self._news))]

    def inhibitor_state(self) -> str:
        """For `status`."""
        if self.config.node.host.inhibitor == "none":
            return "not used (host.inhibitor: none)"
        return "held" if self.performer.inhibitor.held else "free"

    def task_note(self) -> str:
        """What the operator should know about the running task."""
        return "" if self.attempts.current is None else self.attempts.current.note

    def notes(self) -> list[str]:
        """What the operator should know and no guard says."""
        later = [
            (self._pending, "the new configuration takes effect when no task, no poll and no delivery is under way"),
            (self._paths_at_start != self.config.paths, "other folders (paths in node.yaml) take effect at the next start"),
        ]
        notes = [*self.config.notes, self.automation.first.note]
        if (contained := self.containment) is not None:
            parted = contained.summary() if contained.offer.unit else "each task is a systemd unit, with a user of its own"
            notes += [parted, *sandbox.notes(self.config.node.tasks, contained.offer)]
        notes.append(self._wake_alarm.trouble)
        notes += [*(text for true, text in later if true), self.task_note(), *self._repairs]
        return [note for note in notes if note]


# The settings that parts are made from. Limits and task types are read at every use.
_PARTS: Final[dict[str, Callable[[Config], object]]] = {
    "control": lambda c: (c.node_id, c.node.control),
    "fleet": lambda c: c.node.control.source == "nats",
    "source": lambda c: (
        (c.node_id, c.node.control, c.node.gpu.presence, c.node.work.wake, sorted(c.node.tasks)),
        (c.runtime.execution.heartbeat_interval_sec, c.runtime.execution.retry_on_disconnect),
        c.runtime.execution.poll_interval_sec if c.node.control.source == "nats" else None,
    ),
    "sensors": lambda c: (c.node.gpu, c.node.presence, c.node.host, c.node.work),
}
