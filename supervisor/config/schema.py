"""node.yaml and runtime.yaml as types: every field with its bounds, its default, and its reason (R7).

The shipped config/node.yaml, the JSON schemas, and what an error says is allowed are all made from this file, so that
they cannot drift. Names follow interface §2 and §3; units are in the names. A field's reason is its `Meta.description`;
`extra["allowed"]` puts a pattern into words.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct, field

RUNTIME_FILE: Final = "runtime.yaml"
NODE_FILE: Final = "node.yaml"

# --- texts with a form of their own; a text with a pattern is always a single line

NodeId = Annotated[
    str,
    Meta(
        pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        extra={"allowed": "1 to 64 letters, digits, dots, dashes and underscores, the first a letter or digit"},
    ),
]
EnvName = Annotated[
    str,
    Meta(
        pattern="^[A-Za-z_][A-Za-z0-9_]{0,127}$",
        extra={"allowed": "the name of an environment variable: letters, digits and underscores, the first no digit"},
    ),
]
CredentialName = Annotated[
    str,
    Meta(
        pattern="^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$",
        extra={"allowed": "the name of a systemd credential: letters, digits, dots, dashes and underscores"},
    ),
]
ConsumerName = Annotated[
    str,
    Meta(
        pattern="^[A-Za-z0-9_-]{1,64}$",
        extra={"allowed": "1 to 64 letters, digits, dashes and underscores"},
    ),
]
TaskTypeName = Annotated[
    str, Meta(pattern="^[^\\x00-\\x1f\\x7f]{1,128}$", extra={"allowed": "a task type of 1 to 128 characters"})
]
Hours = Annotated[
    str,
    Meta(
        pattern="^([01][0-9]|2[0-3]):[0-5][0-9]-(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$",
        extra={"allowed": 'a text of the form "HH:MM-HH:MM", from 00:00 to 24:00'},
    ),
]
Filled = Annotated[str, Meta(min_length=1)]
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


# --- runtime.yaml


class Automation(Struct, frozen=True, forbid_unknown_fields=True):
    """Whether the node works at all."""

    enabled: Annotated[bool, Meta(description="The main switch; false keeps the node DISABLED.")]
    auto_start: Annotated[bool, Meta(description="Start at boot; the installer and `rae-node enable` go by it.")]


class Safety(Struct, frozen=True, forbid_unknown_fields=True):
    """What keeps the person and the machine safe."""

    detect_active_user: Annotated[bool, Meta(description="Watch for the person; false switches the user guard off.")]
    idle_required_minutes: Annotated[
        float, Meta(gt=0, le=1440, description="How long the person must be away before work may begin.")
    ]
    max_cpu_percent: Annotated[
        float, Meta(gt=0, le=100, description="CPU that others may use; the node's own task is not counted.")
    ]
    max_gpu_percent: Annotated[
        float, Meta(gt=0, le=100, description="GPU utilisation that others may cause; a task's own is held to it.")
    ]
    max_vram_gb: Annotated[float, Meta(gt=0, le=1024, description="GiB of VRAM that others may have in use, and a task.")]
    cooldown_minutes: Annotated[float, Meta(ge=0, le=1440, description="Rest after each stay in RUNNING.")]


class Execution(Struct, frozen=True, forbid_unknown_fields=True):
    """How tasks are asked for and bounded."""

    poll_interval_sec: Annotated[
        float, Meta(ge=0.2, le=3600, description="Time between two polls while READY.")
    ]
    heartbeat_interval_sec: Annotated[
        float, Meta(ge=0.2, le=3600, description="Time between two signs of life to the control node.")
    ]
    task_timeout_minutes: Annotated[float, Meta(gt=0, le=10080, description="A task that runs longer is stopped.")]
    retry_on_disconnect: Annotated[
        bool, Meta(description="Try a lost control node again; false disables the node.")
    ]


class Runtime(Struct, frozen=True, forbid_unknown_fields=True):
    """runtime.yaml: exactly these fields, all required (R7)."""

    automation: Automation
    safety: Safety
    execution: Execution


# --- node.yaml


class Identity(Struct, frozen=True, forbid_unknown_fields=True):
    """Who this machine is."""

    id: Annotated[
        NodeId | None,
        Meta(
            description="The name by which the control node knows this machine. Nothing: the host name, because it is "
            "mostly unique in a house; two nodes with one id would take each other's tasks."
        ),
    ] = None


class Token(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the control node's key is found; at most one of the three, and never the key itself in this file."""

    file: Annotated[
        Filled | None,
        Meta(
            description="A file that holds the key, readable by the service's user alone; a relative path starts at the folder "
            "of this file. Nothing: no such file."
        ),
    ] = None
    credential: Annotated[
        CredentialName | None,
        Meta(description="The name of a systemd credential (LoadCredential= of the unit), the safest of the three."),
    ] = None
    env: Annotated[
        EnvName | None,
        Meta(description="The name of an environment variable; for containers, others may read it in /proc."),
    ] = None


