"""The doctor's judgement over the tasks' units and sockets; tests/e2e/test_box_service.py has the real ones."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

import pytest
from support.running import ROOT

from supervisor.tools.doctor import task_units
from supervisor.tools.doctor.external import sandboxed
from supervisor.tools.doctor.task_units import REQUIRED, SERVICES, SLICE, SOCKET_UNITS, closed, faults

Says = dict[str, dict[str, str]]
SERVICE, SOCKET = SERVICES[False], SOCKET_UNITS[False]
TEXT = (ROOT / "deploy/rae-task@.service").read_text().splitlines()
# How `systemctl show` spells what the files say.
SPELLED: dict[str, str | None] = {"NeedDaemonReload": None}


def shipped() -> Says:
    """The units as they ship, in systemd's form."""
    loaded = {"LoadState": "loaded", "ActiveState": "active", "NeedDaemonReload": "no"}
    commands = {"ExecStart": "{ argv[]=… main_in_unit() ; }", "ExecStartPre": "{ … set -- cgroup.freeze cgroup.kill; … }"}
    service = {**loaded, **{name: want for name, (want, _) in REQUIRED.items()}, **commands, "PrivateNetwork": "yes"}
    listener = {**loaded, "Accept": "yes", "SocketMode": "0600", "SocketUser": "anna"}
    says = {SLICE: {**loaded, "CPUWeight": "idle"}}
    for network in (False, True):
        says[SERVICES[network]] = dict(service)
        says[SOCKET_UNITS[network]] = {**listener, "Listen": f"{task_units.SOCKETS[network]} (Stream)"}
    says[SERVICES[True]]["PrivateNetwork"] = "no"
    return says


def test_a_program_is_tried_in_the_tasks_sandbox_alone() -> None:
    """With BindsTo= the try would start a node that somebody has stopped."""
    words = sandboxed({"FragmentPath": str(ROOT / "deploy/rae-task@.service")})
    assert {"--property=DynamicUser=yes", "--property=ProtectHome=yes"} <= set(words)
    assert not [word for word in words if word.startswith(("--property=BindsTo", "--property=Exec", "--property=Standard"))]


def test_what_ships_is_as_required() -> None:
    assert list(faults(shipped(), "anna")) == []
    for name, (want, _) in REQUIRED.items():
        value = SPELLED.get(name, want)
        assert value is None or f"{name}={value}" in TEXT, f"deploy/rae-task@.service does not say {name}={value}"
    for part in task_units.COMMANDS.values():
        assert any(part in line for line in TEXT)
    files = {path.name for path in (ROOT / "deploy").glob("rae[-.][ts]*")}
    assert {name for name in task_units.FILES if "network" not in name} == files


@pytest.mark.parametrize(
    ("unit", "change", "said"),
    [
        (SERVICE, {"DynamicUser": "no"}, "rae-task@.service: DynamicUser is no, not yes (a task needs a user of its own)"),
        (SERVICE, {"PrivateNetwork": "no"}, "rae-task@.service: PrivateNetwork is no, not yes"),
        (SERVICES[True], {"ProtectHome": "read-only"}, "rae-task-network@.service: ProtectHome is read-only, not yes"),
        (SERVICE, {"CapabilityBoundingSet": "cap_kill"}, "CapabilityBoundingSet is cap_kill, not empty"),
        (SERVICE, {"BindsTo": ""}, "BindsTo is empty, not rae-node.service"),
        (SERVICE, {"ExecStart": "{ argv[]=/bin/sh ; }"}, "rae-task@.service: ExecStart is not the installer's"),
        (SERVICE, {"ExecStartPre": ""}, "rae-task@.service: ExecStartPre is not the installer's"),
        (SERVICE, {"LoadState": "not-found"}, "rae-task@.service: not-found"),
        (SERVICE, {"LoadState": "masked"}, "rae-task@.service: masked"),
        (SOCKET, {"SocketUser": "bert"}, "rae-task.socket: SocketUser is bert, not anna (only the node may start tasks)"),
        (SOCKET, {"SocketMode": "0666"}, "rae-task.socket: SocketMode is 0666, not 0600"),
        (SOCKET, {"Listen": "/tmp/x (Stream)"}, "Listen is /tmp/x (Stream)"),
        (SOCKET, {"NeedDaemonReload": "yes"}, "systemctl daemon-reload"),
        (SLICE, {"CPUWeight": "100"}, "rae.slice: CPUWeight is 100, not idle"),
    ],
)
def test_every_difference_is_named(unit: str, change: Mapping[str, str], said: str) -> None:
    says = shipped()
    says[unit] |= change
    (fault,) = faults(says, "anna")
    assert said in fault


def test_a_systemd_that_does_not_answer_is_told() -> None:
    silent = {name: {"trouble": "no bus"} for name in shipped()}
    assert {*faults(silent, "anna")} == {f"{name.replace('@doctor', '@')}: no bus" for name in silent}
    assert len(list(faults({}, "anna"))) == len(silent)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        ("bind 600", ""),
        ("bind 666", "has mode 0666, not 0600"),
        ("none", "cannot be seen: No such file or directory"),
        ("file", "is no socket"),
        ("another's", "belongs to uid 12345"),
        ("inactive", "rae-task.socket is failed: no task can start"),
    ],
)
def test_sockets_are_the_nodes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: str, said: str) -> None:
    path, fine = tmp_path / "a.sock", tmp_path / "b.sock"
    monkeypatch.setattr(task_units, "SOCKETS", {False: path, True: fine})
    says = shipped()
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as other:
        other.bind(str(fine))
        fine.chmod(0o600)
        if make == "file":
            path.touch(0o600)
        elif make != "none":
            one.bind(str(path))
            path.chmod(0o666 if make == "bind 666" else 0o600)
        if make == "another's":
            if os.geteuid() != 0:
                pytest.skip("giving a file away needs root")
            os.chown(path, 12345, 12345)
        if make == "inactive":
            says[SOCKET]["ActiveState"] = "failed"
        found = list(closed(says, str(os.geteuid())))
    assert len(found) == bool(said)
    assert said in "".join(found)
