"""`rae-node whatif`."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from supervisor.cli.common import ConfigOption, Exit, JsonOption, exit_with, load_config, not_nan, print_json
from supervisor.cli.picture import write_picture

if TYPE_CHECKING:
    from states.limits import Limits

MAX_STEPS = 200


def _setting(name: str) -> str:
    """The whole name of a setting that can be asked about."""
    from supervisor.tools.history.record import SETTINGS

    known = next((full for full in SETTINGS if name in (full, full.partition(".")[2])), None)
    if known is None:
        exit_with(Exit.WRONG, f"{name}: is no setting that can be asked about; allowed: {', '.join(SETTINGS)}")
    return known


def _with(limits: Limits, name: str, value: str) -> Limits:
    """`limits` with one setting changed, judged by the rules of the files."""
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
    """`2..30` or `2..30:4` as its values."""
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


def whatif(
    logs: Annotated[list[Path] | None, typer.Argument(metavar="[LOGS]...", help="Journals. Default: paths.logs.")] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Another limit; repeatable.")] = None,
    sweep: Annotated[str, typer.Option(metavar="NAME=FROM..TO[:STEP]", help="A line for each value: the trade-off.")] = "",
    task_minutes: Annotated[
        float, typer.Option(metavar="N", min=0.1, max=10080, callback=not_nan, help="How long each task is taken to last.")
    ] = 20.0,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="A picture of it (.svg, .png).")] = None,
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Ask recorded days what other limits would have meant.

    Example: `rae-node whatif --set safety.idle_required_minutes=5`.

    A row for each value: `rae-node whatif --sweep idle_required_minutes=2..30:4`.

    With --config DIR and no --set, the limits in that folder are the other ones.

    Taken for granted, before and after alike: there is always a task, each as long as --task-minutes, as long as the
    control node can be reached; readings hold between two lines of the journal.

    Exit 0: told or drawn. 2: a setting is wrong, a journal cannot be read, or FILE cannot be written.
    """
    if out is not None and out.suffix.lower() not in (".svg", ".png"):
        exit_with(Exit.WRONG, f"--out: found {out}, allowed: a name that ends in .svg or .png")
    from supervisor.tools.history.whatif import WhatIfError, as_json, as_rows, live, load

    try:
        past = load(logs or [load_config(config).paths.logs])
    except WhatIfError as error:
        exit_with(Exit.WRONG, str(error))
    except OSError as error:
        exit_with(Exit.WRONG, f"{error.filename}: {error.strerror}; name journals (decisions-*.jsonl) or a folder of them")
    after = past.limits if changes or config is None else load_config(config).limits
    for change in changes or ():
        name, equals, value = change.partition("=")
        if not equals:
            exit_with(Exit.WRONG, f"--set: found {change!r}, allowed: NAME=VALUE, such as safety.idle_required_minutes=5")
        after = _with(after, name, value)
    asked = {"before": past.limits, "after": after}
    values: list[str] = []
    name, _, span = sweep.partition("=")
    if sweep:
        values = _values(span)
        asked = {f"{name}={value}": _with(after, name, value) for value in values}
    results = {name: live(past, limits, task_minutes * 60) for name, limits in asked.items()}
    if out is not None:
        from supervisor.tools.history.record import SETTINGS
        from supervisor.tools.history.whatif_svg import Swept, picture

        swept, told = None, f"tasks of {task_minutes:g} min, always there; {', '.join(changes or ())}".rstrip("; ")
        if sweep:
            field, per = SETTINGS[_setting(name)]
            swept = Swept(_setting(name), tuple(map(float, values)), getattr(past.limits, field) / per)
        write_picture(out, lambda dark: picture(results, swept, told, dark))
    if json:
        print_json(as_json(results))
    elif out is None:
        for line in as_rows(results, shutil.get_terminal_size().columns):
            print(line)