class Nats(Struct, frozen=True, forbid_unknown_fields=True):
    """What only source: nats needs. The user is node.id, its password the key of control.token."""

    consumer: Annotated[
        ConsumerName,
        Meta(description="What this node pulls from. One for all by default; a fleet of unlike nodes has one for each kind."),
    ] = "nodes"


class Control(Struct, frozen=True, forbid_unknown_fields=True):
    """The control node, and how long it may take to answer."""

    source: Annotated[
        Literal["rae", "nats", "embedded"],
        Meta(
            description="Where tasks come from. rae: a RAE control node. embedded: `rae-node control` on this machine, "
            "which speaks the same protocol; url must then be a loopback address. nats: a fleet on NATS JetStream."
        ),
    ] = "rae"
    url: Annotated[
        Filled,
        Meta(
            description="The control node's address. Plain http only where nobody reads along: this machine, private, "
            "link-local and Tailscale addresses; anything else needs https. The loopback default reaches nobody else. "
            "With source: nats, nats:// and tls:// in their place; several servers of one cluster between commas."
        ),
    ] = "http://127.0.0.1:8000"
    token: Token = field(default_factory=Token)
    nats: Nats = field(default_factory=Nats)
    dialect: Annotated[
        Literal["auto", "A", "B", "C", "D"],
        Meta(description="Which release's paths to use. auto asks the server, so that its upgrade needs no edit here."),
    ] = "auto"
    ca_file: Annotated[
        Filled | None,
        Meta(
            description="A PEM file of authorities to trust in place of the system's; a relative path starts at this "
            "folder. Nothing: the system's."
        ),
    ] = None


class Notice(Struct, frozen=True, forbid_unknown_fields=True):
    """A word before the end: a task that saves its place in time is resumed there, on this node or another."""

    signal: Annotated[
        Literal["none", "USR1", "USR2", "INT", "HUP"],
        Meta(
            description="What tells the task to save its place, as JSON of at most 64 KiB in rae-state.json in its work folder "
            "(written under another name, then renamed). It goes back with the task, in memory only, and comes again as "
            "`rae_state` in its payload. none: it is not asked; most tasks know no such signal and would die of it."
        ),
    ] = "none"
    deadline_sec: Annotated[
        float, Meta(gt=0, le=60, description="How long it may take for that; a part of grace_sec. SIGTERM follows.")
    ] = 2.0


