"""node.yaml and runtime.yaml as types: every field with its bounds, its default and its reason.

The shipped files in config/, the JSON schemas, and what an error says is allowed are all generated from this module. Names
carry their units. `doc` holds the reason of a field; `extra["allowed"]` describes a pattern.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct, field

RUNTIME_FILE: Final = "runtime.yaml"
NODE_FILE: Final = "node.yaml"

# --- texts with a form of their own; a text with a pattern is always a single line


def doc(text: str, **bounds: Any) -> Meta:
    """What a field is for, and its bounds (gt, ge, le)."""
    return Meta(description=text, **bounds)


def _form(pattern: str, allowed: str) -> Meta:
    return Meta(pattern=pattern, extra={"allowed": allowed})


NodeId = Annotated[
    str,
    _form(
        "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        "1 to 64 letters, digits, dots, dashes and underscores, the first a letter or digit",
    ),
]
EnvName = Annotated[
    str,
    _form(
        "^[A-Za-z_][A-Za-z0-9_]{0,127}$",
        "the name of an environment variable: letters, digits and underscores, the first no digit",
    ),
]
CredentialName = Annotated[
    str,
    _form(
        "^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$",
        "the name of a systemd credential: letters, digits, dots, dashes and underscores",
    ),
]
ConsumerName = Annotated[str, _form("^[A-Za-z0-9_-]{1,64}$", "1 to 64 letters, digits, dashes and underscores")]
TaskTypeName = Annotated[str, _form("^[^\\x00-\\x1f\\x7f]{1,128}$", "a task type of 1 to 128 characters")]
_TIME = "([01][0-9]|2[0-3]):[0-5][0-9]"
Hours = Annotated[str, _form(f"^{_TIME}-({_TIME}|24:00)$", 'a text of the form "HH:MM-HH:MM", from 00:00 to 24:00')]
Filled = Annotated[str, Meta(min_length=1)]
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


# --- runtime.yaml


class Automation(Struct, frozen=True, forbid_unknown_fields=True):
    """Whether the node works at all."""

    enabled: Annotated[bool, doc("The main switch. false keeps the node DISABLED.")]
    auto_start: Annotated[bool, doc("Start at boot. The installer and `rae-node enable` read it.")]


class Safety(Struct, frozen=True, forbid_unknown_fields=True):
    """What protects the person and the machine."""

    detect_active_user: Annotated[bool, doc("Watch for the person. false switches the user guard off.")]
    idle_required_minutes: Annotated[float, doc("How long the person must be away before work begins.", gt=0, le=1440)]
    max_cpu_percent: Annotated[float, doc("CPU that others may use. The node's own task does not count.", gt=0, le=100)]
    max_gpu_percent: Annotated[float, doc("GPU utilisation that others may cause, and the quota of a task.", gt=0, le=100)]
    max_vram_gb: Annotated[float, doc("GiB of VRAM that others may use, and a task.", gt=0, le=1024)]
    cooldown_minutes: Annotated[float, doc("Rest after each stay in RUNNING.", ge=0, le=1440)]


class Execution(Struct, frozen=True, forbid_unknown_fields=True):
    """How the node asks for tasks, and what bounds them."""

    poll_interval_sec: Annotated[float, doc("Time between two polls while READY.", ge=0.2, le=3600)]
    heartbeat_interval_sec: Annotated[float, doc("Time between two heartbeats to the control node.", ge=0.2, le=3600)]
    task_timeout_minutes: Annotated[float, doc("A task that runs longer is stopped.", gt=0, le=10080)]
    retry_on_disconnect: Annotated[bool, doc("Try a lost control node again. false disables the node.")]


class Runtime(Struct, frozen=True, forbid_unknown_fields=True):
    """runtime.yaml: exactly these fields, all required."""

    automation: Automation
    safety: Safety
    execution: Execution


SHIPPED_RUNTIME: Final = Runtime(
    Automation(enabled=True, auto_start=True), Safety(True, 10, 80, 90, 14, 15), Execution(45, 30, 180, True)
)


# --- node.yaml


class Identity(Struct, frozen=True, forbid_unknown_fields=True):
    """Who this machine is."""

    id: Annotated[NodeId | None, doc("Its name at the control node, unique there. Nothing: the host name.")] = None


class Token(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the key for the control node is; at most one of the three. The key itself is never in this file."""

    file: Annotated[Filled | None, doc("A file that only the service's user can read. Nothing: none.")] = None
    credential: Annotated[
        CredentialName | None, doc("A systemd credential (LoadCredential= of the unit). The safest of the three.")
    ] = None
    env: Annotated[EnvName | None, doc("An environment variable, for containers: others may read it in /proc.")] = None


