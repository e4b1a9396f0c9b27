"""`rae-node check-user` and `rae-node check-gpu`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from supervisor.cli.common import ConfigOption, Exit, JsonOption, document, given

if TYPE_CHECKING:
    from supervisor.checks import Check


def check_user(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Say whether anybody uses this machine.

    The first line is SAFE TO RUN (exit 0) or DO NOT RUN: reason (exit 1, also on any error).
    Looks at logind's sessions, terminals, and GPU processes that are not RAE's, by the daemon's own sensors.
    """
    _answer("user", config, json)


def check_gpu(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Say whether the GPU is free.

    The first line is SAFE TO RUN (exit 0) or DO NOT RUN: reason (exit 1, also on any error).
    Prints utilisation and VRAM in use by others, with the limits of runtime.yaml.
    """
    _answer("gpu", config, json)


def _answer(which: str, folder: Path | None, as_json: bool) -> None:
    import asyncio

    from supervisor.checks import Check, check_gpu, check_user
    from supervisor.config import ConfigErrors, find_folder, load

    try:
        check = asyncio.run((check_user if which == "user" else check_gpu)(load(find_folder(given(folder)))))
    except ConfigErrors as errors:
        check = Check(False, tuple(map(str, errors.problems)), ())
    except Exception as error:  # noqa: BLE001 - unknown is unsafe (R12)
        check = Check(False, (f"cannot look: {type(error).__name__}: {error}",), ())
    if as_json:
        document(check.as_dict())
    else:
        _print(check)
    raise typer.Exit(Exit.YES if check.safe else Exit.NO)


def _print(check: Check) -> None:
    print(check.headline)
    for reading in check.readings:
        if device := reading.get("device"):
            print("  device: " + ", ".join(f"{k} {v}" for k, v in device.items() if v not in (None, "", [])))
        else:
            print(f"  {reading['name']}: {_value(reading)}")
            for detail in reading.get("details", ()):
                print(f"    {detail}")


def _value(reading: dict[str, Any]) -> str:
    from states.words import number

    if "reason" in reading:
        return str(reading.get("line", reading["reason"]))
    return f"{number(reading['value'])} {reading['unit']}, limit {number(reading['limit'])} {reading['unit']}"
