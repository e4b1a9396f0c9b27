"""One look beside the daemon: check-user and check-gpu, by the daemon's own sensors and guards. What was before the look only
the daemon knows, so without it check-user says no.

    python -I -m supervisor.tools.doctor.one_look user|gpu [--json] [--config DIR]

The installed scripts check_user_idle.py and check_gpu_load.py run this: the same as `rae-node check-user` and `check-gpu`,
without loading the whole command line. Exit 0 = SAFE TO RUN, 1 = DO NOT RUN, also on any error.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, Final

from states.formatting import number
from states.guards import gpu_free, user_away
from states.memory import Memory
from states.observation import NEVER, NO_TASK, Automation, Observation
from supervisor.config.load import Config, ConfigErrors, find_folder, load
from supervisor.linux import console
from supervisor.linux.clock import Clock, SystemClock
from supervisor.linux.control_socket import DaemonDown, DaemonUnresponsive, ask
from supervisor.sensors.base import Presence, PresenceSensor, Quality
from supervisor.sensors.observer import SourceReading
from supervisor.sensors.sensor_set import SensorSet

ASK_S: Final = 0.2
RECALL_S: Final = 2.0  # a busy node may take a moment
SAME_S: Final = 2.0  # the guard and its source are not asked in the same moment


@dataclass(frozen=True, slots=True)
class Answer:
    """Every reason against work, and what was read. It is safe where there is no reason."""

    reasons: tuple[str, ...]
    readings: tuple[dict[str, Any], ...] = ()

    @property
    def headline(self) -> str:
        """`SAFE TO RUN` or `DO NOT RUN: reason`, the first line of the answer."""
        return "DO NOT RUN: " + "; ".join(self.reasons) if self.reasons else "SAFE TO RUN"

    def as_dict(self) -> dict[str, Any]:
        return {"safe": not self.reasons, "reasons": list(self.reasons), "readings": list(self.readings)}


@dataclass(frozen=True, slots=True)
class _Look:
    """What the sensors reported in one look."""

    observation: Observation
    sources: list[SourceReading]
    contradictions: list[str]
    devices: list[dict[str, Any]]


@asynccontextmanager
async def watching(config: Config, clock: Clock) -> AsyncIterator[SensorSet]:
    """All sensors, started; stopped at the end. Session agents report only to the daemon, so it is asked for their reports;
    without a daemon they prove nothing."""

    async def take_agent_reports() -> None:
        with contextlib.suppress(DaemonDown, DaemonUnresponsive, ValueError):
            answer = await asyncio.to_thread(ask, config.paths.runtime, "desktop", ASK_S)
            sensors.agent_reports.restore(answer.get("desktop"))

    sensors = SensorSet(config, clock)
    await asyncio.gather(sensors.start(lambda: None), take_agent_reports())
    try:
        yield sensors
    finally:
        await sensors.stop()
        await sensors.bus.stop()


async def look_once(config: Config) -> _Look:
    clock = SystemClock()
    seen = asyncio.create_task(asyncio.to_thread(remembered, config, clock))
    async with watching(config, clock) as sensors:
        before, observer = await seen, sensors.observer
        if observer.presence:  # with no source at all, an old sign proves nothing
            observer.presence += (before,)
        now_s = clock.now_s()
        observation = observer.look(now_s, config.limits, Automation(True), NO_TASK)
        return _Look(observation, observer.sources(now_s), observer.contradictions(now_s), sensors.gpu.describe())


def gpu_is_absent(config: Config) -> bool:
    """Whether this machine certainly has no GPU that can be lent; False while that is not known."""

    async def look() -> bool:
        sensors = SensorSet(config, SystemClock())
        await sensors.gpu.start(lambda: None)
        try:
            gpu = sensors.gpu.latest(SystemClock().now_s()).value
            return gpu is not None and not gpu.present
        finally:
            await sensors.gpu.stop()

    return asyncio.run(look())


class _Remembered(PresenceSensor):
    """What was before the look, as the running node knows it: its newest sign, or why that is not known."""

    name = "rae-node"

    def __init__(self, at_s: float, sign: str = "", error: str = "", quality: Quality = Quality.EVENT) -> None:
        self._at_s, self._sign, self._error, self._quality = at_s, sign, error, quality

    def latest(self, now_s: float) -> Presence:
        return Presence(self.name, now_s, self._at_s, self._sign, error=self._error, quality=self._quality)


def remembered(config: Config, clock: Clock) -> _Remembered:
    """One look misses a key that was pressed before it, a film that has ended, and who has logged out. Only a running node has
    seen them, since its start, which counts as a sign. Without its answer nobody knows."""

    def unknown(why: object) -> _Remembered:
        return _Remembered(NEVER, error=f"what was before this look is not known: {why}")

    try:
        status = ask(config.paths.runtime, "status", RECALL_S)
    except (DaemonDown, DaemonUnresponsive) as missing:
        return unknown(missing)
    guards, sources = status.get("guards"), status.get("presence")
    known = next((g for g in _dicts(guards) if g.get("name") == user_away.name), {})
    idle_s = known.get("value")
    if known.get("ok") is None and isinstance(known.get("reason"), str):
        return unknown(f"the running node says: {known['reason']}")
    if not isinstance(idle_s, int | float) or isinstance(idle_s, bool):
        return unknown("the running node does not say since when nobody is here; is it of this version?")
    newest = min(_dicts(sources), key=_idle_s, default={})
    if _idle_s(newest) > idle_s + SAME_S:
        newest = {}
    sign = f"{newest.get('reading', 'user active')}, as the running node has seen"
    quality = Quality.ASSUMED if newest.get("quality") == Quality.ASSUMED else Quality.EVENT
    return _Remembered(clock.now_s() - max(0.0, float(idle_s)), sign, quality=quality)


def _dicts(listed: Any) -> list[dict[str, Any]]:
    return [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []


def _idle_s(source: dict[str, Any]) -> float:
    """Seconds since a source's last sign; infinite where it has none."""
    idle_s = 0.0 if source.get("present") is True else source.get("idle_s")
    return idle_s if isinstance(idle_s, int | float) and isinstance(source.get("reading"), str) else inf


