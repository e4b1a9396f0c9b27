"""`rae-node demo`."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from supervisor.cli.common import ConfigOption, Exit, exit_with, not_nan, terminal
from supervisor.cli.headline import MARK

if TYPE_CHECKING:
    from supervisor.daemon.loop import Daemon
    from supervisor.tools.demo.demo import Summary


def demo(
    speed: Annotated[
        float, typer.Option("--speed", metavar="N", min=0.1, max=20, callback=not_nan, help="How many times faster.")
    ] = 1.0,
    config: ConfigOption = None,
) -> None:
    """See the node at work on this machine, in a minute.

    Real sensors, then a scripted person; a real control node, real tasks, all states. It uses a temporary folder and
    changes nothing else. A terminal shows it live; without one it prints lines.

    Exit codes: 0 every task is done and every state was seen. 1 not so.
    """
    from supervisor.tools.demo.demo import Demo

    live = _Live() if sys.stdout.isatty() else None
    try:
        with live or contextlib.nullcontext():
            say, draw = (live.say, live.draw) if live else (partial(print, flush=True), lambda _: None)
            summary = asyncio.run(Demo(speed, say, draw).run())
    except (TimeoutError, OSError) as error:
        exit_with(Exit.NO, f"demo: {error or 'a task was not done in time'}")
    _summary(summary)
    raise typer.Exit(Exit.YES if summary.complete else Exit.NO)


def _summary(summary: Summary) -> None:
    from states.formatting import elapsed

    print()
    print("What you have seen:")
    for state, seconds in summary.seen.items():
        print(f"  {state:<10} {elapsed(seconds)}")
    print()
    for task in summary.tasks:
        print(f"  {task['type']:<8} {task['status']:<10} {task['result']}")
    print()
    back = f"{summary.handed_back} handed back while a person was there, and done afterwards"
    print(f"{len(summary.tasks)} tasks done, {back}.")
    if summary.stopped_in_s is not None:
        print(f"The task was gone {summary.stopped_in_s * 1000:.0f} ms after the person came back.")
    print("Next (in a checkout first `. .venv/bin/activate`): `rae-node config check`, then `rae-node run`;")
    print("`rae-node why` shows what keeps a node from working.")


class _Live:
    """The live picture: the states, the guards, the last lines of the story. All lines are printed at the end."""

    def __init__(self) -> None:
        from rich.live import Live

        self._lines: list[str] = []
        self._status: dict[str, Any] = {}
        self._live = Live(console=terminal(), get_renderable=self._picture, refresh_per_second=8, transient=True)

    def __enter__(self) -> None:
        self._live.start()

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        for line in self._lines:
            print(line)

    def say(self, line: str) -> None:
        self._lines.append(line)

    def draw(self, daemon: Daemon) -> None:
        self._status = daemon.status()

    def _picture(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        status, height = self._status, self._live.console.size.height
        path = Text("  ")
        for state in ("DISABLED", "IDLE_WAIT", "READY", "RUNNING", "COOLDOWN"):
            path.append(f" {state} ", "bold reverse" if state == status.get("state") else "dim")
            path.append("→" if state != "COOLDOWN" else "", "dim")
        guards = [Text(f" {MARK[one['ok']]}  {one['name']:<14} {one['reason']}") for one in status.get("guards", ())]
        first = Text(f"  {status.get('status', 'starting')}", "bold")
        room = height - len(guards) - 6  # a line each: the newest of the story stay in sight
        picture = [path, Text(), first, Text(), *guards, Text(), *map(Text, self._lines[-max(1, room) :])]
        for line in picture:
            line.no_wrap, line.overflow = True, "ellipsis"
        return Group(*picture)
