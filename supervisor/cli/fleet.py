"""`rae-node fleet`, and what the commands of a fleet share."""

from __future__ import annotations

import asyncio
import json as jsonlib
import shutil
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from supervisor.cli.common import ConfigOption, Exit, JsonOption, exit_with, print_json, terminal

if TYPE_CHECKING:
    from supervisor.sources.nats.connection import Connection, Server

T = TypeVar("T")
WATCH_S = 2.0

ServerOption = Annotated[
    str | None,
    typer.Option("--server", metavar="URL", help="The fleet's servers. Default: $RAE_FLEET_SERVER, else nats://127.0.0.1:4222.",
                 show_default=False),
]
UserOption = Annotated[
    str | None, typer.Option("--user", metavar="NAME", help="Default: $RAE_FLEET_USER.", show_default=False)
]
PasswordOption = Annotated[
    Path | None,
    typer.Option("--password-file", metavar="FILE", help="Default: $RAE_FLEET_PASSWORD_FILE.", show_default=False),
]
CaOption = Annotated[
    Path | None, typer.Option("--ca-file", metavar="FILE", help="Default: $RAE_FLEET_CA_FILE.", show_default=False)
]


def fleet_server(server: str | None, user: str | None, password_file: Path | None, ca_file: Path | None) -> Server:
    """The server that the options or the environment name; exits 2 when they are wrong."""
    from supervisor.sources.nats.admin.access import AccessError, server_of

    try:
        return server_of(server, user, password_file, ca_file)
    except AccessError as error:
        exit_with(Exit.WRONG, str(error))


def connected(server: Server, work: Callable[[Connection], Awaitable[T]]) -> T:
    """Do `work` with a connection; exits 1 when the server refuses, 3 when none can be reached, 4 when it does not answer."""
    from supervisor.sources.errors import RequestError
    from supervisor.sources.nats.connection import Connection
    from supervisor.sources.nats.errors import Refused

    async def run() -> T:
        connection = Connection(server, name="rae-node")
        try:
            await connection.open()
        except RequestError as error:
            exit_with(Exit.NO if isinstance(error, Refused) else Exit.DOWN, error.reason)
        try:
            return await work(connection)
        finally:
            await connection.close()

    try:
        return asyncio.run(run())
    except RequestError as error:
        exit_with(Exit.NO if isinstance(error, Refused) else Exit.UNRESPONSIVE, error.reason)


def fleet(
    context: typer.Context,
    server: ServerOption = None,
    user: UserOption = None,
    password_file: PasswordOption = None,
    ca_file: CaOption = None,
    json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it again every two seconds, until Ctrl-C.")] = False,
    config: ConfigOption = None,
) -> None:
    """Show the nodes of a fleet on NATS, or ask one of them to lend less.

    For each node, on one line: its state, for how long, tasks done, failed and given back, polls lost, and what it waits
    for, or who has paused it. A node that was silent for two minutes is not shown.

    Exit codes: 0 shown. 1 the server refuses. 2 wrong usage. 3 no server can be reached. 4 it does not answer.
    """
    context.obj = fleet_server(server, user, password_file, ca_file)
    if context.invoked_subcommand is not None:
        return
    from supervisor.sources.nats.admin.overview import overview, screen

    async def look(connection: Connection) -> None:
        if sys.stdout.isatty() and watch and not json:
            from rich.live import Live
            from rich.text import Text

            with Live(Text(""), console=terminal(), auto_refresh=False, screen=True) as view:
                while True:
                    shown = screen(await overview(connection), time.time(), *shutil.get_terminal_size())
                    view.update(Text("\n".join(shown)), refresh=True)
                    await asyncio.sleep(WATCH_S)
        while True:
            seen = await overview(connection)
            if json and watch:
                print(jsonlib.dumps(seen), flush=True)
            elif json:
                print_json(seen)
            else:
                width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
                print("\n".join(screen(seen, time.time(), width)), flush=True)
            if not watch:
                return
            await asyncio.sleep(WATCH_S)

    connected(context.obj, look)
