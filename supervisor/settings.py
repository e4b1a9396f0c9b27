"""node.yaml and runtime.yaml as types: every field with its bounds, its default, and its reason.

The shipped config/node.yaml and the JSON schemas are made from this file, so that they cannot drift. Names follow
interface §2 and §3; units are in the names.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

class Automation(Struct, frozen=True, forbid_unknown_fields=True):
    """Whether the node works at all."""

    enabled: bool
    auto_start: bool


class Safety(Struct, frozen=True, forbid_unknown_fields=True):
    """What keeps the person and the machine safe."""

    detect_active_user: bool
    idle_required_minutes: Annotated[float, Meta(gt=0, le=1440)]
    max_cpu_percent: Annotated[float, Meta(gt=0, le=100)]
    max_gpu_percent: Annotated[float, Meta(gt=0, le=100)]
    max_vram_gb: Annotated[float, Meta(gt=0, le=1024)]
    cooldown_minutes: Annotated[float, Meta(ge=0, le=1440)]


class Execution(Struct, frozen=True, forbid_unknown_fields=True):
    """How tasks are asked for and bounded."""

    poll_interval_sec: Annotated[float, Meta(ge=0.2, le=3600)]
    heartbeat_interval_sec: Annotated[float, Meta(ge=0.2, le=3600)]
    task_timeout_minutes: Annotated[float, Meta(gt=0, le=10080)]
    retry_on_disconnect: bool


class Runtime(Struct, frozen=True, forbid_unknown_fields=True):
    """runtime.yaml: exactly these fields, all required (R7)."""

    automation: Automation
    safety: Safety
    execution: Execution


class Node(Struct, frozen=True, forbid_unknown_fields=True):
    """Who this machine is."""

    id: Annotated[str, Meta(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] | None = None  # None: the host name


class Token(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the control node's key is found; one of the three, or none."""

    file: str | None = None
    credential: str | None = None
    env: str | None = None


class ControlPaths(Struct, frozen=True, forbid_unknown_fields=True):
    """Paths that override the found dialect's; `{id}` stands for the task's id."""

    register: str | None = None
    heartbeat: str | None = None
    poll: str | None = None
    task: str | None = None
    tasks: str | None = None
    result: str | None = None


class Control(Struct, frozen=True, forbid_unknown_fields=True):
    """The control node, and how long it may take to answer."""

    source: Literal["rae", "nats", "embedded"] = "rae"
    url: str = "http://127.0.0.1:8000"
    token: Token = field(default_factory=Token)
    dialect: Literal["auto", "A", "B", "C", "D"] = "auto"
    paths: ControlPaths = field(default_factory=ControlPaths)
    ca_file: str | None = None
    connect_timeout_sec: Annotated[float, Meta(gt=0, le=120)] = 5.0
    read_timeout_sec: Annotated[float, Meta(gt=0, le=300)] = 15.0
    total_timeout_sec: Annotated[float, Meta(gt=0, le=600)] = 30.0
    max_answer_mb: Annotated[float, Meta(gt=0, le=256)] = 16.0
    backoff_max_sec: Annotated[float, Meta(gt=0, le=3600)] = 300.0


class TaskType(Struct, frozen=True, forbid_unknown_fields=True):
    """What runs a task of this type, for how long, and what happens to it when the person is back."""

    executor: str = "command"
    argv: list[str] = field(default_factory=list)
    timeout_minutes: Annotated[float, Meta(gt=0, le=10080)] | None = None
    on_yield: Literal["terminate", "kill"] = "terminate"
    on_preempt: Literal["resubmit", "fail"] = "resubmit"
    grace_sec: Annotated[float, Meta(ge=0, le=60)] = 5.0
    max_result_mb: Annotated[float, Meta(gt=0, le=64)] = 8.0
    env: dict[str, str] = field(default_factory=dict)


class GpuSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Which GPU is lent, and whether there must be one."""

    presence: Literal["required", "optional", "none"] = "required"
    lend: list[str] = field(default_factory=list)
    own_processes: list[str] = field(default_factory=list)
    display_servers: list[str] = field(
        default_factory=lambda: ["Xorg", "Xwayland", "gnome-shell", "kwin_wayland", "kwin_x11", "sway", "weston", "plasmashell"]
    )
    display_cap_gb: Annotated[float, Meta(ge=0, le=64)] = 2.0
    look_interval_sec: Annotated[float, Meta(ge=0.2, le=60)] = 2.0


class PresenceSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Which signs of the person count."""

    strict: bool = False
    sessions: bool = True
    terminals: bool = True
    max_age_sec: Annotated[float, Meta(gt=0, le=600)] = 30.0


class HostSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """What the machine itself must offer."""

    inhibitor: Literal["required", "none"] = "required"
    on_battery: Literal["never", "allow"] = "never"
    min_battery_percent: Annotated[float, Meta(ge=0, le=100)] = 50.0
    min_memory_gb: Annotated[float, Meta(ge=0, le=4096)] = 1.0
    max_temperature_c: Annotated[float, Meta(gt=0, le=120)] = 95.0
    cpu_window_sec: Annotated[float, Meta(gt=0, le=300)] = 10.0
    max_age_sec: Annotated[float, Meta(gt=0, le=600)] = 30.0


class Work(Struct, frozen=True, forbid_unknown_fields=True):
    """When and how long the node works in one go."""

    run_minutes: Annotated[float, Meta(ge=0, le=10080)] = 30.0
    hours: list[str] = field(default_factory=list)
    days: list[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]] = field(
        default_factory=lambda: ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
    )


class Paths(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the rest lies; relative paths start at the configuration folder."""

    logs: str = "/opt/rae-node/logs"
    workdir: str = "/opt/rae-node/workdir"
    runtime: str = "/run/rae-node"
    state: str = "/var/lib/rae-node"


class Logs(Struct, frozen=True, forbid_unknown_fields=True):
    """How long decisions are kept."""

    keep_days: Annotated[int, Meta(ge=1, le=366)] = 7


class NodeSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """node.yaml: everything that runtime.yaml has no field for. Every field has a default."""

    node: Node = field(default_factory=Node)
    control: Control = field(default_factory=Control)
    tasks: dict[str, TaskType] = field(default_factory=dict)
    gpu: GpuSettings = field(default_factory=GpuSettings)
    presence: PresenceSettings = field(default_factory=PresenceSettings)
    host: HostSettings = field(default_factory=HostSettings)
    work: Work = field(default_factory=Work)
    paths: Paths = field(default_factory=Paths)
    logs: Logs = field(default_factory=Logs)
