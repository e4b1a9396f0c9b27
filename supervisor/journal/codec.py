"""An Observation in the form of `see`, and back: the same form in scripts and in the journal.

Rules of this file: numbers keep every digit, so that a replay judges what was judged; whatever proves nothing is
`unknown`; a reading that was too old when it was looked at is named in `stale`. Cheap to import: the journal uses it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any, Final

from states.limits import Limits
from states.observation import NEVER, Automation, Cpu, Gpu, Host, Link, Observation, Person, Reading, Task, TaskPhase

UNKNOWN: Final = "unknown"
ABSENT: Final = "absent"
GPU_FIELDS: Final = ("percent", "vram_gb", "foreign")
GPU_MORE: Final = ("held", "pinned")  # only where there is something to say
READINGS: Final = ("user", "gpu", "cpu", "host")
PHASES: Final = tuple(TaskPhase)
LINKS: Final = tuple(Link)

# "No sign was ever seen" as a number that JSON can hold: thirty thousand years.
EVER_S: Final = 1e12


def see_of(observation: Observation, limits: Limits) -> dict[str, Any]:
    """What was seen, as `see` says it; `stale` names the readings that these limits call too old."""
    o = observation
    seen = {
        "automation": "on" if o.automation.on else "off",
        "user": _user(o.person, o.now_s),
        "gpu": _gpu(o.gpu),
        "cpu": o.cpu.value.percent if o.cpu.value is not None and math.isfinite(o.cpu.value.percent) else UNKNOWN,
        "host": _host(o.host.value),
        "task": str(o.task.phase),
        "link": str(o.link),
    }
    readings: tuple[tuple[str, Reading[Any], float], ...] = (
        ("user", o.person, limits.max_age_person_s),
        ("gpu", o.gpu, limits.max_age_gpu_s),
        ("cpu", o.cpu, limits.max_age_cpu_s),
        ("host", o.host, limits.max_age_host_s),
    )
    stale = [name for name, r, max_age_s in readings if r.value is not None and not o.now_s - r.read_at_s <= max_age_s]
    return {**seen, "stale": stale} if stale else seen


def _user(reading: Reading[Person], now_s: float) -> Any:
    if reading.value is None or math.isnan(reading.value.last_sign_at_s):
        return UNKNOWN
    return {"idle": max(-EVER_S, min(EVER_S, now_s - reading.value.last_sign_at_s))}


def _gpu(reading: Reading[Gpu]) -> Any:
    gpu = reading.value
    if gpu is None:
        return UNKNOWN
    if not gpu.present:
        return ABSENT
    if not (math.isfinite(gpu.percent) and math.isfinite(gpu.vram_gb)):
        return UNKNOWN
    seen = {"percent": gpu.percent, "vram_gb": gpu.vram_gb, "foreign": gpu.foreign}
    more = {name: getattr(gpu, name) for name in GPU_MORE}
    return {**seen, **{name: value for name, value in more.items() if value}}


def _host(host: Host | None) -> Any:
    if host is None:
        return UNKNOWN
    if host.going_down:
        return "going-down"
    return "fit" if host.fit else {"unfit": host.reason}


def observation_of(
    see: Mapping[str, Any], now_s: float, task_id: str = "", task_type: str = "", source: str = "replay"
) -> Observation:
    """The observation that a complete `see` tells of, made at `now_s` (seconds): readings are of this moment, or stale.

    Raises:
        ValueError: something is missing or is not of the vocabulary; the text says what.
    """
    if not isinstance(see, Mapping):
        raise ValueError(f"found {see!r:.60}, allowed: an object in the form of `see`")
    stale = see.get("stale", [])
    if not isinstance(stale, list) or any(name not in READINGS for name in stale):
        raise ValueError(f"stale: found {stale!r}, allowed: a list of {', '.join(READINGS)}")

    def reading(name: str, value: Any) -> Reading[Any]:
        at_s = NEVER if name in stale else now_s
        error = f"says the {source}" if value is None else ""
        return Reading(value, error, source, at_s)

    automation = _choice(see, "automation", ("on", "off"))
    reason = "automation is on" if automation == "on" else "automation is off"
    return Observation(
        now_s,
        Automation(automation == "on", reason, source),
        reading("user", _person_of(_value(see, "user"), now_s)),
        reading("gpu", _gpu_of(_value(see, "gpu"))),
        reading("cpu", _cpu_of(_value(see, "cpu"))),
        reading("host", _host_of(_value(see, "host"))),
        Task(TaskPhase(_choice(see, "task", PHASES)), task_id, task_type),
        Link(_choice(see, "link", LINKS)),
    )


def _value(see: Mapping[str, Any], name: str) -> Any:
    if name not in see:
        raise ValueError(f"{name} is missing")
    return see[name]


def _choice(see: Mapping[str, Any], name: str, allowed: tuple[str, ...]) -> str:
    value = _value(see, name)
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name}: found {value!r}, allowed: {', '.join(allowed)}")
    return value


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"{name}: found {value!r}, allowed: a number")
    return float(value)


def _person_of(value: Any, now_s: float) -> Person | None:
    if value == UNKNOWN:
        return None
    if isinstance(value, Mapping) and set(value) == {"idle"}:
        idle_s = _number("user.idle", value["idle"])
        return Person(NEVER if idle_s >= EVER_S else now_s - idle_s, "user active")
    raise ValueError(f"user: found {value!r}, allowed: an object with `idle` in seconds, or unknown")


def _gpu_of(value: Any) -> Gpu | None:
    if value == UNKNOWN:
        return None
    if value == ABSENT:
        return Gpu(present=False)
    if isinstance(value, Mapping) and set(value) - set(GPU_MORE) == set(GPU_FIELDS):
        held, pinned = value.get("held", ""), value.get("pinned", False)
        if not isinstance(pinned, bool):
            raise ValueError(f"gpu.pinned: found {pinned!r}, allowed: true or false")
        if not isinstance(held, str):
            raise ValueError(f"gpu.held: found {held!r}, allowed: a text")
        percent, vram_gb, foreign = (_number(f"gpu.{name}", value[name]) for name in GPU_FIELDS)
        return Gpu(percent, vram_gb, int(foreign), held=held, pinned=pinned)
    raise ValueError(f"gpu: found {value!r}, allowed: an object with {', '.join(GPU_FIELDS)}, or absent, or unknown")


def _cpu_of(value: Any) -> Cpu | None:
    return None if value == UNKNOWN else Cpu(_number("cpu", value))


def _host_of(value: Any) -> Host | None:
    if value == UNKNOWN:
        return None
    if value == "fit":
        return Host()
    if value == "going-down":
        return Host(fit=False, going_down=True)
    if isinstance(value, Mapping) and set(value) == {"unfit"} and isinstance(value["unfit"], str):
        return Host(fit=False, reason=value["unfit"])
    raise ValueError(f"host: found {value!r}, allowed: fit, an object with `unfit` and a reason, going-down, or unknown")
