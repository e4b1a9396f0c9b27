"""The checks of `doctor` that count only inside the service: as its user, in its sandbox, outside of any session.

`doctor` runs this file there and reads its answer, one JSON document. It changes nothing: it takes and releases the sleep
lock, and rotates logs in a temporary folder.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from states.guards import cpu_free, gpu_free, host_fit
from states.memory import Memory, State
from states.observation import NO_TASK, Automation, Observation
from supervisor.config.daemon_clients import daemon_client
from supervisor.config.load import Config, ConfigErrors, load
from supervisor.config.schema import Paths, TaskType
from supervisor.daemon.inhibitor import Inhibitor, InhibitRefused, ReleaseFailed
from supervisor.journal.decision_log import Journal
from supervisor.linux.clock import SystemClock
from supervisor.linux.dbus import SystemBus
from supervisor.sensors.base import Quality
from supervisor.sensors.gpu.pci_gpus import unjudged
from supervisor.sensors.observer import SourceReading
from supervisor.sensors.sensor_set import SensorSet
from supervisor.sources import api_key
from supervisor.sources.api_key import TokenError
from supervisor.tasks.process import sandbox
from supervisor.tasks.process.containment import detect
from supervisor.tools.doctor.control_node import control_node, task_types
from supervisor.tools.doctor.doctor import user_name
from supervisor.tools.doctor.one_look import watching
from supervisor.tools.doctor.report import GPU, PERSON, UNATTENDED, Check
from supervisor.tools.doctor.second_opinion import loginctl, nvidia_smi
from supervisor.tools.doctor.task_units import in_unit

SECOND_SAMPLE_S = 0.7  # CPU load is a difference
GPU_S = 5.0  # for a new look at the GPU
DAY_S = 86400.0

TASK_SOCKET = Path("/etc/systemd/system/rae-task.socket")


async def checks(config: Config) -> list[Check]:
    sensors, lock, control = await asyncio.gather(_sensors(config), sleep_lock(config), control_node(config))
    own = [*folders(config), rotation(config), containment(), key(config), control, task_types(config)]
    return [*sensors, lock, *own, *await programs(config)]


async def _sensors(config: Config) -> list[Check]:
    clock = SystemClock()
    async with watching(config, clock) as sensors:
        observer = sensors.observer
        seen = observer.look(clock.now_s(), config.limits, Automation(True), NO_TASK)
        if seen.cpu.value is None:
            await asyncio.sleep(SECOND_SAMPLE_S)
            seen = observer.look(clock.now_s(), config.limits, Automation(True), NO_TASK)
        second_opinions = await asyncio.gather(
            loginctl(lambda: sensors.sessions.known, lambda: sensors.sessions.latest(clock.now_s()).error),
            nvidia_smi(lambda: _gpu_rows(sensors)),
        )
        sources = observer.sources(seen.now_s)
        conflicts = contradictions(observer.contradictions(seen.now_s))
        read = [*readings(seen, config), other_gpus()]
        return [*presence(sources, config), *seen_by(sources), conflicts, *read, *second_opinions]


async def _gpu_rows(sensors: SensorSet) -> list[dict[str, Any]]:
    await sensors.gpu.refresh(GPU_S)
    return sensors.gpu.describe()


def presence(sources: list[SourceReading], config: Config) -> Iterator[Check]:
    """Each source of presence was asked and answered."""
    watched = config.limits.detect_active_user
    reason = f"safety.detect_active_user is {str(watched).lower()}"
    yield Check("user guard", PERSON, watched, reason, "set it to true in runtime.yaml")
    if len(sources) == 1:  # the GPU's processes are always there
        yield Check("presence", PERSON, False, "no source is switched on", "set presence.sessions to true in node.yaml")
    for source in sources:
        fix = "until then the person counts as active"
        ok: bool | None = source.present is not None
        if source.quality is Quality.UNKNOWN and (ok or source is sources[-1]):
            ok = None  # nothing is there to ask; where the GPU cannot be seen, its guard says so
        yield Check(f"presence: {source.source}", PERSON, ok, source.line(), fix, source.as_dict())


def seen_by(sources: list[SourceReading]) -> Iterator[Check]:
    """What each source looks at, such as sessions, terminals, or programs that block idle: a check for each heading."""
    for source in sources:
        known = True if source.quality is not Quality.UNKNOWN else None
        for heading, lines in source.headings.items():
            yield Check(heading, PERSON, known, "; ".join(lines) or "none known", reading={"details": lines})


def contradictions(found: list[str]) -> Check:
    """Sources that contradict each other. This is no fault: the one that says "present" counts."""
    reason = "; ".join(found) + ": the person counts as present" if found else "none between the sources"
    return Check("contradictions", PERSON, True, reason, reading={"details": found})


def readings(seen: Observation, config: Config) -> Iterator[Check]:
    """GPU, CPU and host were read. That one of them blocks at this moment is no fault."""
    gpu = seen.gpu.value
    absent = gpu is not None and not gpu.present
    fix = "do what the reason says, repair the driver, or set gpu.presence in node.yaml if this machine has no GPU to lend"
    for name, line, guard, read, todo in (
        ("GPU guard", GPU, gpu_free, gpu is not None and not (absent and config.limits.gpu_required), fix),
        ("CPU guard", UNATTENDED, cpu_free, seen.cpu.value is not None, f"see {seen.cpu.source}"),
        ("host guard", UNATTENDED, host_fit, seen.host.value is not None, f"see {seen.host.source}"),
    ):
        verdict = guard.explain(seen, Memory(), config.limits)
        blocks = read and verdict.ok is not True
        yield Check(name, line, read, f"works; it would block now: {verdict.reason}" if blocks else verdict.reason, todo)


def other_gpus(sys_root: Path = Path("/sys")) -> Check:
    """GPUs that no sensor reads. No task gets them."""
    if not (found := unjudged(sys_root)):
        return Check("other GPUs", GPU, True, "none that the node cannot read")
    names = ", ".join(f"/dev/dri/{node} ({driver})" for node, driver in found.items())
    reason = f"{names}: who uses it is unknown, for its driver is not supported; it is not lent, and no task may open it"
    return Check("other GPUs", GPU, True, reason, "see that nobody needs it while tasks run", {"drivers": found}, warning=True)


async def sleep_lock(config: Config) -> Check:
    """The locks of RUNNING, taken and released."""
    mode = config.node.host.inhibitor
    if mode == "none":
        return Check("sleep lock", UNATTENDED, None, "host.inhibitor is none: this machine never suspends")
    bus = SystemBus()
    lock = Inhibitor(bus, mode)
    try:
        await bus.start()
        await lock.take("rae-node doctor tries the lock")
        return Check("sleep lock", UNATTENDED, True, f"{await lock.release()} after they were taken, as {user_name()}")
    except (InhibitRefused, ReleaseFailed) as refused:
        return Check("sleep lock", UNATTENDED, False, str(refused))
    finally:
        await bus.stop()


def folders(config: Config) -> Iterator[Check]:
    """The service's user can use the folders of node.yaml's `paths`."""
    for name in ("logs", "workdir", "runtime", "state"):
        path: Path = getattr(config.paths, name)
        fix = f"run the installer again, or set paths.{name} in node.yaml"
        try:
            seen = os.lstat(path)
        except FileNotFoundError:
            made = str(path) in (Paths().runtime, Paths().state)  # the unit makes them
            yield Check(f"folder: {name}", UNATTENDED, None if made else False, f"{path} is not there yet", fix)
            continue
        trouble = ""
        if not stat.S_ISDIR(seen.st_mode):
            trouble = "is no folder"
        elif name == "workdir" and seen.st_uid != os.geteuid():
            trouble = f"belongs to uid {seen.st_uid}, not to {user_name()}"
        elif not os.access(path, os.W_OK | os.X_OK):
            trouble = f"cannot be written by {user_name()}"
        elif shutil.disk_usage(path).free < 1 << 20:
            trouble = "is on a full disk"
        yield Check(f"folder: {name}", UNATTENDED, not trouble, f"{path} {trouble or 'can be used'}", fix)


class _Days:
    def __init__(self) -> None:
        self.day = 0

    def now_s(self) -> float:
        return self.day * DAY_S

    def wall_s(self) -> float:
        return time.time() + self.day * DAY_S


def rotation(config: Config) -> Check:
    """The journal keeps logs for `logs.keep_days` days: tried over made-up days, in a temporary folder."""
    keep, days = config.node.logs.keep_days, _Days()
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder), days, keep)
        for days.day in range(keep + 3):
            journal.write("alive", state=State.DISABLED, reason="doctor")
        journal.close()
        kept = len(os.listdir(folder))
    trouble = journal.trouble or ("" if kept == keep else f"{kept} files were kept of {keep + 3} days, not {keep}")
    return Check.of("log rotation", UNATTENDED, trouble, f"a file a day, {keep} are kept", "report this as a fault")


def containment() -> Check:
    """What keeps a task's processes together: a unit of their own, or a mechanism that is tried with one process."""
    if not sandbox.in_service():
        return Check("containment", UNATTENDED, True, detect().summary())
    missing = "" if TASK_SOCKET.exists() else f"{TASK_SOCKET} is missing: no task can start"
    fine = "each task is a systemd unit, with a user of its own"
    return Check.of("containment", UNATTENDED, missing, fine, "run deploy/install again, as root")


