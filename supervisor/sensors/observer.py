"""The sensors' latest readings → one Observation. Also used without a daemon, by check-user, check-gpu and the demo.

The fusion: one source in error makes the person unknown. Somebody who is there now, or a GPU process that is not
RAE's, moves the last sign to this moment. Otherwise the newest of all signs counts, and it never goes back.

A resume from sleep is a sign: the key or the lid that wakes the machine reaches nobody.

Nothing flaps. One sign means present; absence needs the full idle time. A load above its limit counts at once; a load
below it counts when it has stayed there for `settle_s` seconds, and until then the highest of that time is the reading.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from typing import Any, Final, Generic, TypeVar

from states.formatting import elapsed
from states.limits import Limits
from states.observation import (
    NEVER,
    UNSEEN,
    Automation,
    Cpu,
    Gpu,
    Host,
    Link,
    Observation,
    Person,
    Reading,
    Task,
)
from supervisor.linux.clock import suspended_s
from supervisor.sensors.base import RESUME_SIGN, Presence, PresenceSensor, Quality, Touch
from supervisor.sensors.conflicts import Contradictions, find

T = TypeVar("T")
SUSPENDED_S: Final = 1.0  # a smaller difference between the clocks is no sleep


@dataclass(frozen=True, slots=True)
class SourceReading:
    """What one source says of the person, for `why`, `check-user` and `doctor`. `present` None: not known. `idle_s`:
    seconds since its last sign, None: it knows of none. `age_s`: seconds since it was read. `headings`: what it looks at."""

    source: str
    reading: str
    present: bool | None
    idle_s: float | None
    age_s: float | None
    quality: Quality
    headings: dict[str, list[str]] = field(default_factory=dict)

    @property
    def details(self) -> list[str]:
        return [line for lines in self.headings.values() for line in lines]

    def as_dict(self) -> dict[str, Any]:
        """The JSON form; keys are stable."""
        fields = asdict(self)
        del fields["headings"]
        return fields | {"quality": str(self.quality), "details": self.details, "line": self.line()}

    def line(self) -> str:
        """In one line: the reading, when it was a sign, how old the look is, and how it was made."""
        ago = "" if self.idle_s is None or self.present is not False else f", {elapsed(self.idle_s)} ago"
        read = "" if self.age_s is None or self.age_s < 1.0 else f", read {elapsed(self.age_s)} ago"
        return f"{self.reading}{ago} ({self.quality}{read})"


class SettledPeak(Generic[T]):
    """A reading that was `over` its limit counts until it has been below for `settle_s` seconds. `most`: the higher of two."""

    def __init__(self, settle_s: float, over: Callable[[T, Limits], bool], most: Callable[[T, T], T]) -> None:
        self._settle_s, self._is_over, self._most = settle_s, over, most
        self._peaks: list[tuple[float, T]] = []
        self._over = False

    def settled(self, reading: Reading[T], limits: Limits, now_s: float) -> Reading[T]:
        """The reading, or the highest of those that were over their limit less than `settle_s` seconds ago."""
        if (value := reading.value) is None:
            return reading
        self._peaks = [(at_s, v) for at_s, v in self._peaks if 0 <= now_s - at_s < self._settle_s]
        peak, self._over = value, self._is_over(value, limits)
        for _, v in self._peaks:
            peak = self._most(peak, v)
        if self._over and self._settle_s > 0:
            # An older one that is no higher adds nothing, so the list stays short.
            self._peaks = [(at_s, v) for at_s, v in self._peaks if self._most(value, v) != value] + [(now_s, value)]
        if peak == value:
            return reading
        return replace(reading, value=peak, source=f"{reading.source}, highest of the last seconds")

    def due_s(self, now_s: float) -> float | None:
        """Seconds until it has settled; None: it has, or it is too high now."""
        if self._over or not self._peaks:
            return None
        return max(0.0, self._peaks[-1][0] + self._settle_s - now_s)


class Observer:
    """Asks every sensor for what it knows now; none of them blocks.

    `first_sign_s`: a moment that counts as a sign of the person, because sources that only report events (a game's start, a
    switch of sessions) could not see what was before it. NEVER for a single look.
    `settle_s`: how long a load must have been below its limit to count as below it, in seconds.
    `suspended_s`: the time that the machine has been suspended since boot. A resume is a sign of the person.
    """

    def __init__(
        self,
        presence: Sequence[PresenceSensor],
        gpu: Callable[[float], Reading[Gpu]],
        cpu: Callable[[float], Reading[Cpu]],
        host: Callable[[float], Reading[Host]],
        first_sign_s: float = NEVER,
        settle_s: float = 0.0,
        suspended_s: Callable[[], float] = suspended_s,
    ) -> None:
        self.presence = tuple(presence)
        self.gpu = gpu
        self.cpu = cpu
        self.host = host
        self._last = Person(first_sign_s, "node started")
        self._suspended_s, self._slept_s = suspended_s, suspended_s()
        self._gpu_peak: SettledPeak[Gpu] = SettledPeak(settle_s, _gpu_over, _most_of_gpus)
        self._cpu_peak: SettledPeak[Cpu] = SettledPeak(settle_s, _cpu_over, _most_of_cpus)
        self._reports: list[Presence] = []
        self._gpu: Reading[Gpu] = UNSEEN
        self._contradictions = Contradictions()
        self._news: list[str] = []

    def look(
        self,
        now_s: float,
        limits: Limits,
        automation: Automation,
        task: Task,
        link: Link = Link.UP,
        link_reason: str = "",
    ) -> Observation:
        """One whole look at `now_s` (seconds of CLOCK_BOOTTIME)."""
        gpu = self._gpu = _reading("GPU", self.gpu, now_s)
        return Observation(
            now_s,
            automation,
            self._person(now_s, gpu, limits),
            self._gpu_peak.settled(gpu, limits, now_s),
            self._cpu_peak.settled(_reading("CPU", self.cpu, now_s), limits, now_s),
            _reading("host", self.host, now_s),
            task,
            link,
            link_reason,
        )

    def sources(self, now_s: float) -> list[SourceReading]:
        """Every source with its reading, time and quality, and the GPU's processes; for people and scripts.

        As of the last look: a look takes the events that would wake the loop, so only the loop may look.
        """
        found = []
        for sensor, report in zip(self.presence, self._reports, strict=False):
            idle_s, age_s = now_s - report.last_sign_at_s, now_s - report.read_at_s
            found.append(
                SourceReading(
                    report.source,
                    report.error or report.present or report.sign or "no sign of the person",
                    None if report.error else bool(report.present),
                    idle_s if isfinite(idle_s) else None,
                    age_s if isfinite(age_s) else None,
                    Quality.UNKNOWN if report.error else report.quality,
                    sensor.details(),
                )
            )
        return [*found, _gpu_source(self._gpu, now_s)]

    def contradictions(self, now_s: float) -> list[str]:
        """The contradictions that the last look found, one line each."""
        return [found.line(now_s) for found in self._contradictions.found]

    def news(self) -> list[str]:
        """Contradictions that began or ended since the last call, one line each."""
        news, self._news = self._news, []
        return news

    def due_s(self, now_s: float) -> float | None:
        """Seconds until another look may say something else although nothing happens; None: never."""
        waits = [part.due_s(now_s) for part in (self._gpu_peak, self._cpu_peak, self._contradictions)]
        return min((wait_s for wait_s in waits if wait_s is not None), default=None)

    def _person(self, now_s: float, gpu: Reading[Gpu], limits: Limits) -> Reading[Person]:
        reports = self._reports = [_report(sensor, now_s) for sensor in self.presence]
        slept_s = self._suspended_s()
        if slept_s - self._slept_s > SUSPENDED_S:
            self._last = Person(now_s, RESUME_SIGN)
        self._slept_s = max(self._slept_s, slept_s)  # a pause between the two clocks' readings only makes it smaller
        person, source, read_at_s = fuse(reports, now_s, self._last)
        touches = []
        if gpu.value is not None and gpu.value.foreign > 0:
            who = gpu.value.foreign_names[0] if gpu.value.foreign_names else "a process that is not RAE's"
            person, source = Person(now_s, f"GPU used by {who}", lasts=True), gpu.source
            touches = [Touch(now_s, gpu.source, person.sign)]
        self._last = person
        found = find(reports, touches, now_s, limits.idle_required_s) if limits.detect_active_user else []
        self._news += self._contradictions.update(found, now_s)
        blind = [r for r in reports if r.error]
        if blind and limits.detect_active_user:
            return Reading(None, "; ".join(r.error for r in blind), ", ".join(r.source for r in blind), now_s)
        if not reports:
            return Reading(None, "no source of presence is switched on (presence.* in node.yaml)", "", now_s)
        return Reading(person, "", source, read_at_s)


def _report(sensor: PresenceSensor, now_s: float) -> Presence:
    try:
        return sensor.latest(now_s)
    except Exception as error:  # noqa: BLE001 - after a fault of ours in a sensor the person is unknown
        return Presence(sensor.name, now_s, error=f"{sensor.name} failed: {type(error).__name__}: {error}")


def _gpu_over(gpu: Gpu, limits: Limits) -> bool:
    return gpu.present and (gpu.percent > limits.max_gpu_percent or gpu.vram_gb > limits.max_vram_gb)


def _cpu_over(cpu: Cpu, limits: Limits) -> bool:
    return cpu.percent > limits.max_cpu_percent


def _most_of_gpus(one: Gpu, other: Gpu) -> Gpu:
    """`one`, with the higher load and the higher use of VRAM of both; a GPU that is gone has none."""
    if not one.present:
        return one
    busy, full = (other if other.percent > one.percent else one), (other if other.vram_gb > one.vram_gb else one)
    return replace(one, percent=busy.percent, busiest=busy.busiest, vram_gb=full.vram_gb, fullest=full.fullest)


def _most_of_cpus(one: Cpu, other: Cpu) -> Cpu:
    return other if other.percent > one.percent else one


def _gpu_source(gpu: Reading[Gpu], now_s: float) -> SourceReading:
    age_s = now_s - gpu.read_at_s if isfinite(gpu.read_at_s) else None
    if gpu.value is None:
        return SourceReading("gpu processes", gpu.error, None, None, age_s, Quality.UNKNOWN)
    if not gpu.value.foreign:
        return SourceReading("gpu processes", "none that is not RAE's", False, None, age_s, Quality.POLLED)
    who = ", ".join(gpu.value.foreign_names) or f"{gpu.value.foreign} that are not RAE's"
    return SourceReading("gpu processes", f"GPU used by {who}", True, 0.0, age_s, Quality.POLLED)


def _reading(name: str, look: Callable[[float], Reading[T]], now_s: float) -> Reading[T]:
    try:
        return look(now_s)
    except Exception as error:  # noqa: BLE001 - as above
        return Reading(None, f"its sensor failed: {type(error).__name__}: {error}", name, now_s)


def fuse(reports: Sequence[Presence], now_s: float, last: Person) -> tuple[Person, str, float]:
    """The newest of all signs, its source, and when the oldest of the reports was made. Before boot nobody was there."""
    read_at_s = min((r.read_at_s for r in reports), default=NEVER)
    for report in reports:
        if report.present:
            return Person(now_s, report.present, lasts=True), report.source, read_at_s
    person, source = replace(last, lasts=False), "memory"
    for report in reports:
        if report.last_sign_at_s >= person.last_sign_at_s and report.last_sign_at_s != NEVER:
            person, source = Person(report.last_sign_at_s, report.sign or "user active"), report.source
    if person.last_sign_at_s < 0.0:
        person = replace(person, last_sign_at_s=0.0, sign="machine started")
    return person, source, read_at_s
