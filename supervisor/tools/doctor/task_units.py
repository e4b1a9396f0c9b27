"""The units that run the tasks (deploy/rae-task@.service): as required, and their sockets the node's alone."""

from __future__ import annotations

import json
import os
import pwd
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from supervisor.config.daemon_clients import daemon_client
from supervisor.config.load import Config
from supervisor.config.schema import TaskType
from supervisor.tasks.process.sandbox import SOCKETS
from supervisor.tools.doctor.external import first_line, run, sandboxed, show
from supervisor.tools.doctor.report import UNATTENDED, Check

SLICE: Final = "rae.slice"
# By: with the network. systemd shows a template only as an instance, which need not run.
SERVICES: Final = {False: "rae-task@doctor.service", True: "rae-task-network@doctor.service"}
SOCKET_UNITS: Final = {False: "rae-task.socket", True: "rae-task-network.socket"}
FILES: Final = (SLICE, *SOCKET_UNITS.values(), *(name.replace("@doctor", "@") for name in SERVICES.values()))
_WHICH: Final = "import json, shutil, sys; print(json.dumps([shutil.which(name) for name in sys.argv[1:]]))"
RELOAD: Final = ("no", "the file was changed: run systemctl daemon-reload")

# What these units must be, in the form of `systemctl show`, and why.
REQUIRED: Final[Mapping[str, tuple[str, str]]] = {
    "DynamicUser": ("yes", "a task needs a user of its own"),
    "BindsTo": ("rae-node.service", "no task may outlive the node"),
    "Slice": (SLICE, "a person's programs come first"),
    "KillMode": ("mixed", "no process may survive"),
    "StandardInput": ("socket", "the task comes through the socket"),
    "StandardOutput": ("null", "output is the task's data"),
    "LimitCORE": ("1", "cores hold task data"),
    "NoNewPrivileges": ("yes", "a task may not gain rights"),
    "CapabilityBoundingSet": ("", "a task may not gain rights"),
    "RestrictNamespaces": ("yes", "a task may not gain rights"),
    "RestrictSUIDSGID": ("yes", "a task may not gain rights"),
    "ProtectSystem": ("strict", "a task changes nothing outside of its folders"),
    "ProtectControlGroups": ("yes", "a task may not freeze or move anything"),
    "ProtectKernelTunables": ("yes", "a task may not change the kernel's settings"),
    "ProtectHome": ("yes", "a task may not read people's files"),
    "ProtectProc": ("invisible", "a task may not see other processes"),
    "DevicePolicy": ("closed", "a task gets a GPU, no disk and no keyboard"),
    "PrivateTmp": ("yes", "what a task leaves must end with it"),
    "PrivateIPC": ("yes", "what a task leaves must end with it"),
    "RemoveIPC": ("yes", "what a task leaves must end with it"),
    "KeyringMode": ("private", "what a task leaves must end with it"),
    "NeedDaemonReload": RELOAD,
}
# Parts of their commands: the shim, and what lets the node freeze and kill.
COMMANDS: Final = {"ExecStart": "main_in_unit", "ExecStartPre": "cgroup.freeze cgroup.kill"}
OF_SOCKET: Final[Mapping[str, tuple[str, str]]] = {
    "Accept": ("yes", "each task gets a unit"),
    "SocketMode": ("0600", "only the node may start tasks"),
    "NeedDaemonReload": RELOAD,
}
_NAMES: Final = (
    "LoadState", "ActiveState", "PrivateNetwork", "SocketUser", "Listen", "CPUWeight", *COMMANDS, *REQUIRED, *OF_SOCKET,
)  # fmt: skip


async def checks(node: Mapping[str, str], fix: str) -> list[Check]:
    """`node`: properties of rae-node.service. `fix`: how it is installed again."""
    names = ("task units", "task sockets")
    if node.get("LoadState") != "loaded":
        return [Check(name, UNATTENDED, None, "no service is installed") for name in names]
    says = await show([SLICE, *SERVICES.values(), *SOCKET_UNITS.values()], _NAMES)
    user = node.get("User", "")
    wrong = "; ".join(faults(says, user))
    right = "a task is a unit of its own, under a user of its own, as required"
    units = Check.of(names[0], UNATTENDED, wrong, right, f"see `systemctl cat rae-task@.service`, or {fix}")
    if node.get("ActiveState") != "active":
        return [units, Check(names[1], UNATTENDED, None, "they come with the service")]
    wrong = "; ".join(closed(says, user))
    return [units, Check.of(names[1], UNATTENDED, wrong, f"listening, for {user} alone", "run `systemctl restart rae-node`")]


