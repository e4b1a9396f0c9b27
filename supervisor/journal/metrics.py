"""Metrics without a port: Prometheus text in a file for node_exporter's textfile collector.

Imported only when `metrics.file` is configured: the client library costs 3 MiB. Nothing here names a task or a person.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from states.effects import Effect
from states.ending import Ending, EndingKind
from states.guards import GUARDS
from states.lifecycle import Outcome, Plan
from states.limits import Limits
from states.memory import Memory, State
from states.observation import Link, Observation
from states.table import ROWS
from supervisor import VERSION
from supervisor.linux.small_files import replace_plain
from supervisor.sources.base import LinkStatus

EVERY_S: Final = 15.0
YIELD_BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
MODE: Final = 0o644  # node_exporter reads it; it names no task and no person


class Metrics:
    """Counts what ticks decide and do. Writes `path` at every change of state, otherwise every 15 s. `wall_s`: seconds since
    the epoch. Every series begins at 0, so that "never happened" differs from "not known"."""

    def __init__(self, path: Path, wall_s: Callable[[], float] = time.time) -> None:
        self._path = path
        self._wall_s = wall_s
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry()
        self._state = Gauge("rae_node_state", "1 for the state that the node is in", ["state"], registry=registry)
        self._seconds = Counter("rae_node_state_seconds", "Seconds spent in each state", ["state"], registry=registry)
        self._guard = Gauge("rae_node_guard", "Verdict: 1 ok, 0 not ok, -1 unknown", ["guard"], registry=registry)
        self._reading = Gauge("rae_node_reading", "Readings that guards judge", ["reading", "unit"], registry=registry)
        self._limit = Gauge("rae_node_limit", "Limits that readings are held against", ["reading", "unit"], registry=registry)
        self._rows = Counter("rae_node_rows", "Transitions by row of the table", ["row"], registry=registry)
        self._tasks = Counter("rae_node_tasks", "Tasks by outcome", ["outcome"], registry=registry)
        self._failures = Counter("rae_node_effect_failures", "Effects that failed", ["effect"], registry=registry)
        self._yield = Histogram(
            "rae_node_yield_seconds", "From the decision to no process left", buckets=YIELD_BUCKETS_S, registry=registry
        )
        self._link = Gauge("rae_node_link_up", "1 while the control node is reached", registry=registry)
        self._losses = Counter("rae_node_link_losses", "Times that the link went down", registry=registry)
        self._errors = Counter("rae_node_link_errors", "Troubles on the way to the control node", registry=registry)
        self._outbox = Gauge("rae_node_outbox", "Outcomes not delivered yet", registry=registry)
        self._updated = Gauge("rae_node_updated_timestamp_seconds", "When this was written", registry=registry)
        for counter, values in (
            (self._seconds, tuple(State)), (self._rows, tuple(row.id for row in ROWS)),
            (self._tasks, tuple(EndingKind)), (self._failures, tuple(Effect)),
        ):
            for value in values:
                counter.labels(value)
        info = Gauge("rae_node_build_info", "The version", ["version"], registry=registry)
        info.labels(VERSION).set(1)
        self._written_s = float("-inf")
        self._last_s: float | None = None
        self._last_state = State.DISABLED
        self._was_up = False
        self._error_s: float | None = None
        self.trouble = ""

    def tick(self, plan: Plan, outcome: Outcome, memory: Memory, limits: Limits, link: LinkStatus) -> None:
        """Count one tick. Never raises: an error of the file is in `trouble`."""
        observation = plan.observation
        if self._last_s is not None:
            self._seconds.labels(self._last_state).inc(max(0.0, observation.now_s - self._last_s))
        self._last_s, self._last_state = observation.now_s, memory.state
        if plan.row is not None and not outcome.vetoed:
            self._rows.labels(plan.row.id).inc()
        self._effects(outcome)
        up = observation.link is Link.UP
        if self._was_up and not up:
            self._losses.inc()
        self._was_up = up
        if link.error_s is not None and link.error_s != self._error_s:
            self._errors.inc()
        self._error_s = link.error_s
        moved = plan.row is not None
        if moved or observation.now_s - self._written_s >= EVERY_S:
            self._written_s = observation.now_s
            self._gauges(observation, memory, limits, link.outbox)
            self._write()

    def _effects(self, outcome: Outcome) -> None:
        for result in outcome.results:
            if not result.ok:
                self._failures.labels(result.effect).inc()
            elif result.effect is Effect.STOP:
                self._yield.observe(result.took_s)
            elif isinstance(result.report, Ending):
                self._tasks.labels(result.report.kind).inc()

    def _gauges(self, o: Observation, memory: Memory, limits: Limits, outbox: int) -> None:
        for state in State:
            self._state.labels(state).set(state is memory.state)
        for guard in GUARDS:
            self._guard.labels(guard.name).set({True: 1, False: 0, None: -1}[guard.judge(o, memory, limits)])
        nan = float("nan")
        gpu, cpu, person = o.gpu.value, o.cpu.value, o.person.value
        present = gpu is not None and gpu.present
        for name, unit, value, limit in (
            ("user_idle", "seconds", nan if person is None else o.now_s - person.last_sign_at_s, limits.idle_required_s),
            ("gpu", "percent", gpu.percent if gpu is not None and present else nan, limits.max_gpu_percent),
            ("vram", "gib", gpu.vram_gb if gpu is not None and present else nan, limits.max_vram_gb),
            ("gpu_foreign", "processes", gpu.foreign if gpu is not None and present else nan, 0),
            ("cpu", "percent", nan if cpu is None else cpu.percent, limits.max_cpu_percent),
        ):
            self._reading.labels(name, unit).set(value)
            self._limit.labels(name, unit).set(limit)
        self._link.set(o.link is Link.UP)
        self._outbox.set(outbox)

    def _write(self) -> None:
        """Write the whole file or nothing: the collector never sees a part, nor the draft (its name does not end in .prom)."""
        self._updated.set(self._wall_s())
        try:
            replace_plain(self._path, generate_latest(self._registry), MODE)
            self.trouble = ""
        except OSError as error:
            self.trouble = f"metrics cannot be written to {self._path}: {error.strerror or error}"

    def close(self) -> None:
        """The node has stopped: its figures are no longer true."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
