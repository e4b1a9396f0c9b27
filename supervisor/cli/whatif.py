"""`rae-node whatif`."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from supervisor.cli.common import (
    ConfigOption,
    Exit,
    JsonOption,
    LogsArgument,
    exit_with,
    journals,
    load_config,
    not_nan,
    print_json,
    reading_journals,
    values,
)
from supervisor.cli.picture import check_name, write_picture

if TYPE_CHECKING:
    from states.limits import Limits

MAX_STEPS = 200


def _setting(name: str) -> str:
    """The whole name of a setting, given with or without its section."""
    from supervisor.tools.history.record import SETTINGS

    known = next((full for full in SETTINGS if name in (full, full.partition(".")[2])), None)
    if known is None:
        exit_with(Exit.WRONG, f"{name}: is no setting that whatif knows; allowed: {', '.join(SETTINGS)}")
    return known


def _with(limits: Limits, name: str, value: str) -> Limits:
    """`limits` with one setting changed, under the rules of the configuration files."""
    from supervisor.tools.history.record import SETTINGS
    from supervisor.tools.history.script import ScriptError, parse

    known = _setting(name)
    text = f"replay: 1\nsettings: {{{known}: {value}}}\nsteps: [{{at: 0s, expect: {{state: DISABLED}}}}]\n"
    try:
        field = SETTINGS[known][0]
        return replace(limits, **{field: getattr(parse(text, "whatif").limits, field)})
    except ScriptError as error:
        problem = error.problems[0]
        exit_with(Exit.WRONG, f"{known}: found {value}, allowed: {problem.allowed}")


def _values(text: str) -> list[str]:
    """The values of `2..30` or `2..30:4`."""
    span, _, step_text = text.partition(":")
    low, dots, high = span.partition("..")
    try:
        first, last, step = float(low), float(high), float(step_text or 1)
        count = int((last - first) / step + 1e-9) + 1
    except (ValueError, ZeroDivisionError, OverflowError):
        first, step, count, dots = 0.0, 1.0, 0, ""
    if not dots or not 1 <= count <= MAX_STEPS or step <= 0:
        exit_with(Exit.WRONG, f"--sweep: found {text!r}, allowed: NAME=FROM..TO[:STEP], at most {MAX_STEPS} steps")
    return [f"{first + n * step:g}" for n in range(count)]


def _names(incomplete: str) -> list[str]:
    from supervisor.tools.history.record import SETTINGS

    return values(*(f"{name}=" for name in SETTINGS))(incomplete)


def whatif(
    logs: LogsArgument = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Another limit; repeatable.", autocompletion=_names),
    ] = None,
    sweep: Annotated[
        str, typer.Option(metavar="NAME=FROM..TO[:STEP]", help="A row for each value.", autocompletion=_names)
    ] = "",
    task_minutes: Annotated[
        float, typer.Option(metavar="N", min=0.1, max=10080, callback=not_nan, help="The assumed length of each task.")
    ] = 20.0,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="A picture (.svg, .png).")] = None,
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Apply other limits to recorded days.

    Example: `rae-node whatif --set safety.idle_required_minutes=5`.

    A row for each value: `rae-node whatif --sweep idle_required_minutes=2..30:4`.

    With --config DIR and no --set, the other limits are those in that folder.

    Both sides assume that there is always a task, as long as --task-minutes, while the control node can be reached; and
    that readings stay the same between two lines of the journal.

    Exit codes: 0 printed or drawn. 2 a wrong setting, a journal cannot be read, or FILE cannot be written.
    """
    check_name(out, ".svg", ".png")
    from supervisor.tools.history.whatif import WhatIfError, as_json, as_rows, live, load

    with reading_journals(WhatIfError):
        past = load(journals(logs, config))
    after = past.limits if changes or config is None else load_config(config).limits
    for change in changes or ():
        name, equals, value = change.partition("=")
        if not equals:
            exit_with(Exit.WRONG, f"--set: found {change!r}, allowed: NAME=VALUE, such as safety.idle_required_minutes=5")
        after = _with(after, name, value)
    cases = {"before": past.limits, "after": after}
    values: list[str] = []
    name, _, span = sweep.partition("=")
    if sweep:
        values = _values(span)
        cases = {f"{name}={value}": _with(after, name, value) for value in values}
    results = {name: live(past, limits, task_minutes * 60) for name, limits in cases.items()}
    if out is not None:
        from supervisor.tools.history.record import SETTINGS
        from supervisor.tools.history.whatif_svg import Swept, picture

        swept, assumptions = None, f"tasks of {task_minutes:g} min, always there; {', '.join(changes or ())}".rstrip("; ")
        if sweep:
            field, per = SETTINGS[_setting(name)]
            swept = Swept(_setting(name), tuple(map(float, values)), getattr(past.limits, field) / per)
        write_picture(out, lambda dark: picture(results, swept, assumptions, dark))
    if json:
        print_json(as_json(results))
    elif out is None:
        for line in as_rows(results, shutil.get_terminal_size().columns):
            print(line)