class Nats(Struct, frozen=True, forbid_unknown_fields=True):
    """Only for source: nats. The user is node.id; the password is the key of control.token."""

    consumer: Annotated[
        ConsumerName, doc("The consumer to pull from. A fleet of different machines has one for each kind.")
    ] = "nodes"


class Control(Struct, frozen=True, forbid_unknown_fields=True):
    """Where tasks come from."""

    source: Annotated[
        Literal["rae", "nats", "embedded"],
        doc(
            "rae: a RAE control node. embedded: `rae-node control` on this machine; url must be a loopback address. nats: a "
            "fleet on NATS JetStream."
        ),
    ] = "rae"
    url: Annotated[
        Filled,
        doc(
            "The address of the control node. Plain http is allowed to this machine and to private, link-local and Tailscale "
            "addresses; all others need https. For nats: nats:// or tls://, several servers between commas."
        ),
    ] = "http://127.0.0.1:8000"
    token: Token = field(default_factory=Token)
    nats: Nats = field(default_factory=Nats)
    dialect: Annotated[
        Literal["auto", "A", "B", "C", "D"],
        doc("The paths of which release. auto asks the server, so its upgrade needs no edit here."),
    ] = "auto"
    ca_file: Annotated[Filled | None, doc("A PEM file of certificate authorities to trust. Nothing: the system's.")] = None


class Notice(Struct, frozen=True, forbid_unknown_fields=True):
    """A signal before the end, so that a task can save its state and continue later, on this node or another."""

    signal: Annotated[
        Literal["none", "USR1", "USR2", "INT", "HUP"],
        doc(
            "On this signal the task saves its state as JSON, at most 64 KiB, in rae-state.json in its work folder (written "
            "under another name, then renamed). The state comes back as `rae_state` in the payload. none: no signal, because "
            "it would end most tasks."
        ),
    ] = "none"
    deadline_sec: Annotated[float, doc("Time for that, within grace_sec. SIGTERM follows.", gt=0, le=60)] = 2.0


class TaskType(Struct, frozen=True, forbid_unknown_fields=True):
    """What runs a task of this type, its limits, and what happens to it when the person is back."""

    executor: Annotated[
        Filled,
        doc(
            "command: run argv as a process. ollama_api: ask this machine's Ollama, for the types llm_inference, quality_loop "
            "and code_verify_cycle; add ollama to gpu.own_processes; it is cut off, never frozen. shell_command: DANGEROUS, "
            "see allow_any_command. Others as installed."
        ),
    ] = "command"
    argv: Annotated[
        list[str], doc("The program and its arguments, without a shell. The payload comes as JSON on stdin.")
    ] = field(default_factory=list)
    allow_any_command: Annotated[
        bool,
        doc(
            "Required for shell_command, which runs any text from the control node, and only in a sandbox. RAE's queue has no "
            "passwords: everyone who can write to it then gives orders here. Prefer command."
        ),
    ] = False
    sandbox: Annotated[
        Literal["auto", "unit", "bubblewrap", "none"],
        doc(
            "What separates a task from the machine: it sees the system read-only (/usr, /opt, /srv), the files that argv "
            "names, its work folder, no other process and no network. unit: a systemd unit under a user of its own, on an "
            "installed node. bubblewrap: without systemd, by the package bubblewrap. auto: the first of these that works "
            "here, else none; `rae-node doctor` says which. none: only limits; the task may read and change what the "
            "service's user may."
        ),
    ] = "auto"
    sandbox_read: Annotated[
        list[Filled], doc("In a sandbox: more paths that the task may read, such as /data/models.")
    ] = field(default_factory=list)
    sandbox_network: Annotated[bool, doc("In a sandbox: whether the task may use the network.")] = False
    timeout_minutes: Annotated[float, doc("A lower limit than execution.task_timeout_minutes.", gt=0, le=10080)] | None = None
    on_yield: Annotated[
        Literal["terminate", "kill"],
        doc("How to stop it when the person is back: SIGTERM, then grace_sec; or SIGKILL at once."),
    ] = "terminate"
    hold_sec: Annotated[
        float, doc("How long to freeze it; 0: stop at once. Nothing: work.hold_sec.", ge=0, le=3600)
    ] | None = None
    checkpoint: Annotated[
        Literal["none", "cuda"],
        doc(
            "cuda: before a freeze, move the task's VRAM to main memory, and back afterwards; what takes longer than 3 s is "
            "stopped. It needs hold_sec, NVIDIA driver 570, as much free memory as the task has VRAM, and an extra, again "
            "after each upgrade: `sudo /opt/rae-node/venv/bin/pip install 'rae-node[cuda]'`. Not for managed memory, shared "
            "GPU memory or NCCL. `rae-node doctor` tests it. none: a task with VRAM is stopped, not frozen."
        ),
    ] = "none"
    on_preempt: Annotated[
        Literal["resubmit", "fail"],
        doc("What happens to an interrupted task: posted again for any node, or failed as `preempted:`."),
    ] = "resubmit"
    grace_sec: Annotated[float, doc("Time between SIGTERM and SIGKILL.", ge=0, le=60)] = 5.0
    notice: Notice = field(default_factory=Notice)
    max_result_mb: Annotated[float, doc("MiB of output kept as the result, in memory.", gt=0, le=64)] = 8.0
    max_memory_gb: Annotated[
        float, doc("GiB of RAM and swap; with more, it fails. Nothing: all but host.min_memory_gb.", gt=0, le=4096)
    ] | None = None
    max_vram_gb: Annotated[
        float, doc("GiB of VRAM; with more, it fails. Nothing: safety.max_vram_gb.", gt=0, le=1024)
    ] | None = None
    max_disk_gb: Annotated[
        float, doc("GiB in the work folder; with more, it fails. null: no limit.", gt=0, le=100000)
    ] | None = 10.0
    max_processes: Annotated[
        int, doc("Processes at a time; with more, it fails. null: no limit.", ge=1, le=100000)
    ] | None = 1000
    env: Annotated[dict[EnvName, str], doc("More environment variables for the task.")] = field(default_factory=dict)
    ollama_url: Annotated[Filled, doc("For ollama_api: where Ollama listens on this machine.")] = "http://127.0.0.1:11434"


class GpuSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Which GPU is lent, and whether there must be one."""

    presence: Annotated[
        Literal["required", "optional", "none"],
        doc(
            "required: without a GPU and a driver that answers, no work. optional: work without one too. none: no GPU to "
            "lend. A GPU that is there always counts."
        ),
    ] = "required"
    lend: Annotated[
        list[Filled],
        doc(
            "The GPUs to lend: NVIDIA UUIDs (`nvidia-smi -L`), PCI addresses of AMD and Intel (0000:03:00.0). Empty: all of "
            "NVIDIA's; without one, the GPU with most memory."
        ),
    ] = field(default_factory=list)
    own_processes: Annotated[
        list[Filled], doc("Names of GPU processes that belong to RAE, such as a model server.")
    ] = field(default_factory=list)
    own_units: Annotated[
        list[Filled],
        doc("systemd units (ollama.service) whose GPU processes belong to RAE. Safer: any program can take a name."),
    ] = field(default_factory=list)


class PresenceSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Which signs of the person count."""

    strict: Annotated[bool, doc("true: an open graphical session blocks, even while nobody touches it.")] = False
    sessions: Annotated[bool, doc("Sessions and their idle times (logind, X11, Wayland).")] = True
    terminals: Annotated[bool, doc("Typing in terminals and over SSH.")] = True
    input: Annotated[
        Literal["auto", "required", "off"],
        doc(
            "When input devices are used; never what. auto: where the service's user can read /dev/input (group input). "
            "required: without a readable device, no work."
        ),
    ] = "auto"
    ignore_bumps: Annotated[
        bool,
        doc(
            "true: after 15 minutes of rest a pointer must move 16 pixels, or again within a second, because a bump against "
            "the desk moves a mouse. It also misses a careful hand for a moment."
        ),
    ] = False
    ignore_inhibitors: Annotated[
        list[Filled],
        doc(
            "Programs whose idle locks do not count; names as `systemd-inhibit --list` shows them under WHO. Empty: all "
            "count, because a person who watches a film does not type."
        ),
    ] = field(default_factory=list)
    ignore_users: Annotated[
        list[Filled],
        doc("Users who are no person, such as an account for monitoring: their logins, terminals and displays do not count."),
    ] = field(default_factory=list)
    ignore_hosts: Annotated[
        list[Filled],
        doc(
            "Machines whose remote logins are no person, as `loginctl show-session` shows them under RemoteHost, or patterns "
            "such as 10.0.0.*."
        ),
    ] = field(default_factory=list)
    ignore_commands: Annotated[
        list[Filled],
        doc(
            "Programs whose sessions, displays and remote logins are no person: the leader of a session (cron), a display "
            "server (Xvfb), a server for logins (dropbear). A name, or a path."
        ),
    ] = field(default_factory=list)
    ignore_units: Annotated[
        list[Filled],
        doc('The same for systemd units, or patterns of them ("ci-*.service").'),
    ] = field(default_factory=list)


class HostSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """What the machine itself must offer."""

    inhibitor: Annotated[
        Literal["required", "none"],
        doc(
            "required: no task without a logind lock against sleep. none: for a machine that cannot suspend or has no logind, "
            "such as a container."
        ),
    ] = "required"
    on_battery: Annotated[
        Literal["never", "allow"], doc("Work on battery power. A task empties a battery in an hour.")
    ] = "never"
    min_battery_percent: Annotated[
        float, doc("With on_battery: allow, the charge below which work stops.", ge=0, le=100)
    ] = 50.0
    min_memory_gb: Annotated[float, doc("GiB of memory that must be available.", ge=0, le=4096)] = 1.0
    max_memory_pressure_percent: Annotated[
        float,
        doc(
            "Work stops above this share of time in which processes wait for memory (avg10 in /proc/pressure/memory). 100: "
            "never, because a task's own waits are in it.",
            gt=0, le=100,
        ),
    ] = 100.0
    exclusive_programs: Annotated[
        list[Filled],
        doc(
            "No work beside these programs, such as games: a name (steam), a path, or a pattern of systemd units "
            '("app-flatpak-com.valvesoftware.Steam-*.scope"). The GPU already shows most of them.'
        ),
    ] = field(default_factory=list)
    allow_metered: Annotated[
        bool, doc("Work on a metered network. false asks NetworkManager; without its answer, no work.")
    ] = True
    checks: Annotated[
        list[list[str]],
        doc("Your own commands, each a list with the program first. All must exit 0 within 5 s, or there is no work."),
    ] = field(default_factory=list)
    check_interval_sec: Annotated[float, doc("Time between two runs of host.checks.", ge=1, le=3600)] = 60.0
    max_temperature_c: Annotated[
        float, doc("Degrees Celsius of the hottest processor sensor above which work stops.", gt=0, le=120)
    ] = 95.0


class Work(Struct, frozen=True, forbid_unknown_fields=True):
    """When the node works, and how long at a time."""

    run_minutes: Annotated[float, doc("How long one stay in RUNNING takes more tasks. 0: one task.", ge=0, le=10080)] = 30.0
    hold_sec: Annotated[
        float,
        doc(
            "When somebody seems to be back, freeze the task for this long. If it was a false alarm (all is safe again in "
            "time, idle_required_minutes too), the task continues. Frozen, it uses no CPU but keeps its memory; one with VRAM "
            "is stopped (see checkpoint). A task type may have its own. 0: stop at once.",
            ge=0, le=3600,
        ),
    ] = 0.0
    hours: Annotated[
        list[Hours],
        doc('Local times, such as "22:00-06:30". One past midnight belongs to the day on which it begins. Empty: all day.'),
    ] = field(default_factory=list)
    days: Annotated[list[Day], doc("Days of the week on which a window may begin.")] = field(
        default_factory=lambda: ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
    )
    wake: Annotated[
        bool,
        doc(
            "Wake this machine from sleep a minute before a window of `hours` opens; with source: nats also for `rae-node "
            "fleet wake`, and wake others in its network for that. It goes to sleep again as its own settings say."
        ),
    ] = False


class Paths(Struct, frozen=True, forbid_unknown_fields=True):
    """Folders. A relative path, here and above, starts at the folder of this file; ~ is the home of the service's user."""

    logs: Annotated[Filled, doc("The decision journal and the text log.")] = "/opt/rae-node/logs"
    workdir: Annotated[
        Filled, doc("Work folders of tasks. It is WIPED after each task: keep nothing else in it.")
    ] = "/opt/rae-node/workdir"
    runtime: Annotated[Filled, doc("The control socket. Empty after a reboot.")] = "/run/rae-node"
    state: Annotated[
        Filled, doc("The record of the task in flight (id and type, nothing else) and the operator's pause.")
    ] = "/var/lib/rae-node"


class Logs(Struct, frozen=True, forbid_unknown_fields=True):
    """How long logs are kept."""

    keep_days: Annotated[int, doc("Days to keep, one file a day.", ge=1, le=366)] = 7


class MetricsSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Metrics for Prometheus, in a file: the node opens no port."""

    file: Annotated[
        Filled | None,
        doc(
            "A .prom file for node_exporter's textfile collector. The service may write below /run/rae-node: use that folder "
            "as --collector.textfile.directory. Nothing: no metrics."
        ),
    ] = None


class NodeSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """node.yaml: everything else. Every field has a default."""

    node: Identity = field(default_factory=Identity)
    control: Control = field(default_factory=Control)
    tasks: Annotated[
        dict[TaskTypeName, TaskType],
        doc("The task types that this node runs. A task of another type fails; in a fleet, another node gets it."),
    ] = field(default_factory=dict)
    gpu: GpuSettings = field(default_factory=GpuSettings)
    presence: PresenceSettings = field(default_factory=PresenceSettings)
    host: HostSettings = field(default_factory=HostSettings)
    work: Work = field(default_factory=Work)
    paths: Paths = field(default_factory=Paths)
    logs: Logs = field(default_factory=Logs)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
