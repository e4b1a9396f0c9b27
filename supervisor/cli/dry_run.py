"""`rae-node dry-run`."""

import typer

from supervisor.cli.common import ConfigOption, Exit, JsonOption, load_config, print_error, print_json


def dry_run(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Show which cases allow work and which block it.

    All combinations of user, GPU, CPU and host, decided by the daemon's own rules. Executes nothing.

    Exit codes: 0 all as required. 1 one is different.
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