class TaskType(Struct, frozen=True, forbid_unknown_fields=True):
    """What runs a task of this type, for how long, and what happens to it when the person is back."""

    executor: Annotated[
        Filled,
        Meta(
            description="What runs the task. command: argv as a process. ollama_api: this machine's Ollama, for the types "
            "llm_inference, quality_loop and code_verify_cycle (name ollama in gpu.own_processes then); it cannot be frozen, "
            "for the model computes in Ollama's own process, so its request is cut at the first sign of the person. "
            "shell_command: DANGEROUS, see allow_any_command. Others as installed."
        ),
    ] = "command"
    argv: Annotated[
        list[str], Meta(description="The program and its arguments; no shell. It reads the payload as JSON on stdin.")
    ] = field(default_factory=list)
    allow_any_command: Annotated[
        bool,
        Meta(
            description="With executor: shell_command, which runs whatever text the control node sends, as the service's user. "
            "RAE's queue knows no passwords: whoever reaches it then owns this account. Off unless this says true; better "
            "name the commands as types of their own, at least set sandbox: bubblewrap."
        ),
    ] = False
    sandbox: Annotated[
        Literal["none", "bubblewrap"],
        Meta(
            description="bubblewrap: the task sees the system read-only, of its files the work folder alone, no other process, "
            "no network. It needs the package bubblewrap and a drop-in for the service, which `rae-node doctor` names; "
            "without them, the type's tasks fail. none: the unit's own walls only."
        ),
    ] = "none"
    sandbox_read: Annotated[
        list[Filled],
        Meta(description="With sandbox: further paths that the task may read, such as /opt/models; /usr it may anyway."),
    ] = field(default_factory=list)
    sandbox_network: Annotated[bool, Meta(description="With sandbox: whether the task may use the network.")] = False
    timeout_minutes: Annotated[
        Annotated[float, Meta(gt=0, le=10080)] | None,
        Meta(description="A tighter limit for this type. Nothing: execution.task_timeout_minutes, which always holds."),
    ] = None
    on_yield: Annotated[
        Literal["terminate", "kill"],
        Meta(description="How it is stopped when the person is back: SIGTERM and grace_sec first, or SIGKILL at once."),
    ] = "terminate"
    hold_sec: Annotated[
        Annotated[float, Meta(ge=0, le=3600)] | None,
        Meta(
            description="For how long a task of this type is frozen, not stopped, when the person is back; 0: it is stopped at "
            "once. Nothing: work.hold_sec, which says more."
        ),
    ] = None
    checkpoint: Annotated[
        Literal["none", "cuda"],
        Meta(
            description="cuda: a CUDA task's VRAM is moved to main memory before it is frozen, and back when it goes on, so "
            "that a task on the GPU may be put on hold as well; what does not fit through in 3 s is stopped. It "
            "needs hold_sec, NVIDIA's driver 570 or newer, as much free memory as the task holds VRAM (within "
            "max_memory_gb too), and an extra: `sudo /opt/rae-node/venv/bin/pip install 'rae-node[cuda]'`, again "
            "after each upgrade. Not for tasks with managed memory, GPU memory shared between processes, or NCCL. "
            "`rae-node doctor` says whether it would work. none: a task on the GPU is stopped."
        ),
    ] = "none"
    on_preempt: Annotated[
        Literal["resubmit", "fail"],
        Meta(description="What becomes of a task cut short: posted anew for another node, or failed as `preempted:`."),
    ] = "resubmit"
    grace_sec: Annotated[float, Meta(ge=0, le=60, description="Time between SIGTERM and SIGKILL.")] = 5.0
    notice: Notice = field(default_factory=Notice)
    max_result_mb: Annotated[
        float, Meta(gt=0, le=64, description="MiB of output kept as the result; it lies in memory only.")
    ] = 8.0
    max_memory_gb: Annotated[
        Annotated[float, Meta(gt=0, le=4096)] | None,
        Meta(
            description="GiB of memory and swap that a task's processes may use together; one over it is stopped as failed. "
            "Nothing: as much as host.min_memory_gb leaves, since models differ too much for a default."
        ),
    ] = None
    max_vram_gb: Annotated[
        Annotated[float, Meta(gt=0, le=1024)] | None,
        Meta(description="GiB of VRAM that a task may use; one over it is stopped as failed. Nothing: safety.max_vram_gb."),
    ] = None
    max_disk_gb: Annotated[
        Annotated[float, Meta(gt=0, le=100000)] | None,
        Meta(
            description="GiB that a task may have in its work folder; one over it is stopped as failed, as a full disk harms "
            "the whole machine. null: no limit."
        ),
    ] = 10.0
    max_processes: Annotated[
        Annotated[int, Meta(ge=1, le=100000)] | None,
        Meta(
            description="Processes that a task may have at a time; one over it is stopped as failed. Above what tasks need, "
            "far below what harms the machine. null: no limit."
        ),
    ] = 1000
    env: Annotated[
        dict[EnvName, str], Meta(description="Environment variables for the task, over the few that it gets anyway.")
    ] = field(default_factory=dict)
    ollama_url: Annotated[
        Filled, Meta(description="With executor: ollama_api, where Ollama listens; on this machine, so that no data leaves it.")
    ] = "http://127.0.0.1:11434"


class GpuSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Which GPU is lent, and whether there must be one."""

    presence: Annotated[
        Literal["required", "optional", "none"],
        Meta(
            description="required: no GPU, or no driver that answers, means no work. optional: work without one as "
            "well. none: this machine has none to lend. A GPU that is there is judged in any case."
        ),
    ] = "required"
    lend: Annotated[
        list[Filled],
        Meta(
            description="The GPUs that are lent: UUIDs of NVIDIA's (`nvidia-smi -L`), PCI addresses of AMD's and Intel's "
            "(0000:03:00.0). Empty: all of NVIDIA's, as most machines have one; without one, the DRM GPU with most memory."
        ),
    ] = field(default_factory=list)
    own_processes: Annotated[
        list[Filled],
        Meta(
            description="Names of GPU processes that belong to RAE and not to the person (a model server, say). Empty: "
            "none but the task's own."
        ),
    ] = field(default_factory=list)
    own_units: Annotated[
        list[Filled],
        Meta(
            description="systemd units (ollama.service) whose GPU processes belong to RAE; stronger than a name, which anybody "
            "may give a program. Empty: none."
        ),
    ] = field(default_factory=list)
    display_servers: Annotated[
        list[Filled],
        Meta(description="Processes that draw the desktop; they always hold the GPU and are no sign of the person."),
    ] = field(
        default_factory=lambda: [
            "Xorg", "Xwayland", "gnome-shell", "kwin_wayland", "kwin_x11", "sway", "weston", "plasmashell", "cinnamon", "xfwm4",
            "mutter", "budgie-wm", "picom", "labwc", "wayfire", "niri", "Hyprland", "cosmic-comp",
        ]
    )


class PresenceSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Which signs of the person count."""

    strict: Annotated[
        bool, Meta(description="true: an open graphical session blocks even when nobody touches it.")
    ] = False
    sessions: Annotated[bool, Meta(description="Sessions and their idle times (logind, X11, Wayland).")] = True
    terminals: Annotated[bool, Meta(description="Typing in terminals and over SSH.")] = True
    input: Annotated[
        Literal["auto", "required", "off"],
        Meta(
            description="Times at which input devices are used, and nothing else of them. auto: where the service's user may "
            "read /dev/input (group input), for the other signs show the person as well. required: none to read blocks."
        ),
    ] = "auto"
    ignore_bumps: Annotated[
        bool,
        Meta(
            description="true: after 15 minutes of rest a pointer must move 16 pixels, or again within a second, as a desk "
            "that is bumped moves a mouse. Off, since it also overlooks a careful hand for a moment."
        ),
    ] = False
    ignore_inhibitors: Annotated[
        list[Filled],
        Meta(
            description="Programs whose locks on idle do not count, by the name that `systemd-inhibit --list` shows under WHO. "
            "Empty: all count, as a film or a call is a person who does not type."
        ),
    ] = field(default_factory=list)


class HostSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """What the machine itself must offer."""

    inhibitor: Annotated[
        Literal["required", "none"],
        Meta(
            description="required: no task without a logind lock against sleep. none: for a machine that cannot "
            "suspend or has no logind, such as a container."
        ),
    ] = "required"
    on_battery: Annotated[
        Literal["never", "allow"], Meta(description="Work on battery power; a task empties it in an hour.")
    ] = "never"
    min_battery_percent: Annotated[
        float, Meta(ge=0, le=100, description="With on_battery: allow, the charge below which work stops.")
    ] = 50.0
    min_memory_gb: Annotated[
        float, Meta(ge=0, le=4096, description="GiB of memory that must be free for use, or somebody needs it.")
    ] = 1.0
    max_memory_pressure_percent: Annotated[
        float,
        Meta(
            gt=0, le=100,
            description="Share of time in which something waits for memory (avg10 in /proc/pressure/memory) above which work "
            "stops. 100: never, since a task that waits by itself is in it too.",
        ),
    ] = 100.0
    exclusive_programs: Annotated[
        list[Filled],
        Meta(
            description="Programs beside which nothing runs, games above all: a name (steam), a path, or a pattern of systemd "
            'units ("app-flatpak-com.valvesoftware.Steam-*.scope"). Empty: none, as the GPU already tells most of them.'
        ),
    ] = field(default_factory=list)
    allow_metered: Annotated[
        bool,
        Meta(
            description="Work on a network that is paid by volume. true, as results are small; false asks NetworkManager, and "
            "without its answer nothing runs."
        ),
    ] = True
    checks: Annotated[
        list[list[str]],
        Meta(
            description="Commands of your own that must all agree, each a list with the program first; exit 0: fit. Any other "
            "end, or none in time, blocks. Empty: none."
        ),
    ] = field(default_factory=list)
    check_interval_sec: Annotated[
        float, Meta(ge=1, le=3600, description="Time between two runs of host.checks; their answers hold that long.")
    ] = 60.0
    max_temperature_c: Annotated[
        float, Meta(gt=0, le=120, description="Degrees Celsius of the hottest sensor above which it must rest.")
    ] = 95.0


