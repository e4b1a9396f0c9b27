"""`rae-node diagram`."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from supervisor.cli.common import ConfigOption, Exit, ask_daemon, leave

if TYPE_CHECKING:
    from states.memory import State
    from supervisor.tools.history.row_counts import Traffic


class Format(StrEnum):
    """What can be drawn."""

    MERMAID = "mermaid"
    DOT = "dot"
    SVG = "svg"
    PNG = "png"


def diagram(
    form: Annotated[Format, typer.Option("--format", help="mermaid, dot and svg are text, png is a picture.")] = Format.MERMAID,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Default: stdout.")] = None,
    highlight: Annotated[bool, typer.Option("--highlight", help="Mark STATE, or where the live daemon is.")] = False,
    state: Annotated[str, typer.Argument(metavar="[STATE]", help="With --highlight: this state, not the daemon's.")] = "",
    logs: Annotated[list[Path] | None, typer.Option("--from", metavar="LOGS", help="Count journals; repeatable.")] = None,
    config: ConfigOption = None,
) -> None:
    """Draw the state machine from its table.

    Example: `rae-node diagram --format svg --out node.svg`. It is the very table that runs (R22).
    `--highlight` marks where the node is now, `--highlight READY` any state. `--from logs/` writes on each arrow how often
    it was taken and after how long a stay, and into each state the time that the node spent there.

    Exit 1: it cannot be drawn or written. 2: a wrong state, or no journal. With --highlight alone, 3: the daemon is not
    running, 4: it does not answer.
    """
    from supervisor.tools.history.diagram import DiagramError, Layer, render

    try:
        drawn = render(form.value, Layer(_now(highlight, state, config), _counted(logs)))
    except DiagramError as error:
        leave(Exit.NO, str(error))
    if out is not None:
        try:
            out.write_bytes(drawn if isinstance(drawn, bytes) else drawn.encode())
        except OSError as error:
            leave(Exit.NO, f"{out}: cannot be written: {error.strerror}")
    elif isinstance(drawn, bytes):
        if sys.stdout.isatty():
            leave(Exit.WRONG, "a PNG is no text: name a file with --out, or redirect stdout")
        sys.stdout.buffer.write(drawn)
    else:  # a file of its own, whatever the locale: UTF-8
        sys.stdout.buffer.write(drawn.encode() if drawn.endswith("\n") else drawn.encode() + b"\n")


def _now(highlight: bool, word: str, config: Path | None) -> State | None:
    from states.memory import State

    if word and not highlight:
        leave(Exit.WRONG, f"diagram: found {word!r}; a state goes with --highlight")
    if not highlight:
        return None
    if word and word.upper() not in tuple(State):
        leave(Exit.WRONG, f"--highlight: found {word!r}, allowed: {', '.join(State)}")
    return State(word.upper() if word else ask_daemon(config, "status")["state"])


def _counted(logs: list[Path] | None) -> Traffic | None:
    from supervisor.tools.history.row_counts import TrafficError, count

    if not logs:
        return None
    try:
        return count(logs)
    except TrafficError as error:
        leave(Exit.WRONG, f"--from: {error}")
    except OSError as error:
        leave(Exit.WRONG, f"--from: {error.filename}: {error.strerror}; name journals (decisions-*.jsonl) or a folder of them")
