"""The decision journal (R16, interface §6): one JSON object a line, a file a day, kept `logs.keep_days` days.

Cause and effect: an intent line (kind `decision`: the row, every verdict with its reading, the planned effects), then a
line for each effect that was performed, joined by `tick`; the last line of a tick says the state after. Nothing when
nothing changed, but an `alive` line a minute. Never a payload, a result, a key code or a window title (R6).

A folder that cannot be written never stops the node: the trouble is kept in `trouble`, said in `status`, and writing is
tried again at every line.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from states.lifecycle import Outcome, Plan
from states.limits import Limits
from states.memory import Memory
from states.observation import Task, TaskPhase
from supervisor.clock import Clock, iso
from supervisor.vocabulary import see_of

FORMAT: Final = 1
ALIVE_EVERY_S: Final = 60.0
_NAME = re.compile(r"^decisions-(\d{4}-\d{2}-\d{2})\.jsonl$")


def task_of(task: Task) -> dict[str, str] | None:
    """The task as the journal and `status` show it: id, type, phase."""
    return None if task.phase is TaskPhase.NONE else {"id": task.id, "type": task.type, "phase": str(task.phase)}


class Journal:
    """Appends lines to today's file in `folder`; `say` also gets each line's gist in words, for people and journald."""

    def __init__(self, folder: Path, clock: Clock, keep_days: int = 7, say: Callable[[str], None] = lambda _: None) -> None:
        self._folder = folder
        self._clock = clock
        self._keep_days = keep_days
        self._say = say
        self._fd: int | None = None
        self._day = ""
        self._last_line_s = float("-inf")
        self._tick = 0
        self.trouble = ""

    def start(self, version: str, limits: Limits, memory: Memory) -> None:
        """A new life of the daemon, with what it remembers and the limits that it goes by."""
        self.write("start", version=version, pid=os.getpid(), memory={"cooldown_from_s": memory.cooldown_from_s})
        self.config(limits, "")

    def config(self, limits: Limits | None, problem: str) -> None:
        """The limits in force from now on, or why the files are refused."""
        if problem:
            self.write("config", problem=problem)
        elif limits is not None:
            self.write("config", limits=asdict(limits))

    def intent(self, plan: Plan) -> None:
        """What a tick decided, before anything is done. Silent when nothing changes."""
        if plan.quiet:
            return
        self._tick += 1
        row, state = plan.row, plan.memory.state
        self.write(
            "decision",
            tick=self._tick,
            **{"from": state},
            row=None if row is None else row.id,
            to=state if row is None else row.to,
            effects=list(plan.effects),
            guards=[v.as_dict() for v in plan.guards()],
            task=task_of(plan.observation.task),
            observation=see_of(plan.observation, plan.limits),
            at_s=plan.observation.now_s,
            **({} if plan.effects else {"state": state if row is None else row.to}),
        )

    def outcome(self, plan: Plan, outcome: Outcome, memory: Memory) -> None:
        """What was done, effect by effect; the last line says the state after."""
        results = outcome.results
        for index, r in enumerate(results):
            last = {"state": memory.state} if index == len(results) - 1 else {}
            self.write(
                "effect",
                tick=self._tick,
                effect=r.effect,
                ok=r.ok,
                detail=r.detail,
                took_s=round(r.took_s, 4),
                **last,
            )

    def alive(self, state: str, reason: str) -> None:
        """A sign of life, a minute apart at most: without it silence would say nothing."""
        if self._clock.now_s() - self._last_line_s >= ALIVE_EVERY_S:
            self.write("alive", state=state, reason=reason)

    def write(self, kind: str, **fields: Any) -> None:
        """One line, at once; a failure is remembered and never raised."""
        now_s, wall_s = self._clock.now_s(), self._clock.wall_s()
        local = time.localtime(wall_s)
        line = json.dumps({"v": FORMAT, "kind": kind, "time": iso(wall_s), "boot_s": now_s, **fields}, allow_nan=False)
        self._last_line_s = now_s
        try:
            self._open(time.strftime("%Y-%m-%d", local))
            if self._fd is not None:
                os.write(self._fd, line.encode() + b"\n")
            self.trouble = ""
        except OSError as error:
            self._close()
            self.trouble = f"decisions cannot be logged in {self._folder}: {error.strerror or error}"
        if gist := _gist(kind, fields):
            self._say(gist)

    def close(self) -> None:
        """Let go of the file."""
        self._close()

    def _open(self, day: str) -> None:
        path = self._folder / f"decisions-{day}.jsonl"
        if self._fd is not None and day == self._day and _same(self._fd, path):
            return
        self._close()
        self._folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        size = os.fstat(self._fd).st_size
        if size and os.pread(self._fd, 1, size - 1) != b"\n":
            os.write(self._fd, b"\n")  # a line torn by a power cut is closed, so that ours stands alone
        if day != self._day:
            self._day = day
            self._forget_old()

    def _forget_old(self) -> None:
        days = sorted(name for name in os.listdir(self._folder) if _NAME.match(name))
        for name in days[: -self._keep_days]:
            os.unlink(self._folder / name)

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _same(fd: int, path: Path) -> bool:
    """The open file is still the one at this path: a deleted or moved file takes lines silently."""
    try:
        here, there = os.fstat(fd), path.stat()
    except FileNotFoundError:
        return False
    return (here.st_ino, here.st_dev) == (there.st_ino, there.st_dev)


def _gist(kind: str, fields: dict[str, Any]) -> str:
    """The line in words."""
    if kind == "decision":
        row = fields["row"] or "no row"
        blocked = next((g["reason"] for g in fields["guards"] if g["ok"] is not True and g["name"] != "task_claimed"), "")
        task = fields["task"]
        about = f" ({task['type']} {task['id']})" if task else ""
        return f"{fields['from']} → {fields['to']}: {row}{about}" + (f": {blocked}" if blocked else "")
    if kind == "effect":
        mark = "done" if fields["ok"] else "FAILED"
        detail = f": {fields['detail']}" if fields["detail"] else ""
        return f"  {fields['effect']} {mark} in {fields['took_s'] * 1000:.0f} ms{detail}"
    if kind == "config":
        return f"configuration refused: {fields['problem']}" if "problem" in fields else ""
    if kind in ("link", "operator"):
        return f"{kind}: " + ", ".join(str(v) for v in fields.values() if v not in ("", None))
    return ""


def files(paths: Iterable[Path]) -> list[Path]:
    """Journal files in order of their day: files as given, folders by their `decisions-*.jsonl`."""
    found: list[Path] = []
    for path in paths:
        found += sorted(p for p in path.iterdir() if _NAME.match(p.name)) if path.is_dir() else [path]
    return found


def read(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, entry) of a journal file; a torn or foreign line is left out, whatever its place.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                entry = json.loads(raw)
            except ValueError:
                continue
            if isinstance(entry, dict) and entry.get("v") == FORMAT and isinstance(entry.get("kind"), str):
                yield number, entry
