"""One look without a daemon: check-user and check-gpu (R9, R10), by the daemon's own sensors and the mind's own guards.

    python -I -m supervisor.tools.doctor.one_look user|gpu [--json] [--config DIR]

is what the doors check_user_idle.py and check_gpu_load.py run: as `rae-node check-user` and `check-gpu`, without loading the
command line. Exit 0 = SAFE TO RUN, 1 = DO NOT RUN, and whatever goes wrong is the latter (R12).
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from states.formatting import number
from states.guards import Verdict, gpu_free, user_away
from states.memory import Memory
from states.observation import NEVER, NO_TASK, Automation, Observation
from supervisor.config.load import Config, ConfigErrors, find_folder, load
from supervisor.linux import console as stdout
from supervisor.linux.clock import Clock, SystemClock
from supervisor.linux.control_socket import DaemonDown, DaemonUnresponsive, ask
from supervisor.sensors.base import Presence, PresenceSensor
from supervisor.sensors.observer import SourceReading
from supervisor.sensors.presence.logind import BACK_SIGN, START_SIGN
from supervisor.sensors.sensor_set import SensorSet

ASK_S: Final = 0.2
RECALL_S: Final = 1.0  # a node at work may take a moment


@dataclass(frozen=True, slots=True)
class Check:
    """Safe or not, every reason against it, and what was read."""

    safe: bool
    reasons: tuple[str, ...]
    readings: tuple[dict[str, Any], ...]

    @property
    def headline(self) -> str:
        """`SAFE TO RUN` or `DO NOT RUN: reason`, the first line of the answer."""
        return "SAFE TO RUN" if self.safe else "DO NOT RUN: " + "; ".join(self.reasons)

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {"safe": self.safe, "reasons": list(self.reasons), "readings": list(self.readings)}


@dataclass(frozen=True, slots=True)
class _Look:
    """What one look has seen, as the sensors said it while they watched."""

    observation: Observation
    sources: list[SourceReading]
    contradictions: list[str]
    devices: list[dict[str, Any]]


async def _look(config: Config) -> _Look:
    clock = SystemClock()
    sensors = SensorSet(config, clock)
    seen = asyncio.to_thread(remembered, config, clock)
    _, _, signs = await asyncio.gather(sensors.start(lambda: None), borrow(sensors, config), seen)
    if sensors.observer.presence:  # blind is blind, whatever is remembered
        sensors.observer.presence += signs
    try:
        now_s = clock.now_s()
        observation = sensors.observer.look(now_s, config.limits, Automation(True), NO_TASK)
        sources, contradictions = sensors.observer.sources(now_s), sensors.observer.contradictions(now_s)
        return _Look(observation, sources, contradictions, sensors.gpu.describe())
    finally:
        await sensors.stop()
        await sensors.bus.stop()


async def borrow(sensors: SensorSet, config: Config) -> None:
    """Session agents report to the daemon alone: take from it what they said. Without one nothing is proven by them."""
    with contextlib.suppress(DaemonDown, DaemonUnresponsive, ValueError):
        told = await asyncio.to_thread(ask, config.paths.runtime, "desktop", ASK_S, trusted=True)
        sensors.agent_reports.restore(told.get("desktop"))


class _Remembered(PresenceSensor):
    """What the running node has seen of the person. One look sees no button that was pressed before it, no film that has
    ended; it can only add a sign."""

    name = "rae-node"

    def __init__(self, sign: str, at_s: float) -> None:
        self._sign, self._at_s = sign, at_s

    def latest(self, now_s: float) -> Presence:
        """The newest sign that it has seen."""
        return Presence(self.name, now_s, self._at_s, self._sign)


def remembered(config: Config, clock: Clock) -> tuple[_Remembered, ...]:
    """The newest sign by a running node's sources, if there is one; what it only takes for one, as it has not watched for
    long enough, is none."""
    try:
        told = ask(config.paths.runtime, "status", RECALL_S, trusted=True).get("presence")
    except (DaemonDown, DaemonUnresponsive):
        return ()
    signs: list[tuple[float, str]] = []
    for source in told if isinstance(told, list) else ():
        known = source if isinstance(source, dict) and source.get("present") is False else {}
        idle_s, sign = known.get("idle_s"), known.get("reading")
        if isinstance(idle_s, int | float) and isinstance(sign, str) and sign not in (START_SIGN, BACK_SIGN):
            signs.append((clock.now_s() - max(0.0, float(idle_s)), f"{sign}, as the running node has seen"))
    at_s, sign = max(signs, default=(NEVER, ""))
    return (_Remembered(sign, at_s),) if sign else ()


async def check_user(config: Config) -> Check:
    """R9: no sign of the person for idle_required_minutes, and no GPU process that is not RAE's."""
    look = await _look(config)
    observation = look.observation
    user = user_away.explain(observation, Memory(), config.limits)
    reasons = [] if user.ok is True else [user.reason]
    gpu = observation.gpu
    if gpu.value is None:
        reasons.append(f"GPU processes unknown: {gpu.error}")
    elif gpu.value.foreign:
        reasons.append(gpu_free.explain(observation, Memory(), config.limits).reason)
    readings: list[dict[str, Any]] = [_reading(user), *(_source(source) for source in look.sources)]
    readings[-1] |= {"value": None if gpu.value is None else gpu.value.foreign, "unit": "processes"}
    readings += [{"name": "contradiction", "reason": text, "ok": False} for text in look.contradictions]
    return Check(not reasons, tuple(reasons), tuple(readings))


