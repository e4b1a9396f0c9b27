"""`rae-node control`."""

from typing import Annotated

import typer

from supervisor.cli.common import ConfigOption


def control(
    listen: Annotated[str, typer.Option("--listen", metavar="127.0.0.1:PORT", help="Loopback only; port 0: any free one.")],
    requeue_after: Annotated[
        float,
        typer.Option("--requeue-after", metavar="SECONDS", min=0.1, help="Requeue a task after so long without a heartbeat."),
    ] = 120.0,
    config: ConfigOption = None,
) -> None:
    """Run a control node in memory, for a try.

    Example: `rae-node control --listen 127.0.0.1:8000`.

    Prints its URL as the first line, and speaks what RAE 2.7 to 2.9 speak (dialect B). Nothing is kept: when it ends,
    its tasks are gone.

    Exit 0: it was told to stop. 1: it cannot listen there.
    """
    from supervisor.tools.demo.control_node.main import main

    raise typer.Exit(main(listen, requeue_after))
