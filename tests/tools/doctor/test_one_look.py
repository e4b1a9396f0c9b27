"""The short answers (R9, R10): whatever goes wrong is a "no", by exit and first line, and every source is listed."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.running import NodeFolder

from supervisor.config.load import load
from supervisor.linux.clock import SystemClock
from supervisor.linux.control_socket import SOCKET_NAME, ControlServer
from supervisor.sensors import sensor_set
from supervisor.sensors.presence.logind import START_SIGN
from supervisor.sensors.presence.terminals import Terminals
from supervisor.tools.doctor import one_look

ROOT = Path(__file__).parents[3]
SCRIPTS = {"check_user_idle.py": "check-user", "check_gpu_load.py": "check-gpu"}
WAYS = [*SCRIPTS, *SCRIPTS.values()]


def ask(way: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """By a script, as installed, or by the command."""
    argv = [sys.executable, str(ROOT / "deploy/agent" / way)]
    if way not in SCRIPTS:
        argv = [sys.executable, "-I", "-m", "supervisor.cli.main", way]
    return subprocess.run([*argv, *arguments], capture_output=True, text=True, timeout=60, env={**os.environ, **more})


@pytest.fixture
def folder(tmp_path: Path) -> NodeFolder:
    return NodeFolder.make(tmp_path / "n", node={"gpu": {"presence": "optional"}})


def is_a_no(done: subprocess.CompletedProcess[str]) -> bool:
    return done.returncode == 1 and done.stdout.startswith("DO NOT RUN: ") and "Traceback" not in done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("arguments", [["--bogus"], ["--config"], ["--json=maybe"], ["user"]], ids=" ".join)
def test_a_script_answers_yes_or_no_only(script: str, arguments: list[str]) -> None:
    """The command itself calls wrong usage by its own number, 2, as every command does."""
    assert is_a_no(ask(script, *arguments))
    assert ask(SCRIPTS[script], *arguments).returncode == 2


@pytest.mark.parametrize("way", WAYS)
def test_no_configuration_is_a_no(way: str) -> None:
    assert is_a_no(ask(way, "--config", "/nowhere"))


@pytest.mark.parametrize("way", WAYS)
def test_a_broken_file_is_a_no_with_its_place(way: str, folder: NodeFolder) -> None:
    (folder.path / "runtime.yaml").write_text("automation: [\n")
    done = ask(way, "--config", str(folder.path))
    assert is_a_no(done)
    assert "runtime.yaml:" in done.stdout.splitlines()[0]


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_that_nobody_reads_is_a_no(way: str, folder: NodeFolder) -> None:
    """`check-user | true`: the exit that a script looks at must not say yes for a closed pipe."""
    reading, writing = os.pipe()
    os.close(reading)
    argv = [sys.executable, str(ROOT / "deploy/agent" / way)] if way in SCRIPTS else [
        sys.executable, "-I", "-m", "supervisor.cli.main", way
    ]
    done = subprocess.run([*argv, "--config", str(folder.path)], stdout=writing, stderr=subprocess.PIPE, timeout=60)
    os.close(writing)
    assert (done.returncode, b"Traceback" in done.stderr) == (1, False)


def test_the_door_and_the_command_say_the_same(folder: NodeFolder) -> None:
    """And list every source with its reading, time and quality (no bus and no GPU here: one is blind, so it is a no)."""
    for script, command in SCRIPTS.items():
        away = {"DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nowhere/bus"}
        by_script, by_command = (ask(way, "--json", "--config", str(folder.path), **away) for way in (script, command))
        assert by_script.returncode == by_command.returncode
        one, other = json.loads(by_script.stdout), json.loads(by_command.stdout)
        assert one.keys() == {"safe", "reasons", "readings"}
        assert [r["name"] for r in one["readings"]] == [r["name"] for r in other["readings"]]
    names = [
        "user_away", "logind", "session agents", "displays and remote logins", "terminals", "input", "idle_detect", "rae-node",
        "gpu processes",
    ]  # fmt: skip
    user = json.loads(ask("check-user", "--json", "--config", str(folder.path), **away).stdout)
    known = folder_sources(user)
    assert known == [name for name in names if name in known]


def folder_sources(answer: dict[str, object]) -> list[str]:
    """The names of the sources, each of which must say how good its reading is."""
    readings = answer["readings"]
    assert isinstance(readings, list)
    for reading in readings[1:]:
        assert reading["quality"] in ("event", "polled", "inferred", "assumed", "unknown")
        assert reading["ok"] is not None or reading["quality"] == "unknown"
        assert "age_s" in reading
    return [reading["name"] for reading in readings]


def source(reading: str, idle_s: float | None, present: bool | None = False, quality: str = "event") -> dict[str, Any]:
    """One source in a daemon's `status`."""
    return {"source": "input", "reading": reading, "present": present, "idle_s": idle_s, "age_s": 0.0, "quality": quality}