class Work(Struct, frozen=True, forbid_unknown_fields=True):
    """When and how long the node works in one go."""

    run_minutes: Annotated[
        float,
        Meta(
            ge=0, le=10080,
            description="How long one stay in RUNNING may go on taking further tasks; 0: one task, then the cooldown.",
        ),
    ] = 30.0
    hold_sec: Annotated[
        float,
        Meta(
            ge=0, le=3600,
            description="For how long a task is frozen, not stopped, when somebody seems to be there: if that is shown to be a "
            "false alarm by then (safe again by all rules, idle_required_minutes too), it goes on where it was. Frozen, it "
            "takes no CPU, but its memory stays taken; one that holds VRAM is stopped (but see checkpoint). Each task type "
            "may say its own. 0: stopped at once, as the person comes first.",
        ),
    ] = 0.0
    hours: Annotated[
        list[Hours],
        Meta(
            description='Local times of day, such as "22:00-06:30"; one past midnight belongs to the day on which it '
            "begins. Empty: all day, since an absent person is what counts."
        ),
    ] = field(default_factory=list)
    days: Annotated[list[Day], Meta(description="Days of the week on which a window may begin.")] = field(
        default_factory=lambda: ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
    )


class Paths(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the rest lies; a relative path starts at the folder of this file, ~ is the home of the service's user."""

    logs: Annotated[Filled, Meta(description="The decision journal and the text log.")] = "/opt/rae-node/logs"
    workdir: Annotated[
        Filled, Meta(description="Tasks' work folders. It is WIPED after each task, so nothing else may lie in it.")
    ] = "/opt/rae-node/workdir"
    runtime: Annotated[Filled, Meta(description="The control socket; gone after a reboot.")] = "/run/rae-node"
    state: Annotated[
        Filled, Meta(description="The note of the task in flight (id and type, nothing else) and the operator's pause.")
    ] = "/var/lib/rae-node"


class Logs(Struct, frozen=True, forbid_unknown_fields=True):
    """How long decisions are kept."""

    keep_days: Annotated[int, Meta(ge=1, le=366, description="Days of logs kept, one file a day.")] = 7


class MetricsSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Figures for Prometheus, in a file: the node opens no port."""

    file: Annotated[
        Filled | None,
        Meta(
            description="A .prom file for node_exporter's textfile collector, written whole. The service may write below "
            "/run/rae-node: name that folder as --collector.textfile.directory. Nothing: no metrics."
        ),
    ] = None


class NodeSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """node.yaml: everything that runtime.yaml has no field for. Every field has a default."""

    node: Identity = field(default_factory=Identity)
    control: Control = field(default_factory=Control)
    tasks: Annotated[
        dict[TaskTypeName, TaskType],
        Meta(
            description="The task types that this node runs; one of any other type fails and says so, or goes on to another "
            "node of a fleet. Empty: none."
        ),
    ] = field(default_factory=dict)
    gpu: GpuSettings = field(default_factory=GpuSettings)
    presence: PresenceSettings = field(default_factory=PresenceSettings)
    host: HostSettings = field(default_factory=HostSettings)
    work: Work = field(default_factory=Work)
    paths: Paths = field(default_factory=Paths)
    logs: Logs = field(default_factory=Logs)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