async def check_gpu(config: Config) -> Check:
    """R10: utilisation and VRAM against the limits; the readings and the limits are printed."""
    look = await _look(config)
    verdict = gpu_free.explain(look.observation, Memory(), config.limits)
    limits = config.limits
    gpu = look.observation.gpu.value
    readings: list[dict[str, Any]] = [_reading(verdict)]
    if gpu is not None and gpu.present:
        readings += [
            _line("GPU utilisation", gpu.percent, limits.max_gpu_percent, "%"),
            _line("VRAM in use by others", gpu.vram_gb, limits.max_vram_gb, "GiB"),
            _line("processes not RAE's", gpu.foreign, 0, "processes"),
        ]
    readings += [{"name": "device", "device": row} for row in look.devices]
    return Check(verdict.ok is True, () if verdict.ok is True else (verdict.reason,), tuple(readings))


def _reading(verdict: Verdict) -> dict[str, Any]:
    return verdict.as_dict()


def _source(source: SourceReading) -> dict[str, Any]:
    return {
        "name": source.source,
        "reason": source.reading,
        "ok": None if source.present is None else not source.present,
        "value": source.idle_s,
        "unit": "s",
        "age_s": source.age_s,
        "quality": str(source.quality),
        "details": list(source.details),
        "line": source.line(),
    }


def _line(name: str, value: float, limit: float, unit: str) -> dict[str, Any]:
    return {"name": name, "value": value, "limit": limit, "unit": unit, "ok": value <= limit}


def answer(which: str, folder: Path | None, *, as_json: bool) -> int:
    """Look at the `user` or the `gpu`, and print the answer; returns the exit code, 0 or 1."""
    try:
        look = check_user if which == "user" else check_gpu
        check = asyncio.run(look(load(find_folder(folder))))
    except ConfigErrors as errors:
        check = Check(False, tuple(map(str, errors.problems)), ())
    except Exception as error:  # noqa: BLE001 - unknown is unsafe (R12)
        check = Check(False, (f"cannot look: {type(error).__name__}: {error}",), ())
    if as_json:
        sys.stdout.write(stdout.document(check.as_dict()) + "\n")
    else:
        sys.stdout.write("\n".join(_lines(check)) + "\n")
    return 0 if check.safe else 1


def _lines(check: Check) -> Iterator[str]:
    yield check.headline
    for reading in check.readings:
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
    """The doors' way in. Wrong usage is a "no" like any other."""
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
    stdout.prepare()
    try:
        code = answer(given.which, given.config, as_json=given.json)
        sys.stdout.flush()
        code = 1 if stdout.reader_left() else code  # a "no" that nobody read is no "yes"
    except stdout.Unwritable as full:
        stdout.drop()
        sys.stderr.write(f"{full.strerror}\n")
        code = 1
    except KeyboardInterrupt:
        code = 1
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
