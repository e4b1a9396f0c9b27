"""`rae-node record`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from supervisor.cli.common import ConfigOption, Exit, LogsArgument, exit_with, journals


def _time(text: str, name: str) -> datetime:
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        exit_with(Exit.WRONG, f"{name}: found {text!r}, allowed: a time such as 2026-11-24T18:00 (local, or with its offset)")


def record(
    since: Annotated[str, typer.Option("--from", metavar="TIME", help="First moment, such as 2026-11-24T18:00.")],
    until: Annotated[str, typer.Option("--to", metavar="TIME", help="Last moment.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The script to write.")],
    logs: LogsArgument = None,
    config: ConfigOption = None,
) -> None:
    """Cut a part of the journal out as a scripted replay, into a new file.

    Example: `rae-node record --from 2026-11-24T18:00 --to 2026-11-24T19:00 evening.yaml`, then `rae-node replay evening.yaml`.
    Name journals from the node's last start on: what happened before --from sets the state of the machine.

    Says what it covers: it ends early where the node was restarted, its limits changed or lines were lost.

    Exit codes: 0 written. 2 no decision in this time, a journal cannot be read, or FILE cannot be written.
    """
    from supervisor.tools.history.record import RecordError, cut

    begin, end = _time(since, "--from"), _time(until, "--to")
    if end < begin:
        exit_with(Exit.WRONG, f"--to: found {until!r}, allowed: a time after --from ({since})")
    try:
        text, covers = cut(journals(logs, config), begin, end)
        with file.open("x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError:
        exit_with(Exit.WRONG, f"{file} is there already; name another file")
    except RecordError as error:
        exit_with(Exit.WRONG, str(error))
    except OSError as error:
        exit_with(Exit.WRONG, f"{error.filename}: {error.strerror}; name journals (decisions-*.jsonl), and a FILE to write")
    print(f"{file}: {covers}")
