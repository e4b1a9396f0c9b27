"""runtime.yaml and node.yaml → one frozen Config. All errors are reported at once, each with its place.

Imported before anything heavy, so that a broken configuration is reported quickly. `schema.py` describes the fields,
`validate.py` checks each value, `cross_field.py` compares them.
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
from supervisor.config.schema import NODE_FILE, RUNTIME_FILE, Control, NodeSettings, Runtime
from supervisor.config.validate import allow_empty_sections, validate
from supervisor.config.yaml_reader import MAX_PATH, Problem, UnreadableFile, printable, read

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
    """A sound configuration. `notes` are remarks of one line each."""

    folder: Path
    runtime: Runtime
    node: NodeSettings
    limits: Limits
    paths: Folders
    node_id: str
    notes: tuple[str, ...] = ()

    def resolve(self, path: str) -> Path:
        """A path of node.yaml, absolute."""
        return resolve(self.folder, path)

    @property
    def control(self) -> Control:
        """node.yaml's `control` with absolute paths."""
        control = self.node.control
        token, ca_file = control.token, control.ca_file
        return msgspec.structs.replace(
            control,
            ca_file=None if ca_file is None else str(self.resolve(ca_file)),
            token=token if token.file is None else msgspec.structs.replace(token, file=str(self.resolve(token.file))),
        )


def find_folder(given: str | os.PathLike[str] | None = None, environ: Mapping[str, str] | None = None) -> Path:
    """The configuration folder: --config, else $RAE_NODE_CONFIG, else the installed one, else ./config."""
    named = given or (os.environ if environ is None else environ).get("RAE_NODE_CONFIG")
    if named:
        return Path(named)
    return INSTALLED if INSTALLED.is_dir() else Path("config")


def load(folder: Path) -> Config:
    """Read and check both files of a folder.

    Raises:
        ConfigErrors: everything that is wrong, runtime.yaml first.
    """
    folder = Path(os.path.abspath(folder))
    problems: list[Problem] = []
    notes: list[str] = []
    runtime, node = None, NodeSettings()
    try:
        text = read(folder, RUNTIME_FILE)
        if text is None:
            raise UnreadableFile(_missing(folder))
        runtime = validate(Runtime, text, RUNTIME_FILE, problems, notes)
    except UnreadableFile as error:
        problems.append(error.problem)
    try:
        text = read(folder, NODE_FILE)
        if text is None:
            notes.append(f"{NODE_FILE}: not found in {folder}; every setting is at its default")
        else:
            found = validate(NodeSettings, text, NODE_FILE, problems, notes, lambda v, node: cross_check(v, node, folder))
            node = found or node
    except UnreadableFile as error:
        problems.append(error.problem)
    if problems or runtime is None:
        raise ConfigErrors(problems)
    return Config(
        folder=folder,
        runtime=runtime,
        node=node,
        limits=limits_of(runtime, node),
        paths=folders(folder, node),
        node_id=node.node.id or _host_id(),
        notes=(*notes, *_notes(runtime, node)),
    )


def folders(folder: Path, node: NodeSettings) -> Folders:
    """node.yaml's `paths`; a relative path starts at `folder`."""
    return Folders(**{name: resolve(folder, path) for name, path in msgspec.structs.asdict(node.paths).items()})


def schema(which: Literal["runtime", "node"]) -> dict[str, Any]:
    """The JSON schema of a file, for editors."""
    document: dict[str, Any] = msgspec.json.schema(Runtime if which == "runtime" else NodeSettings)
    if which == "node":
        allow_empty_sections(document)
    title = f"{which}.yaml of rae-node"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **document}


def fingerprint(folder: Path) -> tuple[tuple[int, int, int] | None, ...]:
    """(mtime_ns, size, inode) of runtime.yaml and of node.yaml, None for a missing one: it changes when a file does."""
    return tuple(_stamp(os.path.join(folder, file)) for file in (RUNTIME_FILE, NODE_FILE))


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _missing(folder: Path) -> Problem:
    """No runtime.yaml: most likely the wrong folder."""
    todo = f"copy the shipped config/{RUNTIME_FILE} there, or name the folder that holds it with --config"
    if not os.path.isdir(folder):
        todo = f"there is no such folder; name the one that holds {RUNTIME_FILE} with --config"
    return Problem(RUNTIME_FILE, 0, 0, "", f"not found in {printable(str(folder), MAX_PATH)}", todo)


def _host_id() -> str:
    """The host name as a node id: other characters become dashes."""
    name = re.sub("[^A-Za-z0-9._-]", "-", os.uname().nodename).lstrip("._-")
    return name[:64] or "node"


def limits_of(runtime: Runtime, node: NodeSettings) -> Limits:
    """What the guards compare with. The only place where minutes become seconds."""
    safety, tasks = runtime.safety, node.tasks.items()
    # Ollama computes in its own process, which cannot be frozen
    holds_s = {name: 0.0 if task.executor == "ollama_api" else task.hold_sec for name, task in tasks}
    return Limits(
        detect_active_user=safety.detect_active_user,
        idle_required_s=safety.idle_required_minutes * 60,
        max_cpu_percent=safety.max_cpu_percent,
        max_gpu_percent=safety.max_gpu_percent,
        max_vram_gb=safety.max_vram_gb,
        cooldown_s=safety.cooldown_minutes * 60,
        task_timeout_s=runtime.execution.task_timeout_minutes * 60,
        task_timeouts_s={name: task.timeout_minutes * 60 for name, task in tasks if task.timeout_minutes is not None},
        run_s=node.work.run_minutes * 60,
        hold_s=node.work.hold_sec,
        holds_s={name: hold_s for name, hold_s in holds_s.items() if hold_s is not None},
        gpu_required=node.gpu.presence == "required",
    )


def _notes(runtime: Runtime, node: NodeSettings) -> list[str]:
    """What is sound, but perhaps not meant."""
    notes = [] if node.tasks else [f"{NODE_FILE}: tasks names no task type; no task can run here"]
    limit = runtime.execution.task_timeout_minutes
    for name, task in node.tasks.items():
        if task.timeout_minutes is not None and task.timeout_minutes > limit:
            notes.append(
                f"{NODE_FILE}: tasks.{printable(name)}.timeout_minutes {task.timeout_minutes:g} is above "
                f"execution.task_timeout_minutes {limit:g}, which applies"
            )
    return notes
