"""`rae-node replay`."""

from pathlib import Path
from typing import Annotated

import typer

from supervisor.cli.common import ConfigOption, JsonOption, print_error, print_json


def replay(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Scripts (*.yaml), journals (*.jsonl), folders.")],
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Decide scripts and recorded journals again.

    Example: `rae-node replay /opt/rae-node/logs` shows whether today's rules decide as they did then.

    Exit codes: 0 all as expected. 1 a difference; the first of each file is shown. 2 a file cannot be read.
    """
    from supervisor.tools.history.replay import answer, as_json, errors, exit_code, replay_files

    reports = replay_files(files)
    if json:
        print_json(as_json(reports))
    else:
        for line in answer(reports):
            print(line)
    for line in errors(reports):
        print_error(line)
    raise typer.Exit(exit_code(reports))
