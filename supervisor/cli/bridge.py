"""`rae-node bridge`."""

from __future__ import annotations

from typing import Annotated

import typer

from supervisor.cli.common import ConfigOption, Exit, exit_with, load_config
from supervisor.cli.fleet import CaOption, PasswordOption, ServerOption, UserOption, fleet_server


def bridge(
    config: ConfigOption = None,
    server: ServerOption = None,
    user: UserOption = None,
    password_file: PasswordOption = None,
    ca_file: CaOption = None,
    ahead: Annotated[
        int, typer.Option("--ahead", metavar="N", min=1, max=300, help="How many tasks to take that are not done yet.")
    ] = 100,
) -> None:
    """Bring a RAE control node's tasks to a fleet on NATS.

    The bridge posts the results back, so nothing changes for the submitters of the control node (node.yaml: control). The
    fleet takes care of leases and of tasks that go back. The bridge runs until Ctrl-C or SIGTERM. Started again, it goes on
    where it was.

    Example: `rae-node bridge --config my-rae --server nats://127.0.0.1:4222`.

    Exit codes: 0 stopped by Ctrl-C or SIGTERM. 1 a fault of its own. 2 wrong usage or configuration.
    """
    from supervisor.sources.nats.admin.bridge import main

    settings = load_config(config)
    if settings.node.control.source == "nats":
        why = "found nats, allowed: rae (a bridge's other side is given by --server)"
        exit_with(Exit.WRONG, f"node.yaml: control.source: {why}")
    raise typer.Exit(main(settings, fleet_server(server, user, password_file, ca_file), ahead))
