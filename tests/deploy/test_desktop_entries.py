"""The desktop entries for the person at the desk: valid, and the commands that they start show their answer."""

from __future__ import annotations

import asyncio
import configparser
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from support.desktop_panel import MessageService
from support.login1 import PrivateBus
from support.running import RAE_NODE, NodeFolder, daemon

FOLDER = Path(__file__).parents[2] / "deploy/desktop"
ENTRIES = sorted(path.name for path in FOLDER.glob("*.desktop"))
ANSWERS = {
    ("rae-node-pause.desktop", "Desktop Entry"): "until `rae-node resume`",
    ("rae-node-pause.desktop", "Desktop Action two-hours"): "paused until ",
    ("rae-node-resume.desktop", "Desktop Entry"): "the node is on",
}


def commands(name: str) -> dict[str, list[str]]:
    """Section → argv, by the rules of the desktop entry specification."""
    parser = configparser.RawConfigParser(strict=True)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(FOLDER / name)
    return {
        section: unquoted(parser[section]["Exec"].replace("\\\\", "\\"))
        for section in parser.sections() if "Exec" in parser[section]
    }


def unquoted(line: str) -> list[str]:
    """The arguments of an Exec line; in quotes a backslash stands before ", `, $ and itself."""
    found = re.findall(r'"((?:\\["`$\\]|[^"\\])*)"|(\S+)', line)
    return [re.sub(r'\\(["`$\\])', r"\1", quoted) if quoted else bare for quoted, bare in found]


@pytest.mark.parametrize("name", ENTRIES)
def test_the_validator_has_nothing_to_say(name: str) -> None:
    if shutil.which("desktop-file-validate") is None:
        pytest.skip("no desktop-file-validate here: apt-get install desktop-file-utils")
    done = subprocess.run(["desktop-file-validate", str(FOLDER / name)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("name", ENTRIES)
def test_its_icon_is_shipped(name: str) -> None:
    icon = re.search(r"^Icon=(.+)$", (FOLDER / name).read_text(), re.MULTILINE)
    assert icon
    assert (FOLDER / "icons" / f"{icon[1]}.svg").exists()


def test_every_command_is_tried_below() -> None:
    assert {(name, section) for name in ENTRIES for section in commands(name)} == set(ANSWERS)


@pytest.mark.slow
def test_a_click_says_the_word_and_shows_the_answer(tmp_path: Path) -> None:
    """By the real busctl, on a real bus."""
    folder = NodeFolder.make(tmp_path / "n")
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "rae-node").write_text(f'#!/bin/sh\nexec {shlex.join(RAE_NODE)} "$@" --config {folder.path}\n')
    (tools / "rae-node").chmod(0o755)

    async def click(name: str, section: str, env: dict[str, str]) -> None:
        clicked = await asyncio.create_subprocess_exec(*commands(name)[section], env=env, cwd="/")
        assert await asyncio.wait_for(clicked.wait(), 60) == 0

    async def story(address: str) -> None:
        messages = await MessageService(address).start()
        env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "DBUS_SESSION_BUS_ADDRESS": address}
        env["XDG_RUNTIME_DIR"] = str(tmp_path)
        with daemon(folder) as node:
            node.wait_for("READY")
            for (name, section), answer in ANSWERS.items():
                await click(name, section, env)
                title, text, _ = messages.shown[-1]
                assert title == "rae-node"
                assert answer in text
                node.wait_for("DISABLED" if "pause" in name else "READY")
            node.kill()
        await click("rae-node-pause.desktop", "Desktop Entry", env)
        assert "the daemon is not running" in messages.shown[-1][1]
        await messages.stop()

    with PrivateBus(tmp_path) as bus:
        asyncio.run(story(bus.address))
