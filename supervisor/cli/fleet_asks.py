"""`rae-node fleet why`, `fleet log` and `fleet wake`: what one node says of itself, and waking one that says nothing."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from supervisor.cli.common import ConfigOption, Exit, JsonOption, exit_with, print_json, print_lines
from supervisor.cli.fleet import connected
from supervisor.cli.fleet_orders import NodeArgument
from supervisor.cli.headline import MARK

if TYPE_CHECKING:
    from supervisor.sources.nats.connection import Connection

T = TypeVar("T")
LINES: Final = 20
OF_TASKS: Final = frozenset({"task_claimed", "task_over", "task_gone", "cooldown_over"})  # shown where they block


def why(context: typer.Context, node: NodeArgument, json: JsonOption = False, config: ConfigOption = None) -> None:
    """Say why a node does not work now.

    Each guard with its reading. Of its person it says only that they are there.

    Exit codes: 0 shown. 1 no such node, or refused. 2 wrong usage. 3 no server can be reached. 4 no answer comes.
    """
    from supervisor.sources.nats.admin import ask

    answer = _asked(context, lambda connection: ask.why(connection, node))
    if json:
        print_json({"node": node, **answer})
    else:
        print_lines(why_screen(node, answer, time.time()))


def why_screen(node: str, answer: Mapping[str, Any], wall_s: float) -> list[str]:
    """The answer in lines. Times are relative to `wall_s`, in seconds since the epoch."""
    from states.formatting import duration
    from supervisor.sources.nats.admin.overview import paused, since

    lines = [f"{node}: {answer['state']}" + (f" for {lasts}" if (lasts := since(answer["since"], wall_s)) else "")]
    whose = paused(answer, wall_s)
    lines += [whose[:1].upper() + whose[1:]] * bool(whose) + [""]
    for guard in answer["guards"]:
        blocks = guard["name"] in answer["blocked_by"]
        if not blocks and guard["name"] in OF_TASKS:
            continue
        wait = f", {duration(guard['wait_s'])} to go" if blocks and guard["wait_s"] else ""
        lines.append(f"{'>' if blocks else ' '} {MARK[guard['ok']]}  {guard['name']:<14} {guard['text']}{wait}".rstrip())
    lines += ["", f"Link: {answer['link']}; version {answer['version']}"]
    return lines + [f"Trouble: {answer['trouble']}"] * bool(answer["trouble"])


def log(
    context: typer.Context,
    node: NodeArgument,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, max=200, help="How many of its last lines.")] = LINES,
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Show what a node decided last, and why.

    Of its person it says only that they were there.

    Exit codes: 0 shown. 1 no such node, or refused. 2 wrong usage. 3 no server can be reached. 4 no answer comes.
    """
    from supervisor.sources.nats.admin import ask

    found = _asked(context, lambda connection: ask.log(connection, node, lines))
    if json:
        print_json({"node": node, "lines": found})
    else:
        print_lines([f"{_clock(line['time'])}  {line['text']}" for line in found] or [f"{node}: its log has no lines yet"])


def wake(context: typer.Context, node: NodeArgument, config: ConfigOption = None) -> None:
    """Wake a node that sleeps, by Wake-on-LAN from another node in its network.

    Both need work.wake: true in their node.yaml.

    Exit codes: 0 the packet was sent. 1 it cannot be woken, or refused. 2 wrong usage. 3 no server can be reached. 4 no
    answer comes.
    """
    from supervisor.sources.nats.admin import waking

    by = _asked(context, lambda connection: waking.wake(connection, node))
    print(f"{by} has sent the packet that wakes {node}; `rae-node fleet` shows when it is there")


def _clock(time: str) -> str:
    """A node's time stamp by the clock of this machine."""
    try:
        return datetime.fromisoformat(time).astimezone().strftime("%a %d %b %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return time


def _asked(context: typer.Context, work: Callable[[Connection], Awaitable[T]]) -> T:
    from supervisor.sources.nats.admin.order import NotSaid

    try:
        return connected(context.obj, work)
    except NotSaid as absent:
        exit_with(Exit.NO, str(absent))


COMMANDS: Final[Mapping[str, Callable[..., None]]] = {"why": why, "log": log, "wake": wake}
