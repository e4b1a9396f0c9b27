"""`rae-node timeline`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from supervisor.cli.common import ConfigOption, Exit, exit_with, load_config
from supervisor.cli.picture import write_file, write_picture

FORMS = (".html", ".svg", ".png")


def timeline(
    logs: Annotated[list[Path] | None, typer.Argument(metavar="[LOGS]...", help="Journals. Default: paths.logs.")] = None,
    days: Annotated[
        int, typer.Option(metavar="N", min=1, max=366, help="How many days, up to the last that the journal tells of.")
    ] = 7,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="A page (.html) or a picture (.svg, .png).")] = None,
    config: ConfigOption = None,
) -> None:
    """Show what the node did, day by day.

    States, tasks, the person, the load of others, and what is missing.

    Example: `rae-node timeline --days 7 --out week.html` makes one file that needs no network; without --out a band a day
    is drawn in the terminal.

    Exit 0: drawn. 2: nothing to draw, a journal cannot be read, or FILE cannot be written.
    """
    from supervisor.tools.history.timeline.reader import TimelineError, load

    if out is not None and out.suffix.lower() not in FORMS:
        exit_with(Exit.WRONG, f"--out: found {out}, allowed: a name that ends in {', '.join(FORMS)}")
    try:
        told = load(logs or [load_config(config).paths.logs], days)
    except TimelineError as error:
        exit_with(Exit.WRONG, str(error))
    except OSError as error:
        exit_with(Exit.WRONG, f"{error.filename}: {error.strerror}; name journals (decisions-*.jsonl) or a folder of them")
    if out is not None and out.suffix.lower() == ".html":
        from supervisor.tools.history.timeline.html import page

        write_file(out, page(told).encode())
        return
    if out is not None:
        from supervisor.tools.history.timeline.svg import picture

        write_picture(out, lambda dark: picture(told, dark), 2.0 if len(told.days()) <= 10 else 1.5)
        return
    from rich.console import Console

    from supervisor.tools.history.timeline.terminal import lines

    console = Console(highlight=False, width=shutil.get_terminal_size().columns)  # of a dumb terminal too
    for line in lines(told, console.width):
        console.print(line)
