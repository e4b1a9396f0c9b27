"""`rae-node bridge`."""

from __future__ import annotations

from typing import Annotated

import typer

from supervisor.cli.common import ConfigOption, Exit, exit_with, load_config
from supervisor.cli.fleet import CaOption, PasswordOption, ServerOption, UserOption


def bridge(
    config: ConfigOption = None,
    server: ServerOption = None,
    user: UserOption = None,
    password_file: PasswordOption = None,
    ca_file: CaOption = None,
    ahead: Annotated[
        int, typer.Option("--ahead", metavar="N", min=1, max=300, help="Tasks taken from the control node and not done yet.")
    ] = 100,
) -> None:
    """Bring a RAE control node's tasks to a fleet on NATS.

    Posts the results back: who submits to the control node (node.yaml: control) need not change anything. Leases, queueing
    anew and giving back are the fleet's. Runs until Ctrl-C or SIGTERM; started again, it goes on where it was.

    Example: `rae-node bridge --config my-rae --server nats://127.0.0.1:4222`.

    Exit 0: it was told to stop. 1: a fault of its own.
    """
    from supervisor.sources.nats.admin.access import AccessError, server_of
    from supervisor.sources.nats.admin.bridge import main

    settings = load_config(config)
    if settings.node.control.source == "nats":
        why = "found nats, allowed: rae (a bridge's other side is given by --server)"
        exit_with(Exit.WRONG, f"node.yaml: control.source: {why}")
    try:
        place = server_of(server, user, password_file, ca_file)
    except AccessError as wrong:
        exit_with(Exit.WRONG, str(wrong))
    raise typer.Exit(main(settings, place, ahead))
