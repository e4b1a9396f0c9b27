"""`rae-node dry-run`."""

import typer

from supervisor.cli.common import ConfigOption, Exit, JsonOption, load_config, print_error, print_json


def dry_run(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Show which cases allow work and which block it.

    User, GPU, CPU and host in every combination, judged by the very rules that the daemon goes by (R17); nothing is executed.

    Exit 1 when one comes out otherwise than required.
    """
    from supervisor.tools.history.dry_run import as_table
    from supervisor.tools.history.dry_run import dry_run as cases_of

    cases = cases_of(load_config(config).limits)
    wrong = [case for case in cases if case.allowed != case.required]
    if json:
        print_json([case.as_dict() for case in cases])
    else:
        print(as_table(cases))
    for case in wrong:
        required = "allowed" if case.required else "blocked"
        print_error(f"{case.case}: required {required}, came out as {case.state}: {case.reason}")
    raise typer.Exit(Exit.NO if wrong else Exit.YES)