def away(idle_s: Any, ok: bool | None = False, reason: str = "user active") -> dict[str, Any]:
    """The guard in a daemon's `status`."""
    return {"name": "user_away", "ok": ok, "value": idle_s, "reason": reason}


def beside_a_node(folder: Path, status: dict[str, Any] | None, **presence: bool) -> one_look.Answer:
    """check-user while a node runs that answers `status` so; None: no node runs. Its only own source is the terminals."""
    node = {"presence": {"sessions": False, "input": "off", **presence}, "gpu": {"presence": "none"}}
    config = load(NodeFolder.make(folder / "n", runtime=WATCHED, node=node).path)
    config.paths.runtime.mkdir()

    async def look() -> one_look.Answer:
        server = ControlServer(config.paths.runtime / SOCKET_NAME, {"status": lambda *_: dict(status or {})}, frozenset())
        if status is not None:
            await server.start()
        try:
            return one_look.check_user(await one_look.look_once(config), config)
        finally:
            await server.stop()

    return asyncio.run(look())


WATCHED = {"safety": {"detect_active_user": True, "idle_required_minutes": 1}}
PAD = source("user active on gamepad 'Pad' (event7)", 2.0)
STARTED = source(START_SIGN, 2.0, quality="assumed")
UNKNOWN = "user unknown: what was before this look is not known: "
SOMEBODY = "user active, as the running node has seen"
FILM = source("idle blocked by film of anna", None, True)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        pytest.param(None, UNKNOWN + "the daemon is not running", id="no node"),
        pytest.param(
            {"guards": [away(2.0)], "presence": [source("no source", None), PAD, source("anna logged in on tty1", 500.0)]},
            "user active on gamepad 'Pad' (event7), as the running node has seen", id="the nearest sign",
        ),
        pytest.param({"guards": [away(2.0)], "presence": [STARTED]}, START_SIGN, id="its own start: who left before?"),
        pytest.param({"guards": [away(2.0)], "presence": []}, SOMEBODY, id="who may not ask"),
        pytest.param({"guards": [away(2.0)], "presence": [source("user active on pts/1", 900.0)]}, SOMEBODY, id="its GPU"),
        pytest.param({"guards": [away(0.0)], "presence": [PAD, FILM]}, "idle blocked by film of anna, as the", id="a film"),
        pytest.param({"guards": [away(4000.0, True)], "presence": [source("user active on pts/1", 4000.0)]}, "", id="away"),
        pytest.param(
            {"guards": [away(None, None, "user unknown: logind is not running")]},
            UNKNOWN + "the running node says: user unknown: logind is not running", id="it does not know",
        ),
        pytest.param({"guards": [away(None, True)]}, UNKNOWN + "the running node does not say", id="it does not watch"),
        pytest.param({"guards": [7, {}, away("x", True)]}, UNKNOWN, id="another version's fields"),
        pytest.param({"guards": "words", "presence": "words"}, UNKNOWN, id="another version"),
    ],
)  # fmt: skip
def test_what_was_before_the_look_only_a_running_node_knows(
    status: dict[str, Any] | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One look sees no button that was pressed before it, no film that has ended, and nobody who has logged out."""
    (tmp_path / "dev/pts").mkdir(parents=True)
    monkeypatch.setattr(sensor_set, "Terminals", lambda clock, **_: Terminals(clock, tmp_path / "dev"))
    check = beside_a_node(tmp_path, status)
    assert bool(check.reasons) is bool(reason), check
    assert [line[: len(reason)] for line in check.reasons] == ([reason] if reason else [])


def test_a_node_that_hangs_has_seen_nothing_that_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_look, "RECALL_S", 0.1)
    config = load(NodeFolder.make(tmp_path / "n").path)
    config.paths.runtime.mkdir()
    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(str(config.paths.runtime / SOCKET_NAME))
        hung.listen()
        told = one_look.remembered(config, SystemClock()).latest(0.0)
    assert told.error.startswith("what was before this look is not known: the daemon does not answer within 0.1 s")


def test_a_running_node_does_not_replace_the_own_sources(tmp_path: Path) -> None:
    """With no source of presence of its own a look proves nothing, whatever the node remembers."""
    check = beside_a_node(tmp_path, {"guards": [away(1e6, True)]}, terminals=False)
    assert "no source of presence is switched on" in check.reasons[0]
