"""`rae-node fleet`, and what the commands of a fleet share."""

from __future__ import annotations

import asyncio
import json as jsonlib
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from supervisor.cli.common import ConfigOption, Exit, JsonOption, exit_with, print_json

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


def at_the_fleet(
    work: Callable[[Any], Awaitable[T]], server: str | None, user: str | None, password: Path | None, ca_file: Path | None
) -> T:
    """Do it with a connection; exits 3 when no server is there, 4 when it is mute, 1 when it refuses, 2 on wrong options."""
    from supervisor.sources.errors import RequestError
    from supervisor.sources.nats.admin.access import AccessError, server_of
    from supervisor.sources.nats.connection import Connection
    from supervisor.sources.nats.errors import Refused

    try:
        place = server_of(server, user, password, ca_file)
    except AccessError as wrong:
        exit_with(Exit.WRONG, str(wrong))

    async def connected() -> T:
        wire = Connection(place, name="rae-node")
        try:
            await wire.open()
        except RequestError as trouble:
            exit_with(Exit.NO if "refuses" in trouble.reason else Exit.DOWN, trouble.reason)
        try:
            return await work(wire)
        finally:
            await wire.close()

    try:
        return asyncio.run(connected())
    except Refused as refused:
        exit_with(Exit.NO, refused.reason)
    except RequestError as trouble:
        exit_with(Exit.MUTE, trouble.reason)


def fleet(
    server: ServerOption = None,
    user: UserOption = None,
    password_file: PasswordOption = None,
    ca_file: CaOption = None,
    json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on showing it, every two seconds, until Ctrl-C.")] = False,
    config: ConfigOption = None,
) -> None:
    """Show the nodes of a fleet on NATS.

    State, since when, tasks done, and what each waits for. A node that has not been heard of for two minutes is not shown.

    Exit 1: the server refuses. Exit 3: no server can be reached. Exit 4: it does not answer.
    """
    from supervisor.sources.nats.admin.overview import overview, screen

    async def look(wire: Any) -> None:
        live = sys.stdout.isatty() and watch and not json
        if live:
            from rich.live import Live
            from rich.text import Text

            with Live(Text(""), auto_refresh=False, screen=True) as view:
                while True:
                    view.update(Text("\n".join(screen(await overview(wire)))), refresh=True)
                    await asyncio.sleep(WATCH_S)
        while True:
            seen = await overview(wire)
            if json and watch:
                print(jsonlib.dumps(seen), flush=True)
            elif json:
                print_json(seen)
            else:
                print("\n".join(screen(seen)), flush=True)
            if not watch:
                return
            await asyncio.sleep(WATCH_S)

    at_the_fleet(look, server, user, password_file, ca_file)
