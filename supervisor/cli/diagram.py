"""`rae-node diagram`."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from supervisor.cli.common import ConfigOption, Exit, leave


class Format(StrEnum):
    """What can be drawn."""

    MERMAID = "mermaid"
    DOT = "dot"
    SVG = "svg"
    PNG = "png"


def diagram(
    form: Annotated[Format, typer.Option("--format", help="mermaid, dot and svg are text, png is a picture.")] = Format.MERMAID,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Default: stdout.")] = None,
    config: ConfigOption = None,
) -> None:
    """Draw the state machine from its table.

    Example: `rae-node diagram --format svg --out node.svg`. It is the very table that runs (R22).
    """
    from supervisor.offline.diagram import render

    drawn = render(form.value)
    if out is not None:
        try:
            out.write_bytes(drawn if isinstance(drawn, bytes) else drawn.encode())
        except OSError as error:
            leave(Exit.NO, f"{out}: cannot be written: {error.strerror}")
    elif isinstance(drawn, bytes):
        if sys.stdout.isatty():
            leave(Exit.WRONG, "a PNG is no text: name a file with --out, or redirect stdout")
        sys.stdout.buffer.write(drawn)
    else:
        print(drawn, end="" if drawn.endswith("\n") else "\n")
