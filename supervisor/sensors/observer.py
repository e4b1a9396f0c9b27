"""The sensors' latest readings → one Observation. Also used, without a daemon, by check-user, check-gpu and the demo.

The fusion: any source that cannot tell makes the person unknown (R12); whoever is there now, or a GPU process that is
not RAE's (R9), moves the last sign to this moment; else the newest of all signs counts, and it never goes back. Sources
that contradict each other are told (contradictions.py).

Coming and going have their own thresholds, so that nothing flaps: any sign is somebody there at once, and nobody is there
only after the whole idle time without any; CPU, VRAM or GPU load above its limit counts at once, and as below it only
when it has stayed there for `settle_s` seconds: until then the highest of that time is the reading.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Any, Generic, TypeVar

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
from states.words import elapsed
from supervisor.sensors.base import Presence, PresenceSensor, Quality
from supervisor.sensors.conflicts import Contradictions, Touch, find

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SourceReading:
    """What one source says of the person, for `why`, `check-user` and `doctor`. `present` None: it cannot tell. `idle_s`:
    seconds since its last sign, None: it knows of none. `age_s`: seconds since it was read."""

    source: str
    reading: str
    present: bool | None
    idle_s: float | None
    age_s: float | None
    quality: Quality
    details: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The JSON form; keys are stable."""
        return {**asdict(self), "quality": str(self.quality), "details": list(self.details), "line": self.line()}

    def line(self) -> str:
        """In one line: the reading, when it was a sign, how old the look is, and how it was come by."""
        ago = "" if self.idle_s is None or self.present is not False else f", {elapsed(self.idle_s)} ago"
        read = "" if self.age_s is None or self.age_s < 1.0 else f", read {elapsed(self.age_s)} ago"
        return f"{self.reading}{ago} ({self.quality}{read})"


class SettledPeak(Generic[T]):
    """A reading that has been above its limit counts as that until it was below for `settle_s` seconds."""

    def __init__(self, settle_s: float) -> None:
        self._settle_s = settle_s
        self._highest: list[tuple[float, T]] = []
        self._over = False

    def highest(self, value: T, over: bool, now_s: float, most: Callable[[T, T], T]) -> T:
        """`value`, or the highest of those that were over their limit less than `settle_s` seconds ago."""
        self._highest = [(at_s, v) for at_s, v in self._highest if 0 <= now_s - at_s < self._settle_s]
        held, self._over = value, over
        for _, v in self._highest:
            held = most(held, v)
        if over and self._settle_s > 0:
            # An older one that is no higher tells nothing more, so that the list stays short.
            self._highest = [(at_s, v) for at_s, v in self._highest if most(value, v) != value] + [(now_s, value)]
        return held

    def due_s(self, now_s: float) -> float | None:
        """Seconds until it has settled; None: it has, or is too high even now."""
        if self._over or not self._highest:
            return None
        return max(0.0, self._highest[-1][0] + self._settle_s - now_s)


