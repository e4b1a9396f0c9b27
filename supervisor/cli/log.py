"""`rae-node log`."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from supervisor.cli.common import ConfigOption, Exit, exit_with, load_config, values
from supervisor.cli.enable import UNIT
from supervisor.cli.pause import CLOCK, clock_s, length_s
from supervisor.linux.small_files import open_plain, read_plain

POLL_S: Final = 0.5
LINES: Final = 30
MAX_BYTES: Final = 1 << 30  # of one day; a quiet one has less than 1 MB


def log(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = False,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME", help="2h, 1d, 18:00, yesterday, or 2026-11-24T18:00.", show_default=False,
                     autocompletion=values("1h", "1d", "7d", "18:00", "yesterday")),
    ] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="Without --since: how many of the last lines.")] = LINES,
    config: ConfigOption = None,
) -> None:
    """Show what the node decided, and why.

    Of the installed service what journald has, systemd's own lines too, also while the configuration is broken; else, or for
    who may not read journald, the text log of `paths.logs`: for root, the node's user and members of its group. The times are
    of this machine.

    Exit codes: 0 shown. 1 there is no log, or it cannot be read. 2 wrong usage or configuration.
    """
    from supervisor.config.load import INSTALLED, find_folder

    from_s = None if since is None else _since(since, time.time())
    span = f"--lines={lines}" if from_s is None else f"--since=@{int(from_s)}"
    if find_folder(config) == INSTALLED and _journald("--lines=1"):
        if _journald(span, *["--follow"] * follow, shows=True) or follow:
            return
        exit_with(Exit.NO, f"journald: no line of the log since {since}")
    folder = load_config(config).paths.logs
    try:
        found = _lines(folder, from_s)
        for line in found if from_s is not None else found[-lines:]:
            print(line, flush=follow)
        if follow:
            for line in _following(folder):
                print(line, flush=True)
    except OSError as error:
        advice = "be its user, a member of its group, or root" if isinstance(error, PermissionError) else "has it ever run?"
        exit_with(Exit.NO, f"{error.filename}: {error.strerror}; {advice}")
    if not found and not follow:
        exit_with(Exit.NO, f"{folder}: no line of the log" + (f" since {since}" if since else "; has it ever run?"))


def _journald(*options: str, shows: bool = False) -> bool:
    """Whether journald has such lines of the service, for this user; `shows`: also print them."""
    command = ["journalctl", "--quiet", "--no-pager", "--no-hostname", "--output=short-iso", f"--unit={UNIT}", *options]
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace") as found:
            assert found.stdout is not None
            some = False
            try:
                for line in found.stdout:
                    some = True
                    if shows:
                        print(line, end="", flush=True)
            finally:
                found.terminate()  # a follower whose reader has gone
            return some
    except FileNotFoundError:
        return False


def _files(folder: Path) -> list[Path]:
    from supervisor.journal.daily_file import pattern
    from supervisor.journal.text_log import STEM, SUFFIX

    name = pattern(STEM, SUFFIX)
    return sorted(path for path in folder.iterdir() if name.match(path.name))


def _lines(folder: Path, from_s: float | None) -> list[str]:
    """The lines since then (seconds since the epoch); None: those of the last two days."""
    found: list[str] = []
    for path in _files(folder)[-2:] if from_s is None else _files(folder):
        lines = read_plain(path, MAX_BYTES).decode(errors="replace").splitlines()
        found += [line for line in lines if from_s is None or (_when(line) or 0.0) >= from_s]
    return found


def _when(line: str) -> float | None:
    try:
        return datetime.fromisoformat(line.split(maxsplit=1)[0]).timestamp()
    except (ValueError, IndexError, OverflowError):
        return None


def _following(folder: Path) -> Iterator[str]:
    """Each line that comes, also in the file of the next day."""
    newest = _files(folder)[-1:]
    at = newest[0].stat().st_size if newest else 0
    while True:
        time.sleep(POLL_S)
        files = _files(folder)
        for path in files[files.index(newest[0]) :] if newest and newest[0] in files else files:
            if [path] != newest:
                newest, at = [path], 0
            with os.fdopen(open_plain(path), "rb") as file:
                file.seek(at)
                whole, _, _ = file.read().rpartition(b"\n")
            if whole:
                at += len(whole) + 1
                yield from whole.decode(errors="replace").splitlines()


def _since(text: str, now_s: float) -> float:
    """The moment that --since names, in seconds since the epoch."""
    if (span_s := length_s(text)) is not None:
        return now_s - span_s
    if text == "yesterday":
        local = time.localtime(now_s)
        return time.mktime((local.tm_year, local.tm_mon, local.tm_mday - 1, 0, 0, 0, 0, 0, -1))
    if clock := re.fullmatch(CLOCK, text):
        return clock_s(clock, now_s, days=(0, -1), later=False) or now_s
    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except (ValueError, OverflowError):
        exit_with(Exit.WRONG, f"--since: found {text!r}, allowed: 2h, 1d, 18:00, yesterday, or a time such as 2026-11-24T18:00")
