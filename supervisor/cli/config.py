"""`rae-node config check` and `rae-node config schema`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from supervisor.cli.common import ConfigOption, Exit, JsonOption, load_config, print_json

app = typer.Typer(help="Check the configuration, or print its schema.", no_args_is_help=True)


@app.command()
def check(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Check both files.

    All errors at once, one line each: file:line:column, what was found, what is allowed.

    Exit codes: 0 correct. 1 correct, but with these settings the node can never become READY. 2 an error.
    """
    from supervisor.config.feasibility import never_ready

    found = load_config(config)
    never = never_ready(found.runtime, found.node)
    if json:
        print_json({"sound": True, "reachable": not never, "reasons": list(never), "notes": list(found.notes)})
    else:
        print(f"{found.folder}: no errors" + ("" if not never else ", but the node can never become READY:"))
        for line in never:
            print(f"  {line}")
        for note in found.notes:
            print(f"  note: {note}")
    raise typer.Exit(Exit.NO if never else Exit.YES)


@app.command()
def schema(
    which: Annotated[Literal["runtime", "node"], typer.Argument(metavar="runtime|node", help="Which file.")],
    config: ConfigOption = None,
) -> None:
    """Print the JSON schema of a file, for editors.

    Example: `rae-node config schema node > node.schema.json`.

    Exit codes: 0 printed. 2 wrong usage.
    """
    from supervisor.config.load import schema as schema_of

    print_json(schema_of(which))
