"""The sensors' latest readings → one Observation. Also used, without a daemon, by check-user, check-gpu and the demo.

The fusion: any source that cannot tell makes the person unknown (R12); whoever is there now, or a GPU process that is
not RAE's (R9), moves the last sign to this moment; else the newest of all signs counts, and it never goes back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from states.limits import Limits
from states.observation import (
    NEVER,
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
from supervisor.sensors.base import Presence, PresenceSensor

T = TypeVar("T")


class Observer:
    """Asks every sensor for what it knows now; none of them blocks.

    `first_sign_s`: a moment that counts as a sign of the person, because a source that only tells events (a game's
    start, a switch of sessions) could not see what was before (house: since when). NEVER where one look is all there is.
    """

    def __init__(
        self,
        presence: Sequence[PresenceSensor],
        gpu: Callable[[float], Reading[Gpu]],
        cpu: Callable[[float], Reading[Cpu]],
        host: Callable[[float], Reading[Host]],
        first_sign_s: float = NEVER,
    ) -> None:
        self.presence = tuple(presence)
        self.gpu = gpu
        self.cpu = cpu
        self.host = host
        self._last = Person(first_sign_s, "node started")

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
        gpu = _reading("GPU", self.gpu, now_s)
        return Observation(
            now_s,
            automation,
            self._person(now_s, gpu, limits),
            gpu,
            _reading("CPU", self.cpu, now_s),
            _reading("host", self.host, now_s),
            task,
            link,
            link_reason,
        )

    def reports(self, now_s: float) -> list[Presence]:
        """What each source of presence says, for `check-user` and `status`."""
        return [_report(sensor, now_s) for sensor in self.presence]

    def _person(self, now_s: float, gpu: Reading[Gpu], limits: Limits) -> Reading[Person]:
        reports = self.reports(now_s)
        person, source, read_at_s = fuse(reports, now_s, self._last)
        if gpu.value is not None and gpu.value.foreign > 0:
            who = gpu.value.foreign_names[0] if gpu.value.foreign_names else "a process that is not RAE's"
            person, source = Person(now_s, f"GPU used by {who}"), gpu.source
        self._last = person
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