async def programs(config: Config, node: Mapping[str, str]) -> list[Check]:
    """The programs of the types whose tasks get a unit, tried as its user, in its sandbox. Only root can do that."""
    types = {name: task for name, task in config.node.tasks.items() if task.executor == "command"}
    tried = {name: task.argv[0] for name, task in types.items() if in_unit(task) and not daemon_client(task.argv)}
    service = SERVICES[False]
    if not tried or os.geteuid() != 0 or node.get("LoadState") != "loaded":
        return []
    says = (await show([service], ("LoadState", "FragmentPath", "DropInPaths")))[service]
    if says.get("LoadState") != "loaded":
        return []
    code, out, err = await run(*sandboxed(says), sys.executable, "-I", "-S", "-c", _WHICH, *tried.values())
    try:
        paths = json.loads(out)
    except ValueError:
        return [Check("task programs", UNATTENDED, False, f"they could not be tried: {first_line(err, code)}")]
    fix = "it must be readable by everybody; a program in a home needs BindReadOnlyPaths= (systemctl edit rae-task@.service)"
    return [
        Check.of(
            f"task program: {name}", UNATTENDED, "" if path else f"a task's user cannot run {argv0}", f"{path} can be run", fix
        )
        for (name, argv0), path in zip(tried.items(), paths, strict=True)
    ]


def in_unit(task: TaskType) -> bool:
    """Where the units are installed, a task of this type gets one."""
    return task.sandbox in ("auto", "unit")


def faults(says: Mapping[str, Mapping[str, str]], user: str) -> Iterator[str]:
    """What is otherwise than required; a unit that is not there is one fault."""
    weight = {"CPUWeight": ("idle", "a person's programs come first"), "NeedDaemonReload": RELOAD}
    wanted: dict[str, Mapping[str, tuple[str, str]]] = {SLICE: weight}
    for network, name in SERVICES.items():
        alone = {} if network else {"PrivateNetwork": ("yes", "its type did not ask for the network")}
        wanted[name] = {**REQUIRED, **alone}
    for network, name in SOCKET_UNITS.items():
        listen = (f"{SOCKETS[network]} (Stream)", "the node connects there")
        wanted[name] = {**OF_SOCKET, "SocketUser": (user, "only the node may start tasks"), "Listen": listen}
    for name, required in wanted.items():
        found, shown = says.get(name, {}), name.replace("@doctor", "@")
        if found.get("LoadState") != "loaded":
            yield f"{shown}: {found.get('trouble') or found.get('LoadState') or 'unknown'}"
            continue
        for key, (want, why) in required.items():
            if found.get(key) != want:
                yield f"{shown}: {key} is {found.get(key) or 'empty'}, not {want or 'empty'} ({why})"
        for key, part in COMMANDS.items() if name in SERVICES.values() else ():
            if part not in found.get(key, ""):
                yield f"{shown}: {key} is not the installer's"


def closed(says: Mapping[str, Mapping[str, str]], user: str) -> Iterator[str]:
    """Why a task cannot start now, or somebody else could start one: what is wrong with the sockets."""
    try:
        uid = int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid
    except KeyError:
        yield f"there is no user {user}"
        return
    for network, name in SOCKET_UNITS.items():
        path = SOCKETS[network]
        if (state := says.get(name, {}).get("ActiveState")) != "active":
            yield f"{name} is {state or 'unknown'}: no task can start"
        elif trouble := _trouble(path, uid):
            yield f"{path} {trouble}"


def _trouble(path: Path, uid: int) -> str:
    try:
        seen = os.lstat(path)
    except OSError as error:
        return f"cannot be seen: {error.strerror}"
    if not stat.S_ISSOCK(seen.st_mode):
        return "is no socket"
    if seen.st_uid != uid:
        return f"belongs to uid {seen.st_uid}, not to {uid}"
    mode = stat.S_IMODE(seen.st_mode)
    return f"has mode {mode:04o}, not 0600" if mode != 0o600 else ""
