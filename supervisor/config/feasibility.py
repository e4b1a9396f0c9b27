"""Finds what no single setting shows, for `rae-node config check`: the node can never become READY, or run no task (exit 1), or
a task type is refused at each start (exit 2)."""

from __future__ import annotations

import os
import shutil
from typing import Final

from supervisor.config.daemon_clients import daemon_client
from supervisor.config.schedule import windows
from supervisor.config.schema import NODE_FILE, RUNTIME_FILE, NodeSettings, Runtime
from supervisor.config.yaml_reader import printable

# An idle desktop (compositor, clock, mail) uses about 1 % of CPU and GPU and tens of MiB of VRAM, so load is never below these
# limits for long enough.
IDLE_DESKTOP_PERCENT: Final = 2.0
IDLE_DESKTOP_VRAM_GB: Final = 0.1
# The hottest sensor is never colder than the room.
ROOM_C: Final = 30.0


def never_ready(runtime: Runtime, node: NodeSettings) -> list[str]:
    """Why the node can never become READY, one line for each setting; empty if it can."""
    safety = runtime.safety
    reasons = []

    def never(file: str, name: str, value: object, why: str) -> None:
        shown = str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else value
        reasons.append(f"{file}: {name} is {shown}: {why}")

    if not runtime.automation.enabled:
        never(RUNTIME_FILE, "automation.enabled", False, "the node stays DISABLED; set it to true")
    for name, value, least, unit in (
        ("max_cpu_percent", safety.max_cpu_percent, IDLE_DESKTOP_PERCENT, "%"),
        ("max_gpu_percent", safety.max_gpu_percent, IDLE_DESKTOP_PERCENT, "%"),
        ("max_vram_gb", safety.max_vram_gb, IDLE_DESKTOP_VRAM_GB, "GiB"),
    ):
        if value < least:
            never(RUNTIME_FILE, f"safety.{name}", value, f"an idle desktop needs more; set it to {least:g} {unit} or more")
    presence = node.presence
    # input devices are enough as the only source where they must be readable
    if safety.detect_active_user and not (presence.sessions or presence.terminals or presence.input == "required"):
        why = "with presence.terminals false too, nothing shows that the user is away; set one of them to true"
        never(NODE_FILE, "presence.sessions", False, why)
    if node.host.max_temperature_c < ROOM_C:
        why = f"no machine is that cold; set it to {ROOM_C:g} or more"
        never(NODE_FILE, "host.max_temperature_c", node.host.max_temperature_c, why)
    memory_gb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    if node.host.min_memory_gb >= memory_gb:
        never(NODE_FILE, "host.min_memory_gb", node.host.min_memory_gb, f"this machine has {memory_gb:.1f} GiB; set it lower")
    if not node.work.days:
        never(NODE_FILE, "work.days", "empty", "work is allowed on no day; name at least one")
    if not windows(node.work):
        why = "such a window never opens; let it end at another time than it begins"
        never(NODE_FILE, "work.hours", ", ".join(node.work.hours), why)
    return reasons


def refused_types(node: NodeSettings) -> list[str]:
    """Why a task type can never run here, one line for each type; the other types can."""
    whys = {name: daemon_client(task.argv) for name, task in node.tasks.items() if task.executor == "command"}
    return [f"{NODE_FILE}: tasks.{printable(name)}.argv: {why}" for name, why in whys.items() if why]


def missing_programs(node: NodeSettings) -> list[str]:
    """The programs of task types that this machine does not have, or that this user may not run; one line for each type."""
    lines = []
    for name, task in node.tasks.items():
        if task.executor == "command" and not shutil.which(task.argv[0]):
            what = f"{printable(task.argv[0])}: no such program here, or it may not be run"
            lines.append(f"{NODE_FILE}: tasks.{printable(name)}.argv: {what}; each such task fails")
    return lines


def no_program(node: NodeSettings, missing: list[str]) -> list[str]:
    """That no task can ever run: every task type's program is missing."""
    if not missing or len(missing) < len(node.tasks):
        return []
    return [f"{NODE_FILE}: tasks: no task type's program can be run here; install them, or correct argv"]
