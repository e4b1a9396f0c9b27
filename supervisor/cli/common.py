"""What the commands share: options, output, and exit codes."""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from math import isnan
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from supervisor.linux import console
from supervisor.linux.text import visible

if TYPE_CHECKING:
    from rich.console import Console

    from supervisor.config.load import Config

MAX_ERRORS = 20
# The mark and the name at the start of a line; the text follows.
_NAME = re.compile(r"^.{0,24} {2,}(?=\S)")


class Exit(IntEnum):
    """0 yes or done, 1 no, failed or not safe, 2 wrong usage or configuration, 3 no daemon, 4 it does not answer."""

    YES = 0
    NO = 1
    WRONG = 2
    DOWN = 3
    UNRESPONSIVE = 4
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
AllOption = Annotated[bool, typer.Option("--all", "-a", help="Show every guard and source, not only those that matter now.")]
LogsArgument = Annotated[
    list[Path] | None, typer.Argument(metavar="[LOGS]...", help="Journals, or folders of journals. Default: paths.logs.")
]


def values(*found: str) -> Callable[[str], list[str]]:
    """An option's completion by these values."""
    return lambda incomplete: [value for value in found if value.startswith(incomplete)]


def not_nan(value: float | None) -> float | None:
    """An option's callback: typer's ranges accept NaN."""
    if value is not None and isnan(value):
        raise typer.BadParameter("found nan, allowed: a number")
    return value


# --- output


def print_error(text: str) -> None:
    """One line on stderr."""
    print(text, file=sys.stderr)


def print_errors(lines: Sequence[str]) -> None:
    """At most MAX_ERRORS lines on stderr, then how many more."""
    for line in lines[:MAX_ERRORS]:
        print_error(line)
    if len(lines) > MAX_ERRORS:
        print_error(f"... and {len(lines) - MAX_ERRORS} more")


def exit_with(code: Exit, *lines: str) -> NoReturn:
    """Print the reason on stderr and exit."""
    print_errors(lines)
    raise typer.Exit(code)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    print(console.document(value))


def print_lines(lines: list[str], *, one_screen: bool = False, headed: bool = False) -> None:
    """Lines on stdout. A terminal gets them wrapped; with `one_screen` also cut to its height; `headed`: the first in bold, in
    the colour of its state."""
    if sys.stdout.isatty():
        size = shutil.get_terminal_size()
        lines = fit(lines, size.columns, size.lines - 1 if one_screen else None)
        if headed and size.columns >= len(lines[0]):
            from supervisor.cli.headline import style_of

            first = lines.pop(0)
            terminal().print(first, style=style_of(first), markup=False)
    print("\n".join(lines))


def terminal(**options: Any) -> Console:
    """A console to draw on. Only rich's own escape sequences reach the terminal; texts are cleaned when they are drawn."""
    from rich.console import Console
    from rich.segment import Segment

    class Clean(Console):
        def render(self, *args: Any, **kwargs: Any) -> Iterator[Segment]:
            for segment in super().render(*args, **kwargs):
                yield segment if segment.control else segment._replace(text=visible(segment.text))

    return Clean(file=console.drawing(), highlight=False, **options)


def fit(lines: list[str], width: int, height: int | None = None) -> list[str]:
    """`lines` wrapped at `width`, each under its own text. If they are more than `height`, the last long ones are cut short."""
    wrapped = []
    for line in lines:
        name = _NAME.match(line)
        indent = " " * (name.end() if name and name.end() < width // 2 else 0)
        wrapped.append(wrap(line, max(20, width), subsequent_indent=indent) or [""])
    for part in reversed(wrapped):
        if height is None or sum(map(len, wrapped)) <= height:
            break
        if len(part) > 1:
            part[:] = [part[0][: width - 1].rstrip() + "…"]
    return [line for part in wrapped for line in part]


# --- the configuration, and journals


def load_config(folder: Path | None) -> Config:
    """The configuration, or exit 2 with a line for each error."""
    from supervisor.config.load import ConfigErrors, find_folder, load

    try:
        return load(find_folder(folder))
    except ConfigErrors as errors:
        exit_with(Exit.WRONG, *map(str, errors.problems))


def journals(logs: list[Path] | None, config: Path | None) -> list[Path]:
    """The journals to read: the given ones, else those in paths.logs."""
    return logs or [load_config(config).paths.logs]


@contextlib.contextmanager
def reading_journals(unusable: type[Exception], option: str = "") -> Iterator[None]:
    """Exit 2 when a journal cannot be read, or is `unusable`."""
    try:
        yield
    except unusable as error:
        exit_with(Exit.WRONG, f"{option}{error}")
    except OSError as error:
        advice = "name journals (decisions-*.jsonl) or a folder of them"
        exit_with(Exit.WRONG, f"{option}{error.filename}: {error.strerror}; {advice}")


# --- the daemon


class NoAnswer(Exception):
    """The daemon does not run, does not answer, or refuses: the reason, and the exit code for it."""

    def __init__(self, code: Exit, why: str) -> None:
        super().__init__(why)
        self.code = code


def runtime_folder(folder: Path | None) -> Path:
    """The folder of the daemon's socket. A daemon with a broken configuration still runs and answers."""
    from supervisor.config.fallback import load_or_disabled
    from supervisor.config.load import find_folder

    place = find_folder(folder)
    if not place.is_dir():
        exit_with(Exit.WRONG, f"{place}: there is no such folder; name the one that holds runtime.yaml with --config")
    return load_or_disabled(place).paths.runtime


def query(runtime: Path, name: str, timeout_s: float = 5.0, **fields: Any) -> dict[str, Any]:
    """The answer of the daemon with this runtime folder.

    Raises:
        NoAnswer: there is none.
    """
    from supervisor.linux.control_socket import DaemonDown, DaemonUnresponsive, ask

    try:
        answer = ask(runtime, name, timeout_s, **fields)
    except DaemonDown as down:
        raise NoAnswer(Exit.DOWN, str(down)) from None
    except DaemonUnresponsive as unresponsive:
        raise NoAnswer(Exit.UNRESPONSIVE, str(unresponsive)) from None
    if not answer.get("ok"):
        raise NoAnswer(Exit.NO, str(answer.get("error", "refused")))
    return answer


def ask_daemon(folder: Path | None, name: str, **fields: Any) -> dict[str, Any]:
    """The daemon's answer; exits 3 when it is down, 4 when it does not answer, 1 when it refuses."""
    try:
        return query(runtime_folder(folder), name, **fields)
    except NoAnswer as none:
        exit_with(none.code, str(none))
