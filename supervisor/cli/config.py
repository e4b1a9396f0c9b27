"""`rae-node config check`, `config show` and `config schema`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from supervisor.cli.common import ConfigOption, Exit, JsonOption, load_config, print_errors, print_json

if TYPE_CHECKING:
    from supervisor.config.load import Config
    from supervisor.tools.doctor.report import Check

app = typer.Typer(help="Check the configuration, show it, or print its schema.", no_args_is_help=True)


@app.command()
def check(
    config: ConfigOption = None,
    json: JsonOption = False,
    online: Annotated[bool, typer.Option("--online", help="Also ask the control node; nothing changes there.")] = False,
) -> None:
    """Check both files.

    All errors at once, one line each: file:line:column, what was found, what is allowed. A task type whose command only
    asks another daemon for its work (docker, systemd-run, tmux) is an error too. Also says which programs are missing, and
    whether there is a GPU.

    Exit codes: 0 correct. 1 correct, but the node can never become READY here, or run none of its task types, or (--online)
    the control node does not take it. 2 an error.
    """
    from supervisor.config.feasibility import missing_programs, never_ready, no_program, refused_types
    from supervisor.config.load import ConfigErrors, find_folder, load

    notes: list[str] = []
    never: list[str] = []
    try:
        found = load(find_folder(config))
    except ConfigErrors as errors:
        refused = list(map(str, errors.problems))
    else:
        refused, missing = refused_types(found.node), missing_programs(found.node)
        never = [*never_ready(found.runtime, found.node), *_no_gpu(found), *no_program(found.node, missing)]
        notes = [*found.notes, *missing]
        if online:
            asked = _ask(found)
            never += [check.failure for check in asked if check.ok is False]
            notes += [f"{check.name}: {check.reason}" for check in asked if check.ok is not False]
    print_errors(refused)
    if json:
        print_json({"sound": not refused, "reachable": not (refused or never), "reasons": [*refused, *never], "notes": notes})
    elif not refused:
        print(f"{found.folder}: no errors" + (", but the node can never work here:" if never else ""))
        for line in never:
            print(f"  {line}")
        for note in notes:
            print(f"  note: {note}")
    raise typer.Exit(Exit.WRONG if refused else Exit.NO if never else Exit.YES)


def _ask(config: Config) -> list[Check]:
    import asyncio

    from supervisor.tools.doctor.control_node import control_node, task_types

    return [asyncio.run(control_node(config)), task_types(config)]


def _no_gpu(config: Config) -> list[str]:
    """Why a node that needs a GPU can never become READY: this machine has none. Asked as the daemon asks."""
    from supervisor.tools.doctor.one_look import gpu_is_absent

    if config.node.gpu.presence != "required" or not gpu_is_absent(config):
        return []
    why = "this machine has none that can be lent; set it to optional or none to work without one"
    return [f"node.yaml: gpu.presence is required: {why}"]


@app.command()
def show(
    every: Annotated[bool, typer.Option("--all", "-a", help="Also those that are as shipped.")] = False,
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Print the settings as they are understood.

    Never a secret: what stands in the place of one is shown as (hidden).

    Exit codes: 0 printed. 2 an error in a file.
    """
    import yaml

    from supervisor.tools.redact import shown

    settings = shown(load_config(config), every=every)
    if json:
        print_json(settings)
        return
    for name, values in settings.items():
        print(f"# {name}" + ("" if values else ": as shipped"))
        print(yaml.safe_dump(values, sort_keys=False, allow_unicode=True) if values else "", end="")


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
