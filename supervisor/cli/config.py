"""`rae-node config check` and `rae-node config schema`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from supervisor.cli.common import ConfigOption, Exit, JsonOption, load_config, print_json

app = typer.Typer(help="Check the configuration, or print its schema.", no_args_is_help=True)


class Which(StrEnum):
    """The two files."""

    RUNTIME = "runtime"
    NODE = "node"


@app.command()
def check(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Check both files.

    Every error at once, one line each, with file:line:column, what was found and what is allowed.

    Exit 0: sound. 1: sound, but with these settings the node can never become READY. 2: an error.
    """
    from supervisor.config.feasibility import never_ready

    found = load_config(config)
    never = never_ready(found.runtime, found.node)
    if json:
        print_json({"sound": True, "reachable": not never, "reasons": list(never), "notes": list(found.notes)})
    else:
        print(f"{found.folder}: sound" + ("" if not never else ", but READY can never be reached:"))
        for line in never:
            print(f"  {line}")
        for note in found.notes:
            print(f"  note: {note}")
    raise typer.Exit(Exit.NO if never else Exit.YES)


@app.command()
def schema(
    which: Annotated[Which, typer.Argument(metavar="runtime|node", help="Which file.")], config: ConfigOption = None
) -> None:
    """Print the JSON schema of a file.

    For editors. Example: `rae-node config schema node > node.schema.json`.
    """
    from supervisor.config.load import schema as schema_of

    print_json(schema_of(which.value))
