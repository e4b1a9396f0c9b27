"""`rae-node config check` and `rae-node config schema`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from supervisor.cli.common import ConfigOption, Exit, JsonOption, load_config, print_error, print_json

app = typer.Typer(help="Check the configuration, or print its schema.", no_args_is_help=True)


@app.command()
def check(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Check both files.

    All errors at once, one line each: file:line:column, what was found, what is allowed. A task type whose command only
    asks another daemon for its work (docker, systemd-run, tmux) is an error too.

    Exit codes: 0 correct. 1 correct, but with these settings the node can never become READY. 2 an error.
    """
    from supervisor.config.feasibility import never_ready, refused_types

    found = load_config(config)
    refused, never = refused_types(found.node), never_ready(found.runtime, found.node)
    for line in refused:
        print_error(line)
    if json:
        reasons = [*refused, *never]
        print_json({"sound": not refused, "reachable": not never, "reasons": reasons, "notes": list(found.notes)})
    elif not refused:
        print(f"{found.folder}: no errors" + ("" if not never else ", but the node can never become READY:"))
        for line in never:
            print(f"  {line}")
        for note in found.notes:
            print(f"  note: {note}")
    raise typer.Exit(Exit.WRONG if refused else Exit.NO if never else Exit.YES)


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
