"""`rae-node check-user` and `rae-node check-gpu`."""

from __future__ import annotations

import typer

from supervisor.cli.common import ConfigOption, JsonOption


def check_user(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Say whether anybody uses this machine.

    The first line is SAFE TO RUN or DO NOT RUN: reason. Looks at sessions, terminals, input devices and foreign GPU
    processes, with the daemon's own sensors. Only a running daemon knows what was before: without one it is not safe.

    Exit codes: 0 safe. 1 not safe, or an error.
    """
    from supervisor.tools.doctor.one_look import answer

    raise typer.Exit(answer("user", config, as_json=json))


def check_gpu(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Say whether the GPU is free.

    The first line is SAFE TO RUN or DO NOT RUN: reason. Prints the utilisation and the VRAM of others, and the limits of
    runtime.yaml.

    Exit codes: 0 safe. 1 not safe, or an error.
    """
    from supervisor.tools.doctor.one_look import answer

    raise typer.Exit(answer("gpu", config, as_json=json))
