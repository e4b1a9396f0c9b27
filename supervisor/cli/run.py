"""`rae-node run`."""

from typing import Annotated

import typer

from supervisor.cli.common import ConfigOption, Exit, config_folder


def run(
    config: ConfigOption = None,
    unattended: Annotated[
        bool,
        typer.Option("--unattended", help="As the service does: a broken configuration means DISABLED, until it is mended."),
    ] = False,
) -> None:
    """Run the node in the foreground.

    Watches this machine, asks the control node for work when it is safe, and stops it when somebody comes back.
    Stops in order on SIGTERM and Ctrl-C; SIGHUP, or a change of a file, reads the configuration again.

    Example: `rae-node run --config my-node`.

    Exit 0: it was told to stop. 1: it cannot run here, or another one does. 2: the configuration is broken.
    """
    from supervisor.config.load import find_folder
    from supervisor.daemon.main import serve

    raise typer.Exit(Exit(serve(find_folder(config_folder(config)), unattended=unattended)))