class Observer:
    """Asks every sensor for what it knows now; none of them blocks.

    `first_sign_s`: a moment that counts as a sign of the person, because a source that only tells events (a game's
    start, a switch of sessions) could not see what was before (house: since when). NEVER where one look is all there is.
    `settle_s`: how long a load must have been below its limit to count as below it, in seconds; 0: at once.
    """

    def __init__(
        self,
        presence: Sequence[PresenceSensor],
        gpu: Callable[[float], Reading[Gpu]],
        cpu: Callable[[float], Reading[Cpu]],
        host: Callable[[float], Reading[Host]],
        first_sign_s: float = NEVER,
        settle_s: float = 0.0,
    ) -> None:
        self.presence = tuple(presence)
        self.gpu = gpu
        self.cpu = cpu
        self.host = host
        self._last = Person(first_sign_s, "node started")
        self._held_gpu: SettledPeak[Gpu] = SettledPeak(settle_s)
        self._held_cpu: SettledPeak[Cpu] = SettledPeak(settle_s)
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
            self._settled_gpu(gpu, limits, now_s),
            self._settled_cpu(_reading("CPU", self.cpu, now_s), limits, now_s),
            _reading("host", self.host, now_s),
            task,
            link,
            link_reason,
        )

    def reports(self, now_s: float) -> list[Presence]:
        """What each source of presence says."""
        return [_report(sensor, now_s) for sensor in self.presence]

    def sources(self, now_s: float) -> list[SourceReading]:
        """Every source with its reading, time and quality, the GPU's processes among them; for people and scripts. As of the
        last look: a look takes the events that would else wake the loop, so it is the loop's alone."""
        found = []
        for sensor, report in zip(self.presence, self._reports, strict=False):
            describe: Callable[[], list[str]] = getattr(sensor, "describe", list)
            found.append(_source(report, now_s, describe()))
        return [*found, _gpu_source(self._gpu, now_s)]

    def contradictions(self, now_s: float) -> list[str]:
        """What the last look found of sources that contradict each other, a line each."""
        return [found.tell(now_s) for found in self._contradictions.found]

    def news(self) -> list[str]:
        """Contradictions that began or are over since this was last asked, a line each."""
        news, self._news = self._news, []
        return news

    def due_s(self, now_s: float) -> float | None:
        """Seconds until another look may say something else although nothing happens; None: never."""
        waits = [part.due_s(now_s) for part in (self._held_gpu, self._held_cpu, self._contradictions)]
        return min((wait_s for wait_s in waits if wait_s is not None), default=None)

    def _settled_gpu(self, reading: Reading[Gpu], limits: Limits, now_s: float) -> Reading[Gpu]:
        gpu = reading.value
        if gpu is None or not gpu.present:
            return reading
        over = gpu.percent > limits.max_gpu_percent or gpu.vram_gb > limits.max_vram_gb
        return _held(reading, self._held_gpu.highest(gpu, over, now_s, _most_of_gpus))

    def _settled_cpu(self, reading: Reading[Cpu], limits: Limits, now_s: float) -> Reading[Cpu]:
        if reading.value is None:
            return reading
        over = reading.value.percent > limits.max_cpu_percent
        return _held(reading, self._held_cpu.highest(reading.value, over, now_s, _most_of_cpus))

    def _person(self, now_s: float, gpu: Reading[Gpu], limits: Limits) -> Reading[Person]:
        reports = self._reports = self.reports(now_s)
        person, source, read_at_s = fuse(reports, now_s, self._last)
        if gpu.value is not None and gpu.value.foreign > 0:
            who = gpu.value.foreign_names[0] if gpu.value.foreign_names else "a process that is not RAE's"
            person, source = Person(now_s, f"GPU used by {who}"), gpu.source
        self._last = person
        further = [Touch(now_s, gpu.source, person.sign)] if gpu.value is not None and gpu.value.foreign > 0 else []
        found = find(reports, further, now_s, limits.idle_required_s) if limits.detect_active_user else []
        self._news += self._contradictions.look(found, now_s)
        blind = [r for r in reports if r.error]
        if blind and limits.detect_active_user:
            return Reading(None, "; ".join(r.error for r in blind), ", ".join(r.source for r in blind), now_s)
        if not reports:
            return Reading(None, "no source of presence is switched on (presence.* in node.yaml)", "", now_s)
        return Reading(person, "", source, read_at_s)


def _report(sensor: PresenceSensor, now_s: float) -> Presence:
    try:
        return sensor.latest(now_s)
    except Exception as error:  # noqa: BLE001 - a fault of ours in a sensor is one more way not to know (R12)
        return Presence(sensor.name, now_s, error=f"{sensor.name} failed: {type(error).__name__}: {error}")


def _held(reading: Reading[T], held: T) -> Reading[T]:
    return reading if held == reading.value else replace(reading, value=held, source=f"{reading.source}, highest of late")


def _most_of_gpus(one: Gpu, other: Gpu) -> Gpu:
    """`one`, with the load and VRAM of whichever has more of it."""
    return replace(one, percent=max(one.percent, other.percent), vram_gb=max(one.vram_gb, other.vram_gb))


def _most_of_cpus(one: Cpu, other: Cpu) -> Cpu:
    return other if other.percent > one.percent else one


def _source(report: Presence, now_s: float, details: Sequence[str]) -> SourceReading:
    idle_s, age_s = now_s - report.last_sign_at_s, now_s - report.read_at_s
    return SourceReading(
        report.source,
        report.error or report.present or report.sign or "no sign of the person",
        None if report.error else bool(report.present),
        idle_s if isfinite(idle_s) else None,
        age_s if isfinite(age_s) else None,
        Quality.UNKNOWN if report.error else report.quality,
        tuple(line for line in details if not report.error or not line.endswith(report.error)),
    )


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
    """(the newest sign of all, its source, when the oldest of the reports was made). Before boot nobody was there."""
    read_at_s = min((r.read_at_s for r in reports), default=NEVER)
    for report in reports:
        if report.present:
            return Person(now_s, report.present), report.source, read_at_s
    person, source = last, "memory"
    for report in reports:
        if report.last_sign_at_s >= person.last_sign_at_s and report.last_sign_at_s != NEVER:
            person, source = Person(report.last_sign_at_s, report.sign or "user active"), report.source
    if person.last_sign_at_s < 0.0:
        person = replace(person, last_sign_at_s=0.0, sign="machine started")
    return person, source, read_at_s
