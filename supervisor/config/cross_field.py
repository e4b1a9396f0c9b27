"""Checks the fields of node.yaml against each other, once each is sound alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from supervisor.config.executor_names import BUILT_IN, NoExecutor, installed
from supervisor.config.schema import Control, NodeSettings
from supervisor.config.urls import host_of, is_loopback, nats_fault, url_fault
from supervisor.config.validate import Validator, join
from supervisor.config.yaml_reader import YamlNode

OLLAMA_TYPES: Final = ("llm_inference", "quality_loop", "code_verify_cycle")

Refuse = Callable[[str, str | None, str], None]


def cross_check(validator: Validator, node: NodeSettings, folder: Path) -> None:
    """Report combinations of settings that cannot work."""

    def refuse(path: str, what: str | None, allowed: str) -> None:
        place = validator.places.get(path)
        section = path
        while place is None and section:  # a setting at its default has the place of its section
            section = section.rpartition(".")[0]
            place = validator.places.get(section)
        place = place or YamlNode(1, 1)
        validator.refuse(place, path, validator.found(place, path) if what is None else what, allowed)

    _check_control(node.control, refuse)
    for name, task in node.tasks.items():
        path = join("tasks", name)
        try:
            if task.executor not in BUILT_IN:
                installed(task.executor)
        except NoExecutor as missing:
            refuse(f"{path}.executor", None, str(missing))
            continue
        if task.executor == "ollama_api":
            if name not in OLLAMA_TYPES:
                refuse(f"{path}.executor", None, f"for ollama_api the types {', '.join(OLLAMA_TYPES)}")
            fault = url_fault(task.ollama_url)
            if fault or not task.ollama_url.startswith("http://") or not is_loopback(host_of(task.ollama_url)):
                refuse(f"{path}.ollama_url", None, "an http URL of this machine (127.0.0.1, ::1, localhost)")
        if task.executor == "ollama_api" and task.hold_sec:
            refuse(f"{path}.hold_sec", None, "0 for ollama_api: Ollama's own process cannot be frozen")
        if task.checkpoint != "none" and not (node.work.hold_sec if task.hold_sec is None else task.hold_sec):
            refuse(f"{path}.checkpoint", None, "none without a hold_sec: only a frozen task uses it")
        if task.notice.signal != "none" and task.on_yield == "terminate" and task.notice.deadline_sec >= task.grace_sec:
            refuse(f"{path}.notice.deadline_sec", None, f"less than grace_sec ({task.grace_sec:g}), of which it is a part")
        if task.executor == "shell_command" and not task.allow_any_command:
            what = "shell_command, which runs any text that the control node sends, without allow_any_command: true"
            refuse(f"{path}.executor", what, "command, with the program in argv")
        elif task.executor == "shell_command" and task.sandbox == "none":
            refuse(f"{path}.sandbox", None, "auto, unit or bubblewrap for shell_command")
        if task.executor != "command":
            continue
        if not task.argv:
            what = "an empty list" if f"{path}.argv" in validator.places else "nothing"
            refuse(f"{path}.argv", what, "a list with the program first")
        elif not task.argv[0]:
            refuse(f"{path}.argv[0]", None, "the program to run")
    for number, argv in enumerate(node.host.checks):
        if not argv or not argv[0]:
            refuse(f"host.checks[{number}]", "''" if argv else "an empty list", "a list with the program first")
    _check_paths(node, folder, refuse)


def resolve(folder: Path, path: str) -> Path:
    """A path of node.yaml, absolute: a relative one starts at the configuration folder, `~` is the user's home."""
    return Path(os.path.abspath(os.path.join(folder, os.path.expanduser(path))))


def _check_control(control: Control, refuse: Refuse) -> None:
    given = [name for name in control.token.__struct_fields__ if getattr(control.token, name) is not None]
    for name in given[1:]:
        allowed = f"at most one of {', '.join(control.token.__struct_fields__)}"
        refuse(f"control.token.{name}", f"a second place for the key, beside control.token.{given[0]}", allowed)
    if why := nats_fault(control.url) if control.source == "nats" else url_fault(control.url):
        default = control.url if control.url == Control().url else None
        # user names and passwords stay out of logs
        refuse("control.url", "a URL with a user name or password" if "@" in control.url else default, why)
    elif control.source == "embedded" and not is_loopback(host_of(control.url)):
        refuse("control.url", None, "an address of this machine (127.0.0.1, ::1, localhost), as control.source is embedded")


def _check_paths(node: NodeSettings, folder: Path, refuse: Refuse) -> None:
    named = {f"paths.{name}": getattr(node.paths, name) for name in node.paths.__struct_fields__}
    files = {"control.ca_file": node.control.ca_file, "control.token.file": node.control.token.file}
    for path, text in {**named, **files}.items():
        if text is not None and os.path.expanduser(text).startswith("~"):
            refuse(path, None, "a path whose home folder is known on this machine")
    # the work folder is wiped, so nothing else may lie in it
    workdir = os.path.realpath(resolve(folder, node.paths.workdir))
    keep = {path: resolve(folder, text) for path, text in named.items() if path != "paths.workdir"}
    keep |= {path: resolve(folder, text) for path, text in files.items() if text is not None}
    keep |= {"the configuration": folder, "the user's home": resolve(folder, "~")}
    for what, other in keep.items():
        if os.path.commonpath([workdir, os.path.realpath(other)]) == workdir:
            refuse("paths.workdir", None, f"a folder of its own: it is wiped, and {what} lies in it")
            break
