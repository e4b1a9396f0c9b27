"""The decision journal (R16, interface §6): one JSON object a line, a file a day, kept `logs.keep_days` days.

Cause and effect: an intent line (kind `decision`: the row, every verdict with its reading, the planned effects), then a
line for each effect that was performed, joined by `tick`; the last line of a tick says the state after. Nothing when
nothing changed, but an `alive` line a minute. Never a payload, a result, a key code or a window title (R6).

A folder that cannot be written never stops the node: the trouble is kept in `trouble`, said in `status`, and writing is
tried again at every line. The first line that gets through again follows a `gap` line: how many are missing, and what
the node remembers at that point, so that a replay can go on from there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from states.guards import GUARDS, host_staying, task_in_time
from states.lifecycle import Outcome, Plan
from states.limits import Limits
from states.memory import Memory
from states.observation import Observation, Task, TaskPhase
from supervisor.clock import Clock, iso
from supervisor.vocabulary import see_of

FORMAT: Final = 1
ALIVE_EVERY_S: Final = 60.0
DAY_S: Final = 86400.0
_NAME = re.compile(r"^decisions-(\d{4}-\d{2}-\d{2})\.jsonl$")

# The guard that says in words what one that only splits rows has judged.
_TOLD_BY: Final = {host_staying.name: "host_fit", task_in_time.name: "task_over"}


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
        self._memory = Memory()
        self._lost = 0
        self.trouble = ""

    def start(self, version: str, limits: Limits, memory: Memory) -> None:
        """A new life of the daemon, with what it remembers and the limits that it goes by."""
        self._memory = memory
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
        self._memory = plan.memory
        self.write(
            "decision",
            tick=self._tick,
            **{"from": state},
            row=None if row is None else row.id,
            reason=cause(plan),
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
        self._memory = memory
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

    def alive(self, state: str, reason: str, seen: Observation | None = None, limits: Limits | None = None) -> None:
        """A sign of life, a minute apart at most: without it silence would say nothing. With what was seen, for curves."""
        if self._clock.now_s() - self._last_line_s >= ALIVE_EVERY_S:
            told: dict[str, Any] = {}
            if seen is not None and limits is not None:
                told = {"observation": _short_see(see_of(seen, limits)), "at_s": seen.now_s}
            self.write("alive", state=state, reason=reason, **told)

    def presence(self, state: str, reason: str, news: str) -> None:
        """Sources of presence that contradict each other, or do so no more: a sign of life that says it in words."""
        self.write("alive", state=state, reason=reason, presence=news)

    def write(self, kind: str, **fields: Any) -> None:
        """One line, at once; a failure is remembered and never raised."""
        now_s, wall_s = self._clock.now_s(), self._clock.wall_s()
        stamp = {"v": FORMAT, "time": iso(wall_s), "boot_s": now_s}
        lines = [{**stamp, "kind": kind, **fields}]
        if self._lost:
            lines.insert(0, {**stamp, "kind": "gap", "lost": self._lost, "why": self.trouble, "memory": asdict(self._memory)})
        self._last_line_s = now_s
        try:
            self._open(wall_s)
            for line in lines:
                self._put(line)
            self._lost, self.trouble = 0, ""
        except OSError as error:
            self._close()
            self._lost += 1
            self.trouble = f"decisions cannot be logged in {self._folder}: {error.strerror or error}"
        if gist := _gist(kind, fields):
            self._say(gist)

    def _put(self, line: dict[str, Any]) -> None:
        assert self._fd is not None
        raw = json.dumps(line, allow_nan=False).encode() + b"\n"
        if os.write(self._fd, raw) != len(raw):
            raise OSError(errno.ENOSPC, "only a part of the line was written")

    def close(self) -> None:
        """Let go of the file."""
        self._close()

    def _open(self, wall_s: float) -> None:
        day = _day(wall_s)
        path = self._folder / f"decisions-{day}.jsonl"
        if self._fd is not None and day == self._day and _same(self._fd, path):
            return
        self._close()
        self._folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        size = os.fstat(self._fd).st_size
        if size and os.pread(self._fd, 1, size - 1) != b"\n":
            os.write(self._fd, b"\n")  # a line torn by a power cut is closed, so that ours stands alone
        if day != self._day:
            self._day = day
            self._forget_old(wall_s)

    def _forget_old(self, wall_s: float) -> None:
        """Today and the days before it, `keep_days` in all, are kept; noon is in no hour that a clock change skips."""
        local = time.localtime(wall_s)
        noon_s = time.mktime((local.tm_year, local.tm_mon, local.tm_mday, 12, 0, 0, 0, 0, -1))
        oldest = _day(noon_s - (self._keep_days - 1) * DAY_S)
        for name in os.listdir(self._folder):
            if (match := _NAME.match(name)) and match[1] < oldest:
                with contextlib.suppress(OSError):  # tomorrow again; today's line is what counts
                    os.unlink(self._folder / name)

    def _close(self) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            with contextlib.suppress(OSError):  # a dying disk says so once more; the write has said it already
                os.close(fd)


def _same(fd: int, path: Path) -> bool:
    """The open file is still the one at this path: a deleted or moved file takes lines silently."""
    try:
        here, there = os.fstat(fd), path.stat()
    except FileNotFoundError:
        return False
    return (here.st_ino, here.st_dev) == (there.st_ino, there.st_dev)


def _day(wall_s: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(wall_s))


def _short_see(see: dict[str, Any]) -> dict[str, Any]:
    """For curves three digits are enough: nothing was decided by them. A quiet day stays below 1 MB."""

    def short(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: short(v) for name, v in value.items()}
        return round(value, 3) if isinstance(value, float) else value

    return {name: short(value) for name, value in see.items()}


def cause(plan: Plan) -> str:
    """Why the row fires, in words: the verdict of the first guard that is not proven, where that is what fires it."""
    for condition in plan.row.when if plan.row is not None else ():
        if not condition.wanted:
            seen = plan.observation, plan.memory, plan.limits
            failed = next(g.name for g in condition.guards if g.judge(*seen) is not True)
            name = _TOLD_BY.get(failed, failed)
            return next(g.tell(*seen).reason for g in GUARDS if g.name == name)
    return ""


def _gist(kind: str, fields: dict[str, Any]) -> str:
    """The line in words, for people."""
    match kind:
        case "decision":
            row = fields["row"] or "no row"
            move = fields["from"] if fields["from"] == fields["to"] else f"{fields['from']} → {fields['to']}"
            return _because(f"{move}: {row}" + _about(fields["task"] or {}, "({})"), fields["reason"])
        case "effect":
            mark = "done" if fields["ok"] else "FAILED"
            return _because(f"  {fields['effect']} {mark} in {fields['took_s'] * 1000:.0f} ms", fields["detail"])
        case "config":
            return f"configuration refused: {fields['problem']}" if "problem" in fields else ""
        case "link":
            event = str(fields["event"])
            where = fields.get("url", "") if event in ("up", "down", "lost") else ""
            task = {"type": fields.get("type"), "id": fields.get("task")}
            as_new = f" as {_short(fields['new_task'])}" if "new_task" in fields else ""
            failed = " (failed)" if fields.get("error") else ""
            text = f"link: {event}" + (f" {where}" if where else "") + _about(task, "{}") + as_new + failed
            return _because(text, fields.get("reason", ""))
        case "operator":
            until = f" until {fields['until']}" if fields.get("until") and fields["until"] != "until resumed" else ""
            return _because(f"operator: {fields['word']}{until}", fields.get("trouble", ""))
        case "alive":
            return f"presence: {fields['presence']}" if "presence" in fields else ""
        case "stop":
            return _because("stopped", fields["reason"])
    return ""


def _because(text: str, reason: str) -> str:
    return f"{text}: {reason}" if reason else text


def _about(task: Mapping[str, Any], form: str) -> str:
    words = " ".join(filter(None, (task.get("type"), _short(task.get("id")))))
    return " " + form.format(words) if words else ""


def _short(task_id: str | None) -> str:
    """Enough of an id to tell tasks apart; the file has it whole."""
    return f"{task_id[:8]}…" if task_id and len(task_id) > 12 else task_id or ""


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
