"""`rae-node report`, `rae-node verify`, `rae-node doctor`: one list of live checks, in three forms."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from supervisor.cli.common import ConfigOption, Exit, JsonOption, config_folder, print_json

if TYPE_CHECKING:
    from supervisor.tools.doctor.report import Check


def report(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Say whether the node is ready for central control.

    Each line comes from live checks; whatever fails is named, with the reason and what to do. Run it with sudo: then the
    service's own user and place are used. Changes nothing, starts nothing.

    Exit 0: READY. 1: NOT READY.
    """
    from supervisor.tools.doctor import report as words

    checks = _checks(config)
    print_json(words.report_dict(checks)) if json else print(words.report(checks))
    raise typer.Exit(Exit.YES if words.ready(checks) else Exit.NO)


def verify(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Go through the acceptance of an installed node.

    Host and date, a line [PASS] or [FAIL] for each check, the verdict. Run it with sudo: then the service's own user and
    place are used. Changes nothing, starts nothing.

    Exit 0: Verdict: PASS. 1: FAIL.
    """
    from supervisor.tools.doctor import report as words
    from supervisor.tools.doctor.doctor import heading

    checks = _checks(config)
    print_json(words.verify_dict(checks, *heading())) if json else print(words.verify(checks, *heading()))
    raise typer.Exit(Exit.YES if words.ready(checks) else Exit.NO)


def doctor(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Look at everything that the node needs.

    Each check passed, failed (with what to do), or does not apply here. Run it with sudo: then the service's own user and
    place are used. Changes nothing, starts nothing.

    Exit 0: nothing failed. 1: something did.
    """
    from supervisor.tools.doctor import report as words

    checks = _checks(config)
    print_json([check.as_dict() for check in checks]) if json else print(words.doctor(checks))
    raise typer.Exit(Exit.NO if words.failed(checks) else Exit.YES)


def _checks(folder: Path | None) -> list[Check]:
    import asyncio

    from supervisor.config.load import find_folder
    from supervisor.tools.doctor.doctor import examine

    return asyncio.run(examine(find_folder(config_folder(folder)).absolute()))
