"""`rae-node report`, `rae-node verify`, `rae-node doctor`: the same live checks in three forms."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from supervisor.cli.common import ConfigOption, Exit, JsonOption, print_json

if TYPE_CHECKING:
    from supervisor.tools.doctor.report import Check


def report(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Say whether the node is ready for central control.

    Live checks; each failure with its reason and what to do. Run it with sudo: then it uses the service's own user and
    place. Changes nothing, starts nothing.

    Exit codes: 0 READY. 1 NOT READY.
    """
    from supervisor.tools.doctor import report as form

    checks = _checks(config)
    print_json(form.report_dict(checks)) if json else print(form.report(checks))
    raise typer.Exit(Exit.YES if form.ready(checks) else Exit.NO)


def verify(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Run the acceptance checks of an installed node.

    Host and date, a line [PASS] or [FAIL] for each check, the verdict. Run it with sudo: then it uses the service's own
    user and place. Changes nothing, starts nothing.

    Exit codes: 0 Verdict: PASS. 1 Verdict: FAIL.
    """
    from supervisor.tools.doctor import report as form
    from supervisor.tools.doctor.doctor import heading

    checks = _checks(config)
    print_json(form.verify_dict(checks, *heading())) if json else print(form.verify(checks, *heading()))
    raise typer.Exit(Exit.YES if form.ready(checks) else Exit.NO)


def doctor(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Check everything that the node needs.

    Each check passed, failed (with what to do), or does not apply here. Run it with sudo: then it uses the service's own
    user and place. Changes nothing, starts nothing.

    Exit codes: 0 no check failed. 1 a check failed.
    """
    from supervisor.tools.doctor import report as form

    checks = _checks(config)
    print_json([check.as_dict() for check in checks]) if json else print(form.doctor(checks))
    raise typer.Exit(Exit.NO if form.failed(checks) else Exit.YES)


def _checks(config: Path | None) -> list[Check]:
    import asyncio

    from supervisor.config.load import find_folder
    from supervisor.tools.doctor.doctor import examine

    return asyncio.run(examine(find_folder(config).absolute()))
