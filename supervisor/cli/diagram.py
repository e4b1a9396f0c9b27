"""`rae-node diagram`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from supervisor.cli.common import ConfigOption, Exit, ask_daemon, exit_with, values

if TYPE_CHECKING:
    from states.memory import State
    from supervisor.tools.history.row_counts import RowCounts

Format = Literal["mermaid", "dot", "svg", "png"]


def _states(incomplete: str) -> list[str]:
    from states.memory import State

    return values(*State)(incomplete)


def diagram(
    form: Annotated[Format, typer.Option("--format", help="mermaid, dot and svg are text; png is a picture.")] = "mermaid",
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Default: stdout.")] = None,
    small: Annotated[bool, typer.Option("--small", help="svg and png: without the tables, 830 pixels wide.")] = False,
    highlight: Annotated[bool, typer.Option("--highlight", help="Mark STATE, or the state of the running daemon.")] = False,
    state: Annotated[
        str, typer.Argument(metavar="[STATE]", help="With --highlight: mark this state.", autocompletion=_states)
    ] = "",
    logs: Annotated[list[Path] | None, typer.Option("--from", metavar="LOGS", help="Count journals; repeatable.")] = None,
    config: ConfigOption = None,
) -> None:
    """Draw the state machine from the table that runs.

    Example: `rae-node diagram --format svg --out node.svg`. `--highlight` marks the state that the node is in;
    `--highlight READY` marks any state. `--from logs/` counts journals: how often each row fired, the median stay before
    it, and the time in each state.

    Exit codes: 0 drawn. 1 the diagram cannot be drawn or written. 2 a wrong state, or no journal. With --highlight and
    no STATE: 3 the daemon is not running. 4 it does not answer.
    """
    from supervisor.tools.history.diagram import Overlay
    from supervisor.tools.history.diagram_svg import render
    from supervisor.tools.history.svg_to_png import PictureError

    try:
        drawn = render(form, Overlay(_now(highlight, state, config), _counted(logs)), small)
    except PictureError as error:
        exit_with(Exit.NO, str(error))
    content = drawn if isinstance(drawn, bytes) else drawn.encode()  # UTF-8 in every locale
    if out is not None:
        try:
            out.write_bytes(content)
        except OSError as error:
            exit_with(Exit.NO, f"{out}: cannot be written: {error.strerror}")
    elif form == "png" and sys.stdout.isatty():
        exit_with(Exit.WRONG, "a PNG is not text: name a file with --out, or redirect stdout")
    else:
        sys.stdout.buffer.write(content)


def _now(highlight: bool, name: str, config: Path | None) -> State | None:
    from states.memory import State

    if not highlight:
        return exit_with(Exit.WRONG, f"diagram: found {name!r}; a state goes with --highlight") if name else None
    if name and name.upper() not in tuple(State):
        exit_with(Exit.WRONG, f"--highlight: found {name!r}, allowed: {', '.join(State)}")
    return State(name.upper() if name else ask_daemon(config, "status")["state"])


def _counted(logs: list[Path] | None) -> RowCounts | None:
    from supervisor.tools.history.row_counts import NothingToCount, count

    if not logs:
        return None
    try:
        return count(logs)
    except NothingToCount as error:
        exit_with(Exit.WRONG, f"--from: {error}")
    except OSError as error:
        what = "name journals (decisions-*.jsonl) or a folder of them"
        exit_with(Exit.WRONG, f"--from: {error.filename}: {error.strerror}; {what}")
