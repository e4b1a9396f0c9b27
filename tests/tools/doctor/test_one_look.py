"""The short answers (R9, R10): whatever goes wrong is a "no", by exit and first line, and every source is listed."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.running import NodeFolder

from supervisor.config.load import load
from supervisor.linux.clock import Clock
from supervisor.linux.control_socket import SOCKET_NAME, ControlServer
from supervisor.sensors import sensor_set
from supervisor.sensors.presence.logind import BACK_SIGN, START_SIGN
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
    names = ["user_away", "logind", "session agents", "terminals", "input", "idle_detect", "gpu processes"]
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


def beside_a_node(folder: Path, remembered: Any, **presence: bool) -> one_look.Answer:
    """check-user while a node runs whose `status` shows `remembered`; its only own source is the terminals."""
    node = {"presence": {"sessions": False, "input": "off", **presence}, "gpu": {"presence": "none"}}
    config = load(NodeFolder.make(folder / "n", runtime=WATCHED, node=node).path)
    config.paths.runtime.mkdir()

    async def look() -> one_look.Answer:
        server = ControlServer(config.paths.runtime / SOCKET_NAME, {"status": lambda *_: {"presence": remembered}}, frozenset())
        await server.start()
        try:
            return one_look.check_user(await one_look.look_once(config), config)
        finally:
            await server.stop()

    return asyncio.run(look())


WATCHED = {"safety": {"detect_active_user": True, "idle_required_minutes": 1}}
PAD = source("user active on gamepad 'Pad' (event7)", 2.0)
ASSUMED = [source(sign, 2.0, quality="assumed") for sign in (START_SIGN, BACK_SIGN)]
REMEMBERED = "user active on gamepad 'Pad' (event7), as the running node has seen"


@pytest.mark.parametrize(
    ("remembered", "reason"),
    [
        pytest.param([source("no source: no input device can be read", None), PAD], REMEMBERED, id="a gamepad"),
        pytest.param([source("user anna logged in on tty1", 500.0), PAD], REMEMBERED, id="the nearest sign"),
        pytest.param(ASSUMED, "", id="its own start is no sign"),
        pytest.param([source("unknown", 2.0, None)], "", id="a source that knows nothing"),
        pytest.param([7, {}, source("x", None), {"idle_s": "x"}], "", id="another version's fields"),
        pytest.param("words", "", id="another version"),
    ],
)
def test_what_the_running_node_has_seen_counts_in_one_look(
    remembered: Any, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One look sees no button that was pressed before it, and no film that has ended."""
    (tmp_path / "dev/pts").mkdir(parents=True)
    terminals: Callable[[Clock], Terminals] = lambda clock: Terminals(clock, tmp_path / "dev")  # noqa: E731 - typed
    monkeypatch.setattr(sensor_set, "Terminals", terminals)
    check = beside_a_node(tmp_path, remembered)
    assert bool(check.reasons) is bool(reason), check
    assert [line[: len(reason)] for line in check.reasons] == ([reason] if reason else [])


def test_a_running_node_does_not_replace_the_own_sources(tmp_path: Path) -> None:
    """With no source of presence of its own a look proves nothing, whatever the node remembers."""
    check = beside_a_node(tmp_path, [source("user active on pts/3", 1e6)], terminals=False)
    assert "no source of presence is switched on" in check.reasons[0]
