"""`rae-node enable` and `rae-node disable`: the operator's explicit word (R24), by systemd's own command."""

from __future__ import annotations

import subprocess
from typing import Annotated

import typer

from supervisor.cli.common import ConfigOption, Exit, exit_with, load_config, print_error
from supervisor.linux.text import one_line

UNIT = "rae-node.service"


def enable(
    now: Annotated[bool, typer.Option("--now", help="Start it as well, and wait until it is up.")] = False,
    config: ConfigOption = None,
) -> None:
    """Let the service start at boot.

    With --now it also starts at once: this alone starts a node. Needs root: `sudo rae-node enable --now`.

    Exit 1: it could not be done. Exit 3: it was to start, and is not running.
    """
    automation = load_config(config).runtime.automation
    if not automation.auto_start:
        if not now:
            exit_with(Exit.NO, "automation.auto_start is false in runtime.yaml: set it to true first, or start once with --now")
        print_error("automation.auto_start is false in runtime.yaml: started for now, not at the next boot")
    else:
        _systemctl("enable", UNIT)
    if now:
        _systemctl("start", UNIT, down=True)
    done = ["enabled"] * automation.auto_start + ["started"] * now
    then = "`rae-node status` tells how it is" if now else "it starts at the next boot, or by --now"
    print(f"rae-node is {' and '.join(done)}; {then}")


def disable(config: ConfigOption = None) -> None:
    """Stop the service, and keep it from starting at boot.

    A running task is stopped and handed back first. Needs root: `sudo rae-node disable`.

    Exit 1: it could not be done.
    """
    _systemctl("disable", "--now", UNIT)
    print("rae-node is stopped and disabled")


def _systemctl(*words: str, down: bool = False) -> None:
    """Exit 1 with systemd's reason, or 3 where the node was to run."""
    try:
        done = subprocess.run(["systemctl", "--quiet", *words], capture_output=True, text=True)
    except FileNotFoundError:
        exit_with(Exit.NO, "there is no systemctl here: the service needs systemd; `rae-node run` runs the node without")
    if done.returncode:
        said = one_line(done.stderr, 500) or f"systemctl ended with {done.returncode}"
        if "does not exist" in said or "not found" in said:
            exit_with(Exit.NO, f"the service is not installed ({said}): run `sudo make install`")
        if "uthenti" in said or "ccess denied" in said:
            exit_with(Exit.NO, f"{said}; run it with sudo")
        exit_with(Exit.DOWN if down else Exit.NO, said + (f"; see `journalctl -u {UNIT}`" if down else ""))
