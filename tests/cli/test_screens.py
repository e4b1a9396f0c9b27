"""What people see, kept as text: tests/cli/screens/ has each command at two sizes in the five states.

After a change that is meant, `RAE_WRITE_SCREENS=1 pytest tests/cli/test_screens.py` writes them anew; read what changed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.answers import WALL_S, answer, at

from states.memory import State
from supervisor.cli import fleet_asks, status, top_view, why
from supervisor.cli.common import fit
from supervisor.sources.nats.admin.overview import screen as fleet_screen

FOLDER = Path(__file__).parent / "screens"
SIZES = ((80, 24), (120, 40))


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def as_status(state: State, width: int, height: int) -> list[str]:
    return fit(status.screen(answer(state), WALL_S), width, height - 1)


def as_why(state: State, width: int, _height: int) -> list[str]:
    return fit(why.screen(answer(state), WALL_S), width)


def as_top(state: State, width: int, height: int) -> list[str]:
    said = answer(state)
    history = [{name: (value * n / 400, limit) for name, (value, limit) in top_view.samples(said).items()} for n in range(401)]
    last = top_view.LastAnswer(said, wall_s=WALL_S, history=history)
    return [line.plain.rstrip() for line in top_view.screen(last, "", width, height)]


def as_fleet(state: State, width: int, _height: int) -> list[str]:
    """Nodes in all states; the first in this one."""
    def node(name: str, shown: State, **more: Any) -> dict[str, Any]:
        blank = {"reason": "", "paused_by": "", "paused_until": "", "types": [], "version": "0.1.0", "time": at(1)}
        counts = {"done": 12, "failed": 1, "handed_back": 3, "second": 0, "lost_polls": 0}
        ready = "ONLINE" if shown is State.READY else "BUSY"
        return {"node": name, "availability": ready, "state": shown, "since": at(300), **blank, **counts, **more}

    paused = {"paused_by": "person", "paused_until": at(-5400)} if state is State.DISABLED else {}
    waits = {"reason": "in use by its person"} if state is State.IDLE_WAIT else {}
    nodes = [node("anna-desk", state, **paused, **waits), node("ben-desk", State.IDLE_WAIT, reason="its GPU is in use")]
    return fleet_screen({"nodes": nodes, "tasks": {"waiting": 4, "running": 1, "results": 10, "dead": 0}}, WALL_S, width)


def as_fleet_why(state: State, width: int, _height: int) -> list[str]:
    said = answer(state)
    use = "in use by its person"
    guards = [
        {"name": g["name"], "ok": g["ok"], "text": "" if g["ok"] else use, "wait_s": g["wait_s"]} for g in said["guards"]
    ]
    shown = {**said, "guards": guards, "paused_by": "", "link": "up for 3 h", "trouble": ""}
    return fit(fleet_asks.why_screen("anna-desk", shown, WALL_S), width)


COMMANDS: dict[str, Callable[[State, int, int], list[str]]] = {
    "status": as_status, "why": as_why, "top": as_top, "fleet": as_fleet, "fleet-why": as_fleet_why,
}  # fmt: skip


@pytest.mark.parametrize(("width", "height"), SIZES, ids=lambda n: str(n))
@pytest.mark.parametrize("command", COMMANDS)
def test_a_screen_is_as_it_was(command: str, width: int, height: int) -> None:
    shown = {state: COMMANDS[command](state, width, height) for state in State}
    for state, lines in shown.items():
        assert all(len(line) <= width for line in lines), state
        assert len(lines) <= height, f"{command} in {state} has {len(lines)} lines"
    text = "\n".join(f"=== {state}\n" + "\n".join(line.rstrip() for line in lines) + "\n" for state, lines in shown.items())
    path = FOLDER / f"{command}-{width}x{height}.txt"
    if os.environ.get("RAE_WRITE_SCREENS"):
        FOLDER.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.read_text() == text