def key(config: Config) -> Check:
    """The control node's key can be read, if one is configured."""
    name, token = "control node's key", config.node.control.token
    if token.file is None and token.credential is None and token.env is None:
        return Check(name, UNATTENDED, None, "none is configured (control.token)")
    try:
        api_key.token(config.control, os.environ)
    except TokenError as error:
        return Check(name, UNATTENDED, False, str(error), "see control.token in node.yaml")
    return Check(name, UNATTENDED, True, "it can be read")


def program(name: str, task: TaskType) -> Iterator[Check]:
    """The service's user can run it. What a unit of its own runs is tried there (task_units.py)."""
    fix = f"set tasks.{name}.argv in node.yaml"
    if client := daemon_client(task.argv):
        yield Check(f"task program: {name}", UNATTENDED, False, client, fix)
    elif not (sandbox.in_service() and in_unit(task)):
        path = shutil.which(task.argv[0])
        wrong = "" if path else f"{task.argv[:1]} cannot be run by {user_name()} in the service"
        fix += "; a program in a home needs BindReadOnlyPaths= (systemctl edit rae-node)"
        yield Check.of(f"task program: {name}", UNATTENDED, wrong, f"{path} can be run", fix)


async def programs(config: Config) -> list[Check]:
    """The service's user can run each task type's program, and its sandbox works. Types that run any command are named."""
    offer = await asyncio.to_thread(sandbox.look, sandbox.own_paths(config))
    if offer.units_only and TASK_SOCKET.exists():
        offer = replace(offer, unit="")  # the sockets come with the service
    found: list[Check] = []
    for name, task in config.node.tasks.items():
        if task.executor == "command":
            found += program(name, task)
        elif task.executor == "shell_command":
            reason, fix = "runs ANY command that the control node sends", "name the commands as types of their own"
            found.append(Check(f"shell commands: {name}", UNATTENDED, True, reason, fix, warning=True))
        else:
            continue
        try:
            chosen = sandbox.choose(task, offer)
        except sandbox.NoSandbox as refused:
            found.append(Check(f"sandbox: {name}", UNATTENDED, False, str(refused)))
        else:
            open_ = chosen.kind is sandbox.Kind.NONE
            reason = f"NONE: its tasks can do what {user_name()} can ({chosen.reason})" if open_ else chosen.reason
            found.append(Check(f"sandbox: {name}", UNATTENDED, True, reason, warning=open_))
    return found


def main(argv: list[str]) -> int:
    """`python -m supervisor.tools.doctor.in_service DIR`."""
    try:
        found = asyncio.run(checks(load(Path(argv[0]))))
    except ConfigErrors as errors:
        found = [Check("configuration", UNATTENDED, False, str(errors.problems[0]), "fix the file")]
    sys.stdout.write(json.dumps([asdict(check) for check in found]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
