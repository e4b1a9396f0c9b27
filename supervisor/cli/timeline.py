"""`rae-node timeline`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from supervisor.cli.common import ConfigOption, LogsArgument, journals, load_config, reading_journals, terminal
from supervisor.cli.picture import check_name, write_file, write_picture


def timeline(
    logs: LogsArgument = None,
    days: Annotated[int, typer.Option(metavar="N", min=1, max=366, help="How many days, up to the last in the journal.")] = 7,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="A page (.html) or a picture (.svg, .png).")] = None,
    config: ConfigOption = None,
) -> None:
    """Show what the node did, day by day.

    States, tasks, the person, the load of others, and gaps.

    Example: `rae-node timeline --days 7 --out week.html` writes one file that needs no network. Without --out, it draws a
    band for each day in the terminal.

    Exit codes: 0 drawn. 2 nothing to draw, a journal cannot be read, or FILE cannot be written.
    """
    from supervisor.tools.history.timeline.reader import TimelineError, load

    check_name(out, ".html", ".svg", ".png")
    with reading_journals(TimelineError):
        drawn = load(journals(logs, config), days)
    if out is None:
        from supervisor.tools.history.timeline.terminal import lines

        console = terminal(width=shutil.get_terminal_size().columns)  # also on a dumb terminal
        for line in lines(drawn, console.width):
            console.print(line)
    elif out.suffix.lower() == ".html":
        from supervisor.tools.history.timeline.html import page

        write_file(out, page(drawn, "the node" if logs else load_config(config).node_id).encode())
    else:
        from supervisor.tools.history.timeline.svg import picture

        write_picture(out, lambda dark: picture(drawn, dark), 2.0 if len(drawn.days()) <= 10 else 1.5)
