"""What the commands share: options, output, and the exit codes of interface §4."""

from __future__ import annotations

import re
import shutil
import sys
from enum import IntEnum
from math import isnan
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from supervisor.linux import console as stdout

if TYPE_CHECKING:
    from supervisor.config.load import Config


ANSWER_S = 5.0  # what a daemon may take


class Exit(IntEnum):
    """0 yes or done, 1 no, failed or not safe, 2 wrong usage or configuration, 3 no daemon, 4 it does not answer."""

    YES = 0
    NO = 1
    WRONG = 2
    DOWN = 3
    MUTE = 4
    INTERRUPTED = 130


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="DIR",
        help="The folder with runtime.yaml and node.yaml. Default: $RAE_NODE_CONFIG, else /opt/rae-node/agent, else ./config.",
        show_default=False,
    ),
]

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document with stable keys.")]


def not_nan(value: float | None) -> float | None:
    """For an option's callback: a range takes NaN for a number, we do not."""
    if value is not None and isnan(value):
        raise typer.BadParameter("found nan, allowed: a number")
    return value


def print_error(text: str) -> None:
    """One line for the person, on stderr."""
    print(text, file=sys.stderr)


def exit_with(code: Exit, *lines: str) -> NoReturn:
    """Say why on stderr, and go."""
    for line in lines:
        print_error(line)
    raise typer.Exit(code)


def print_lines(lines: list[str], *, one_screen: bool = False) -> None:
    """Lines for people, on stdout. On a terminal they are folded under their own text; `one_screen`: and cut to fit it."""
    if sys.stdout.isatty():
        size = shutil.get_terminal_size()
        lines = fit(lines, size.columns, size.lines - 1 if one_screen else None)
    print("\n".join(lines))


def fit(lines: list[str], width: int, height: int | None = None) -> list[str]:
    """`lines` folded at `width`; if they are more than `height` then, the last long ones are cut short."""
    folded = []
    for line in lines:
        column = _COLUMN.match(line)
        indent = " " * (column.end() if column and column.end() < width // 2 else 0)
        folded.append(wrap(line, max(20, width), subsequent_indent=indent) or [""])
    for part in reversed(folded):
        if height is None or sum(map(len, folded)) <= height:
            break
        if len(part) > 1:
            part[:] = [part[0][: width - 1].rstrip() + "…"]
    return [line for part in folded for line in part]


# Where the text of a line begins, behind its mark and its name.
_COLUMN = re.compile(r"^.{0,24} {2,}(?=\S)")


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    print(stdout.document(value))


def load_config(folder: Path | None) -> Config:
    """The sound configuration, or exit 2 with a line for each error."""
    from supervisor.config.load import ConfigErrors, find_folder, load

    try:
        return load(find_folder(config_folder(folder)))
    except ConfigErrors as errors:
        exit_with(Exit.WRONG, *map(str, errors.problems))


def runtime_folder(folder: Path | None) -> Path:
    """Where the daemon's socket is. Also with a broken configuration the daemon lives on, and is to be asked why."""
    from supervisor.config.fallback import load_or_disabled
    from supervisor.config.load import find_folder

    place = find_folder(config_folder(folder))
    if not place.is_dir():
        exit_with(Exit.WRONG, f"{place}: there is no such folder; name the one that holds runtime.yaml with --config")
    return load_or_disabled(place).paths.runtime


class NoAnswer(Exception):
    """The daemon is down, does not answer, or refuses; with the exit code for that, and why, in words."""

    def __init__(self, code: Exit, why: str) -> None:
        super().__init__(why)
        self.code = code


def query(runtime: Path, name: str, timeout_s: float = ANSWER_S, **fields: Any) -> dict[str, Any]:
    """The answer of the daemon whose runtime folder this is.

    Raises:
        NoAnswer: there is none.
    """
    from supervisor.linux.control_socket import DaemonDown, DaemonUnresponsive, ask

    try:
        answer = ask(runtime, name, timeout_s, **fields)
    except DaemonDown as down:
        raise NoAnswer(Exit.DOWN, str(down)) from None
    except DaemonUnresponsive as mute:
        raise NoAnswer(Exit.MUTE, str(mute)) from None
    if not answer.get("ok"):
        raise NoAnswer(Exit.NO, str(answer.get("error", "refused")))
    return answer


def ask_daemon(folder: Path | None, name: str, **fields: Any) -> dict[str, Any]:
    """The daemon's answer; exits 3 when it is down, 4 when it does not answer, 1 when it refuses."""
    try:
        return query(runtime_folder(folder), name, **fields)
    except NoAnswer as none:
        exit_with(none.code, str(none))


# --config given before the command's name, set by the root command.
_root_folder: list[Path] = []


def set_root_folder(folder: Path | None) -> None:
    """Keep --config as given before the command's name."""
    _root_folder[:] = [folder] if folder is not None else []


def config_folder(folder: Path | None) -> Path | None:
    """--config of the command, else the one that was given before the command's name."""
    return folder if folder is not None or not _root_folder else _root_folder[0]
