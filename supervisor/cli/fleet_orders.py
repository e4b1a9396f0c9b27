"""`rae-node fleet pause`, `resume`, `drain`, `disable-until-told` and `enable`: the operator's order to one node."""

from __future__ import annotations

import getpass
import socket
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Final

import typer

from supervisor.cli.common import ConfigOption, Exit, exit_with
from supervisor.cli.fleet import connected
from supervisor.cli.pause import end_of

if TYPE_CHECKING:
    from supervisor.sources.desired import Want
    from supervisor.sources.nats.connection import Connection

NodeArgument = Annotated[str, typer.Argument(metavar="NODE", help="Its name, as `rae-node fleet` shows it.")]
AwayOption = Annotated[bool, typer.Option("--away", help="Also for a node that is not there now: it reads this later.")]
AfterTaskOption = Annotated[bool, typer.Option("--after-task", help="Let the current task finish first; take no other.")]
CODES = """A node obeys only what makes it lend less, or what takes such an order back. A pause of its person stays.

    Exit codes: 0 stored. 1 refused. 2 wrong usage. 3 no server can be reached. 4 it does not answer."""


def pause(
    context: typer.Context,
    node: NodeArgument,
    how_long: Annotated[list[str] | None, typer.Argument(metavar="[2h | until 18:00]", help="Default: until `resume`.")] = None,
    after_task: AfterTaskOption = False,
    away: AwayOption = False,
    config: ConfigOption = None,
) -> None:
    """Let a node lend nothing for a while.

    Example: `rae-node fleet pause desk-1 until 18:00 --after-task`.
    """
    end = end_of(" ".join(how_long or []), time.time())
    length_s = end.get("for_s")
    until = end.get("until") if length_s is None else time.time() + length_s
    _say(context, node, _want().PAUSE, until=until, after_task=after_task, away=away)


def resume(context: typer.Context, node: NodeArgument, away: AwayOption = False, config: ConfigOption = None) -> None:
    """End a pause that the fleet asked for."""
    _say(context, node, _want().RUN, takes_back=_want().PAUSE, away=away)


def drain(context: typer.Context, node: NodeArgument, away: AwayOption = False, config: ConfigOption = None) -> None:
    """Let a node finish its task and take no other, until `fleet resume`."""
    _say(context, node, _want().PAUSE, after_task=True, away=away)


def switch_off(
    context: typer.Context, node: NodeArgument, away: AwayOption = False, config: ConfigOption = None
) -> None:
    """Let a node lend nothing until `fleet enable`."""
    _say(context, node, _want().OFF, away=away)


def enable(context: typer.Context, node: NodeArgument, away: AwayOption = False, config: ConfigOption = None) -> None:
    """End what `fleet disable-until-told` asked for."""
    _say(context, node, _want().RUN, takes_back=_want().OFF, away=away)


COMMANDS: Final[Mapping[str, Callable[..., None]]] = {
    "pause": pause, "resume": resume, "drain": drain, "disable-until-told": switch_off, "enable": enable
}  # fmt: skip
for _command in COMMANDS.values():
    _command.__doc__ = f"{(_command.__doc__ or '').rstrip()}\n\n    {CODES}\n    "


def _want() -> type[Want]:
    from supervisor.sources.desired import Want

    return Want


def _say(
    context: typer.Context,
    node: str,
    want: Want,
    *,
    until: float | None = None,
    after_task: bool = False,
    takes_back: Want | None = None,
    away: bool,
) -> None:
    from supervisor.sources.desired import Order
    from supervisor.sources.nats.admin.order import NotSaid, place

    order = Order(want, time.time(), f"{getpass.getuser()}@{socket.gethostname()}", until, after_task)

    async def store(connection: Connection) -> bool:
        return await place(connection, node, order, takes_back=takes_back, away=away)

    try:
        there = connected(context.obj, store)
    except NotSaid as why:
        exit_with(Exit.NO, str(why))
    print(f"{node}: stored" + ("" if there else "; the node is not there now, and reads it when it connects"))
