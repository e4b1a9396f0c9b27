"""runtime.yaml (exactly the seed's fields) and node.yaml → one frozen Config; every error at once, with its place (R7).

Imported before anything heavy, so that a broken configuration is told quickly. The fields are described in
`schema.py`, judged in `validate.py`, and compared with each other in `cross_field.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from states.limits import Limits
from supervisor.config.cross_field import cross_check, resolve
from supervisor.config.schema import NODE_FILE, RUNTIME_FILE, Control, NodeSettings, Runtime, TaskType
from supervisor.config.validate import allow_empty_sections, validate
from supervisor.config.yaml_reader import Problem, UnreadableFile, in_words, printable, read

INSTALLED: Final = Path("/opt/rae-node/agent")


class ConfigErrors(Exception):
    """The configuration is broken; `problems` holds one line each, in file order. Exit code 2."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


@dataclass(frozen=True, slots=True)
class Folders:
    """node.yaml's `paths`, absolute."""

    logs: Path
    workdir: Path
    runtime: Path
    state: Path


@dataclass(frozen=True, slots=True)
class Config:
    """A sound configuration. `notes` are one-line remarks that are no errors."""

    folder: Path
    runtime: Runtime
    node: NodeSettings
    limits: Limits
    paths: Folders
    node_id: str
    notes: tuple[str, ...] = ()

    def resolve(self, path: str) -> Path:
        """A path of node.yaml: a relative one starts at the configuration folder, `~` is the user's home."""
        return resolve(self.folder, path)

    @property
    def control(self) -> Control:
        """node.yaml's `control` as it is to be used: with its files' whole paths."""
        control = self.node.control
        token, ca_file = control.token, control.ca_file
        return msgspec.structs.replace(
            control,
            ca_file=None if ca_file is None else str(self.resolve(ca_file)),
            token=token if token.file is None else msgspec.structs.replace(token, file=str(self.resolve(token.file))),
        )


def find_folder(given: str | os.PathLike[str] | None = None, environ: Mapping[str, str] | None = None) -> Path:
    """The configuration folder (interface §1): --config, else $RAE_NODE_CONFIG, else the installed one, else ./config."""
    named = given or (os.environ if environ is None else environ).get("RAE_NODE_CONFIG")
    if named:
        return Path(named)
    return INSTALLED if INSTALLED.is_dir() else Path("config")


def load(folder: Path) -> Config:
    """Read and validate both files of a folder.

    Raises:
        ConfigErrors: all that is wrong with them, runtime.yaml first.
    """
    folder = Path(os.path.abspath(folder))
    notes: list[str] = []
    problems: list[Problem] = []

    runtime = None
    try:
        text = read(folder, RUNTIME_FILE)
        if text is None:
            raise UnreadableFile(_missing(folder))
        runtime = validate(Runtime, text, RUNTIME_FILE, problems, notes)
    except UnreadableFile as refused:
        problems.append(refused.problem)

    node: NodeSettings | None = NodeSettings()
    try:
        text = read(folder, NODE_FILE)
        if text is None:
            notes.append(f"{NODE_FILE}: not found in {folder}; every setting is at its default")
        else:
            node = validate(NodeSettings, text, NODE_FILE, problems, notes, lambda v, node: cross_check(v, node, folder))
    except UnreadableFile as refused:
        problems.append(refused.problem)

    if problems or runtime is None or node is None:
        raise ConfigErrors(problems)
    return Config(
        folder=folder,
        runtime=runtime,
        node=node,
        limits=limits_of(runtime, node),
        paths=Folders(**{name: resolve(folder, getattr(node.paths, name)) for name in node.paths.__struct_fields__}),
        node_id=node.node.id or _host_id(),
        notes=(*notes, *_notes(runtime, node)),
    )


def schema(which: Literal["runtime", "node"]) -> dict[str, Any]:
    """The JSON schema of a file, for editors; the same types and words as the errors (interface §4)."""
    document: dict[str, Any] = msgspec.json.schema(Runtime if which == "runtime" else NodeSettings)
    if which == "node":
        allow_empty_sections(document)
    title = f"{which}.yaml of rae-node"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **document}


def fingerprint(folder: Path) -> tuple[tuple[int, int, int] | None, tuple[int, int, int] | None]:
    """What changes when either file does: (mtime_ns, size, inode) of runtime.yaml and of node.yaml, None for a missing one."""
    return _stamp(os.path.join(folder, RUNTIME_FILE)), _stamp(os.path.join(folder, NODE_FILE))


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _missing(folder: Path) -> Problem:
    """No runtime.yaml: the most likely reason is a wrong folder."""
    todo = f"copy the shipped config/{RUNTIME_FILE} there, or name the folder that holds it with --config"
    if not os.path.isdir(folder):
        todo = f"there is no such folder; name the one that holds {RUNTIME_FILE} with --config"
    return Problem(RUNTIME_FILE, 0, 0, "", f"not found in {in_words(folder)}", todo)


def _host_id() -> str:
    """The host name as a node id: other characters become dashes."""
    name = re.sub("[^A-Za-z0-9._-]", "-", os.uname().nodename).lstrip("._-")
    return name[:64] or "node"


def limits_of(runtime: Runtime, node: NodeSettings) -> Limits:
    """What the guards compare with; minutes become seconds here and nowhere else."""
    safety = runtime.safety
    return Limits(
        detect_active_user=safety.detect_active_user,
        idle_required_s=safety.idle_required_minutes * 60,
        max_cpu_percent=safety.max_cpu_percent,
        max_gpu_percent=safety.max_gpu_percent,
        max_vram_gb=safety.max_vram_gb,
        cooldown_s=safety.cooldown_minutes * 60,
        task_timeout_s=runtime.execution.task_timeout_minutes * 60,
        task_timeouts_s={
            name: task.timeout_minutes * 60 for name, task in node.tasks.items() if task.timeout_minutes is not None
        },
        run_s=node.work.run_minutes * 60,
        hold_s=node.work.hold_sec,
        holds_s={name: hold for name, task in node.tasks.items() if (hold := _hold(task)) is not None},
        gpu_required=node.gpu.presence == "required",
    )


def _hold(task: TaskType) -> float | None:
    """Seconds; None: as all. What Ollama computes in a process of its own cannot be frozen."""
    return 0.0 if task.executor == "ollama_api" else task.hold_sec



def _notes(runtime: Runtime, node: NodeSettings) -> list[str]:
    """What is sound, but perhaps not meant."""
    notes = []
    if not node.tasks:
        notes.append(f"{NODE_FILE}: tasks names no task type; no task can run here")
    limit = runtime.execution.task_timeout_minutes
    for name, task in node.tasks.items():
        if task.timeout_minutes is not None and task.timeout_minutes > limit:
            notes.append(
                f"{NODE_FILE}: tasks.{printable(name)}.timeout_minutes {task.timeout_minutes:g} is above "
                f"execution.task_timeout_minutes {limit:g}, which holds"
            )
    return notes
