"""`rae-node run`."""

from typing import Annotated

import typer

from supervisor.cli.common import ConfigOption, Exit


def run(
    config: ConfigOption = None,
    unattended: Annotated[
        bool,
        typer.Option("--unattended", help="For the service: with a broken configuration be DISABLED, do not exit."),
    ] = False,
) -> None:
    """Run the node in the foreground.

    Watches this machine, asks the control node for work when it is safe, and stops the work when somebody comes back.
    SIGTERM and Ctrl-C stop it in order. It reads a changed configuration at once, and on SIGHUP.

    Example: `rae-node run --config my-node`.

    Exit codes: 0 stopped in order. 1 it cannot run here, or another one runs. 2 the configuration is broken.
    """
    from supervisor.config.load import find_folder
    from supervisor.daemon.main import serve

    raise typer.Exit(Exit(serve(find_folder(config), unattended=unattended)))
