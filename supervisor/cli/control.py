"""`rae-node control`."""

from typing import Annotated

import typer

from supervisor.cli.common import ConfigOption


def control(
    listen: Annotated[str, typer.Option("--listen", metavar="127.0.0.1:PORT", help="Loopback only. Port 0: any free port.")],
    requeue_after: Annotated[
        float,
        typer.Option("--requeue-after", metavar="SECONDS", min=0.1, help="Requeue a task when its node is silent so long."),
    ] = 120.0,
    config: ConfigOption = None,
) -> None:
    """Run a control node in memory, to try a node.

    Example: `rae-node control --listen 127.0.0.1:8000`.

    It prints its URL as the first line, and has the API of RAE 2.7 to 2.9 (dialect B). It keeps nothing: when it ends, its
    tasks are gone.

    Exit codes: 0 stopped by Ctrl-C or SIGTERM. 1 it cannot listen there. 2 wrong usage.
    """
    from supervisor.tools.demo.control_node.main import main

    raise typer.Exit(main(listen, requeue_after))
