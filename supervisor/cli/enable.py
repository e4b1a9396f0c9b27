"""`rae-node enable` and `rae-node disable`, by systemctl."""

from __future__ import annotations

import subprocess
from typing import Annotated

import typer

from supervisor.cli.common import ConfigOption, Exit, exit_with, load_config, print_error

UNIT = "rae-node.service"


def enable(
    now: Annotated[bool, typer.Option("--now", help="Also start it, and wait until it is up.")] = False,
    config: ConfigOption = None,
) -> None:
    """Let the service start at boot.

    Only --now starts it at once. Needs root: `sudo rae-node enable --now`.

    Exit codes: 0 done. 1 systemd refused. 3 it did not start.
    """
    automation = load_config(config).runtime.automation
    if not automation.auto_start:
        if not now:
            exit_with(Exit.NO, "automation.auto_start is false in runtime.yaml: set it to true first, or start once with --now")
        print_error("automation.auto_start is false in runtime.yaml: started for now, not at the next boot")
    else:
        _systemctl("enable", UNIT)
    if now:
        _systemctl("start", UNIT, failed=Exit.DOWN)
    done = ["enabled"] * automation.auto_start + ["started"] * now
    then = "`rae-node status` shows its state" if now else "it starts at the next boot, or by --now"
    print(f"rae-node is {' and '.join(done)}; {then}")


def disable(config: ConfigOption = None) -> None:
    """Stop the service, and do not start it at boot.

    A running task is stopped and handed back first. Needs root: `sudo rae-node disable`.

    Exit codes: 0 done. 1 systemd refused.
    """
    _systemctl("disable", "--now", UNIT)
    print("rae-node is stopped and disabled")


def _systemctl(*arguments: str, failed: Exit = Exit.NO) -> None:
    """Run systemctl; if it fails, exit with its reason."""
    try:
        done = subprocess.run(["systemctl", "--quiet", *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        exit_with(Exit.NO, "there is no systemctl here: the service needs systemd; `rae-node run` runs the node without")
    if done.returncode:
        reason = " ".join(done.stderr.split()) or f"systemctl ended with {done.returncode}"
        if "does not exist" in reason or "not found" in reason:
            exit_with(Exit.NO, f"the service is not installed ({reason}): run `sudo make install`")
        if "uthenti" in reason or "ccess denied" in reason:
            exit_with(Exit.NO, f"{reason}; run it with sudo")
        exit_with(failed, reason + (f"; see `journalctl -u {UNIT}`" if failed is Exit.DOWN else ""))
