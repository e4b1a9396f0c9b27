"""How the replay of one file came out, as data and in lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from states.effects import Effect
from states.lifecycle import Plan


@dataclass(frozen=True, slots=True)
class Difference:
    """The first thing that came out otherwise: its place, what it is, and, in lines, what the node saw."""

    file: str
    line: int
    where: str
    what: str
    expected: str
    got: str
    seen: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line: `file:line: step 3 at 75s: row: expected user-returned, got gpu-taken`."""
        return f"{self.file}:{self.line}: {self.where}: {self.what}: expected {self.expected}, got {self.got}"


@dataclass(frozen=True, slots=True)
class Report:
    """One file: its first difference, or why it could not be read (`errors`, one line each), or neither: as expected."""

    path: str
    title: str = ""
    covers: tuple[str, ...] = ()
    steps: int = 0
    difference: Difference | None = None
    errors: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self.difference is None and not self.errors

    def answer(self) -> list[str]:
        """The lines for stdout; none for a file that could not be read."""
        if self.errors:
            return []
        about = f"{self.path}: {self.title}" if self.title else self.path
        if self.difference is None:
            return [f"ok    {about} ({self.steps} {'step' if self.steps == 1 else 'steps'})"]
        return [f"FAIL  {about}", f"{self.difference}", *(f"      {line}" for line in self.difference.seen)]


def effect_name(effect: Effect, ok: bool) -> str:
    """An effect as scripts write it: a failed one with `!`."""
    return str(effect) if ok else f"{effect}!"


def guard_lines(plan: Plan) -> Iterator[str]:
    """One line for each guard; nothing is made before they are asked for."""
    marks = {True: "yes", False: "no", None: "unknown"}
    for verdict in plan.guards():
        yield f"{verdict.name:<13}  {marks[verdict.ok]:<7}  {verdict.reason}"
