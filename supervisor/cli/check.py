"""`rae-node check-user` and `rae-node check-gpu`."""

from __future__ import annotations

from pathlib import Path

import typer

from supervisor.cli.common import ConfigOption, JsonOption, config_folder


def check_user(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Say whether anybody uses this machine.

    The first line is SAFE TO RUN (exit 0) or DO NOT RUN: reason (exit 1, also on any error).
    Looks at sessions, terminals, input devices, and GPU processes that are not RAE's, by the daemon's own sensors; a
    running daemon is asked for what it has seen before.
    """
    _answer("user", config, json)


def check_gpu(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Say whether the GPU is free.

    The first line is SAFE TO RUN (exit 0) or DO NOT RUN: reason (exit 1, also on any error).
    Prints utilisation and VRAM in use by others, with the limits of runtime.yaml.
    """
    _answer("gpu", config, json)


def _answer(which: str, folder: Path | None, as_json: bool) -> None:
    from supervisor.tools.doctor.one_look import answer

    raise typer.Exit(answer(which, config_folder(folder), as_json=as_json))
