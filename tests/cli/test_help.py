"""The help of every command, read in process: its exit codes, and errors of usage in one line."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest
import typer

from supervisor.cli import main as cli
from supervisor.cli.manual import _commands, page

ROOT: Any = typer.main.get_command(cli.app)
COMMANDS = {name: command for name, command, _ in _commands(ROOT, typer.Context(ROOT, info_name="rae-node"))}

# Beside 130 (interrupted) everywhere, and 2 (wrong usage) where a command has no other use for it (interface §4).
EXITS = {
    "run": "012", "demo": "01", "control": "01", "status": "034", "why": "034", "top": "034", "check-user": "01",
    "check-gpu": "01", "dry-run": "01", "replay": "012", "diagram": "01234", "config check": "012", "config schema": "0",
    "report": "01", "verify": "01", "doctor": "01", "enable": "013", "disable": "01", "pause": "0134", "resume": "0134",
    "timeline": "02", "whatif": "02", "record": "02", "submit": "0134", "fleet": "0134", "bridge": "01",
    **dict.fromkeys(("fleet pause", "fleet resume", "fleet drain", "fleet disable-until-told", "fleet enable"), "0134"),
    "init": "012", "log": "012", "bugreport": "012", "config show": "02",
    "fleet why": "0134", "fleet log": "0134", "fleet wake": "0134",
}  # fmt: skip


def exit_codes(text: str) -> set[str]:
    """The codes that the last paragraph of a help names."""
    last = " ".join(text.strip().split("\n\n")[-1].split())
    assert last.startswith("Exit codes: 0 "), last
    return set(re.findall(r"(?:^|[.:] )([0-9]) ", last))


def test_every_command_is_in_the_table() -> None:
    assert COMMANDS.keys() == EXITS.keys()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_help_names_its_exit_codes(name: str) -> None:
    assert exit_codes(COMMANDS[name].help) - {"2"} == set(EXITS[name]) - {"2"}
    if "2" in EXITS[name]:
        assert "2" in exit_codes(COMMANDS[name].help)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_a_configuration_and_begins_with_a_sentence(name: str) -> None:
    assert "config" in {parameter.name for parameter in COMMANDS[name].params}
    first = COMMANDS[name].help.split("\n\n")[0]
    assert re.fullmatch(r"[A-Z][^.]*\.", " ".join(first.split())), first


def test_the_manual_page_has_every_command() -> None:
    text = page()
    assert text.count(".SS ") == len(COMMANDS)
    assert text.count("Exit codes: ") == len(COMMANDS)


COMPLETED = {
    "pause ": "until tomorrow", "log --since y": "yesterday", "init --gpu r": "required", "diagram --highlight R": "READY",
    "diagram --format s": "svg", "whatif --set safety.max_c": "safety.max_cpu_percent=", "config schema n": "node",
}  # fmt: skip


@pytest.mark.parametrize("words", COMPLETED)
def test_a_shell_completes_values(words: str) -> None:
    *before, incomplete = f"rae-node {words}".split(" ")
    complete = typer._completion_classes.BashComplete(ROOT, {}, "rae-node", "_RAE_NODE_COMPLETE")
    assert COMPLETED[words] in [item.value for item in complete.get_completions(before[1:], incomplete)]


WRONG = {
    "config schema": "Missing argument", "config check --jsn": "No such option", "config check extra": "unexpected extra",
    "status --watc": "No such option", "timeline --days 0": "range", "timeline --out x.pdf": "ends in .html, .svg or .png",
    "whatif --out x.pdf": "ends in .svg or .png", "whatif --sweep idle_required_minutes": "allowed: NAME=FROM..TO",
    "record --from x --to y f": "allowed: a time such as", "pause until 25:00": "a duration such as 2h",
    "--config": "requires an argument", "nonsense": "No such command", "--config /nonexistent status": "no such folder",
}  # fmt: skip


@pytest.mark.parametrize("arguments", WRONG)
def test_wrong_usage_is_one_line_and_exit_2(
    arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["rae-node", *arguments.split()])
    monkeypatch.setattr(cli.console, "prepare", lambda **_: None)
    monkeypatch.setenv("RAE_NODE_CONFIG", "config")
    if arguments.startswith("whatif --sweep"):
        monkeypatch.setattr("supervisor.tools.history.whatif.load", lambda _: type("Past", (), {"limits": None})())
    assert cli._run() == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert WRONG[arguments] in err