def check_user(look: _Look, config: Config) -> Answer:
    """Safe: no sign of the person for idle_required_minutes, and no GPU process that is not RAE's."""
    observation = look.observation
    user = user_away.explain(observation, Memory(), config.limits)
    reasons = [] if user.ok is True else [user.reason]
    gpu = observation.gpu
    if gpu.value is None:
        reasons.append(f"GPU processes unknown: {gpu.error}")
    elif gpu.value.foreign:
        reasons.append(gpu_free.explain(observation, Memory(), config.limits).reason)
    readings: list[dict[str, Any]] = [user.as_dict(), *map(_source, look.sources)]
    readings[-1] |= {"value": None if gpu.value is None else gpu.value.foreign, "unit": "processes"}
    readings += [{"name": "contradiction", "reason": text, "ok": False} for text in look.contradictions]
    return Answer(tuple(reasons), tuple(readings))


def check_gpu(look: _Look, config: Config) -> Answer:
    """Safe: utilisation and VRAM are within their limits. The readings hold both."""
    verdict, limits = gpu_free.explain(look.observation, Memory(), config.limits), config.limits
    gpu = look.observation.gpu.value
    readings: list[dict[str, Any]] = [verdict.as_dict()]
    if gpu is not None and gpu.present:
        for name, value, limit, unit in (
            ("GPU utilisation", gpu.percent, limits.max_gpu_percent, "%"),
            ("VRAM in use by others", gpu.vram_gb, limits.max_vram_gb, "GiB"),
            ("processes not RAE's", gpu.foreign, 0, "processes"),
        ):
            readings.append({"name": name, "value": value, "limit": limit, "unit": unit, "ok": value <= limit})
    readings += [{"name": "device", "device": row} for row in look.devices]
    return Answer(() if verdict.ok is True else (verdict.reason,), tuple(readings))


def _source(source: SourceReading) -> dict[str, Any]:
    fields, present = source.as_dict(), source.present
    return {
        "name": source.source, "reason": source.reading, "ok": None if present is None else not present,
        "value": source.idle_s, "unit": "s", **{name: fields[name] for name in ("age_s", "quality", "details", "line")},
    }  # fmt: skip


def answer(which: str, folder: Path | None, *, as_json: bool) -> int:
    """Look at the `user` or the `gpu`, and print the answer; returns the exit code, 0 or 1."""
    try:
        config = load(find_folder(folder))
        look = asyncio.run(look_once(config))
        found = check_user(look, config) if which == "user" else check_gpu(look, config)
    except ConfigErrors as errors:
        found = Answer(tuple(map(str, errors.problems)))
    except Exception as error:  # noqa: BLE001 - unknown is unsafe
        found = Answer((f"cannot look: {type(error).__name__}: {error}",))
    text = console.document(found.as_dict()) if as_json else "\n".join(_lines(found))
    sys.stdout.write(text + "\n")
    return 1 if found.reasons else 0


def _lines(found: Answer) -> Iterator[str]:
    yield found.headline
    for reading in found.readings:
        if device := reading.get("device"):
            yield "  device: " + ", ".join(f"{k} {v}" for k, v in device.items() if v not in (None, "", []))
            continue
        yield f"  {reading['name']}: {_value(reading)}"
        yield from (f"    {detail}" for detail in reading.get("details", ()))


def _value(reading: dict[str, Any]) -> str:
    if "reason" in reading:
        return str(reading.get("line", reading["reason"]))
    return f"{number(reading['value'])} {reading['unit']}, limit {number(reading['limit'])} {reading['unit']}"


def main(argv: list[str]) -> int:
    """The entry point of the installed scripts. Wrong usage is a "no", like any other error."""
    import argparse

    parser = argparse.ArgumentParser(
        prog={"user": "check_user_idle.py", "gpu": "check_gpu_load.py"}.get(argv[0] if argv else "", "checks"),
        description="Says whether it is safe to run: exit 0 = SAFE TO RUN, 1 = DO NOT RUN.",
    )
    parser.add_argument("which", choices=("user", "gpu"), help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--config", metavar="DIR", type=Path, help="folder with runtime.yaml and node.yaml")
    try:
        given = parser.parse_args(argv)
    except SystemExit as end:
        if end.code:
            sys.stdout.write("DO NOT RUN: wrong usage, see --help\n")
        return 1 if end.code else 0
    console.prepare()
    try:
        code = answer(given.which, given.config, as_json=given.json)
        sys.stdout.flush()
        code = 1 if console.reader_left() else code  # an answer that nobody read is no "yes"
    except console.Unwritable as full:
        console.drop()
        sys.stderr.write(f"{full.strerror}\n")
        code = 1
    except KeyboardInterrupt:
        code = 1
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
