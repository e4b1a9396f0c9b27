"""`rae-node replay`."""

from pathlib import Path
from typing import Annotated

import typer

from supervisor.cli.common import ConfigOption, Exit, JsonOption, document, err


def replay(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Scripts (*.yaml), recorded journals (*.jsonl), folders.")],
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Run scripted replays and recorded journals through the mind, and compare.

    Exit 0: all as expected. 1: the first difference of each is shown. 2: one cannot be read.
    """
    from supervisor.offline.replay import replay_files

    reports = replay_files(files)
    if json:
        document([report.as_dict() for report in reports])
    for report in reports:
        if report.error:
            err(report.error)
        elif not json:
            print(f"{'ok  ' if report.ok else 'FAIL'} {report.path}: {report.title}")
            if report.difference:
                print(report.difference)
    if any(report.error for report in reports):
        raise typer.Exit(Exit.WRONG)
    raise typer.Exit(Exit.YES if all(report.ok for report in reports) else Exit.NO)
