"""`rae-node status`."""

from __future__ import annotations

import contextlib
import json as jsonlib
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from supervisor.cli.common import (
    AllOption,
    ConfigOption,
    JsonOption,
    NoAnswer,
    ask_daemon,
    exit_with,
    fit,
    print_json,
    print_lines,
    query,
    runtime_folder,
    terminal,
)
from supervisor.cli.headline import MARK, ago, clock, headline, shown_guards

WATCH_S = 0.5


def status(
    config: ConfigOption = None,
    json: JsonOption = False,
    every: AllOption = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it twice a second, until Ctrl-C.")] = False,
) -> None:
    """Show the state of the node.

    The first three lines: what it does and why, what comes next, what it did last. Then the guards that matter now, the
    task, the control node. `rae-node why` shows more of what keeps it from working.

    Exit codes: 0 answered. 3 the daemon is not running. 4 it does not answer, or is another version.
    """
    if watch:
        _watch(config, json, every)
    answer = ask_daemon(config, "status")
    if json:
        print_json(_public(answer))
    else:
        print_lines(screen(answer, time.time(), every=every, plain=not sys.stdout.isatty()), one_screen=True, headed=True)


def _public(answer: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in answer.items() if key not in ("v", "ok")}


def screen(answer: dict[str, Any], wall_s: float, *, every: bool = False, plain: bool = False) -> list[str]:
    """The answer in lines. Times are relative to `wall_s`, in seconds since the epoch."""
    guards = [f"  {MARK[guard['ok']]}  {guard['name']:<14} {guard['reason']}" for guard in shown_guards(answer, every=every)]
    facts = [f"{name:<13} {text}" for name, text in _facts(answer, wall_s)]
    return [*headline(answer, wall_s, plain=plain), "", *guards, *[""] * bool(guards), *facts]


def _watch(config: Path | None, as_json: bool, every: bool) -> NoReturn:
    """On a terminal a live screen, else a line or JSON document for each change of the first line."""
    from rich.live import Live
    from rich.text import Text

    live = sys.stdout.isatty() and not as_json
    live_screen = Live(Text(""), console=terminal(), auto_refresh=False, screen=True) if live else None
    runtime, last = runtime_folder(config), ""
    try:
        with live_screen or contextlib.nullcontext():
            while True:
                answer = query(runtime, "status")
                if live_screen:
                    lines = fit(screen(answer, time.time(), every=every), *shutil.get_terminal_size())
                    live_screen.update(Text("\n".join(lines)), refresh=True)
                elif answer["status"] != last:
                    print(jsonlib.dumps(_public(answer)) if as_json else answer["status"], flush=True)
                last = answer["status"]
                time.sleep(WATCH_S)
    except NoAnswer as none:  # printed after the live screen, which takes its text with it
        exit_with(none.code, str(none))


def _facts(answer: dict[str, Any], wall_s: float) -> list[tuple[str, str]]:
    task, source = answer["task"], answer["source"]
    facts = [("task", f"{task['type']} {task['id']}, {task['phase']}" if task else "none")]
    if answer["task_usage"]:
        facts.append(("it uses", usage(answer["task_usage"])))
    dialect = f" (dialect {source['dialect']})" if source["dialect"] else ""
    link = f"{source['url']}{dialect}: {source['link']} for {ago(source['since'], wall_s)}"
    if source["reason"]:
        link += f", {source['reason']}"
    if source["next_try_s"] is not None:
        link += f", next try in {source['next_try_s']:g} s"
    facts.append(("control node", link))
    if source["error"] and source["error"] != source["reason"]:
        facts.append(("last trouble", f"{ago(source['error_at'], wall_s)} ago: {source['error']}"))
    if source["lost_polls"]:
        facts.append(("lost polls", lost_polls(source, wall_s)))
    if source["outbox"]:
        facts.append(("to deliver", f"{source['outbox']} outcomes"))
    if answer["paused_until"]:
        facts.append(("paused", clock(answer["paused_until"], wall_s)))
    facts.append(("inhibitor", answer["inhibitor"]))
    facts += [("note", note) for note in answer["notes"]]
    return [*facts, ("version", answer["version"])]


def lost_polls(source: dict[str, Any], wall_s: float) -> str:
    """How many, and what each may have cost."""
    count = f"{source['lost_polls']} since the start, the last {ago(source['lost_poll_at'], wall_s)} ago"
    return f"{count}: with each, the control node may have handed out a task that nobody has"


def usage(use: dict[str, Any]) -> str:
    """What the task uses, with limits."""
    parts = []
    for key, name, unit in (
        ("memory_gb", "memory", " GiB"),
        ("vram_gb", "VRAM", " GiB"),
        ("disk_gb", "disk", " GiB"),
        ("processes", "processes", ""),
    ):
        if use[key] is not None:
            limit = use[f"max_{key}"]
            parts.append(f"{name} {use[key]:.4g}{unit}" + (f" of {limit:g}" if limit is not None else ""))
    if use["mean_gpu_percent"] is not None:
        now = "frozen now" if use["frozen"] else f"{use['gpu_percent'] or 0:.0f} % now"
        parts.append(f"GPU {use['mean_gpu_percent']:.0f} % of {use['max_gpu_percent']:g} % in the last minute ({now})")
    return ", ".join(parts)
