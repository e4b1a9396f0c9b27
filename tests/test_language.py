"""The language of the house: one standard name for one thing, in plain English (CONTRIBUTING.md, "Words")."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLACES = ("states", "supervisor", "deploy", "config", "docs", "README.md", "CONTRIBUTING.md", "Makefile")
FILES = [
    ROOT / name
    for name in subprocess.check_output(["git", "ls-files", *PLACES], cwd=ROOT, text=True).split()
    if not name.endswith((".json", ".js", ".css", ".svg", ".png", ".typed")) and "uplot" not in name
]

# What the words were used for, and the word to use. "will" and "word" are banned as names only; as English they are plain.
INSTEAD = {
    "mind": "lifecycle, decision", "minder": "monitor", "will": "automation", "word": "text, message, command",
    "words": "text, message", "teller": "reporter", "tell": "report, explain", "told": "report, reading", "slot": "attempt",
    "keeper": "shim", "mend": "fix, repair", "gist": "summary", "senses": "sensors", "salvage": "fallback",
    "hindrance": "blocker", "condemn": "fail", "spoil": "give up", "reach": "feasibility",
}  # fmt: skip
# A hold is one thing: the row on-hold, its setting hold_sec and what counts its seconds.
HOLD = re.compile(r"(on|may)_hold|hold_(sec|s|of|over|from_s|left_s)|holds_s|holds|HOLD")
PROSE = re.compile(
    r"\b(minder|teller|slots?(?!=)|keepers?|mend(?:s|ed|ing)?|gist|senses|salvage[ds]?|hindrances?"
    r"|com(?:es?|ing) by|look(?:s|ed|ing)? after|whoever|of its own accord|nobody minds|the mind)\b"
    r"|\((?:R|T)[0-9]{1,2}[,)]",
    re.IGNORECASE,
)
# One of the demo's tasks counts words.
ALLOWED = {"supervisor/tools/demo/tasks.py"}
# The requirements' own numbers stand in their map alone.
NUMBERS = {ROOT / "docs/requirements.md"}


def parts(name: str) -> set[str]:
    return {part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, node.lineno
            case ast.arg(arg=name) | ast.Name(id=name) | ast.Attribute(attr=name):
                yield name, node.lineno


def is_python(path: Path) -> bool:
    return path.suffix == ".py" or path.read_text(errors="replace").startswith(("#!/usr/bin/python3", "#!/usr/bin/env python3"))


MODULES = [path for path in FILES if is_python(path) and str(path.relative_to(ROOT)) not in ALLOWED]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_are_the_fields(path: Path) -> None:
    for name, line in names(ast.parse(path.read_text())):
        for part in parts(name):
            assert part not in INSTEAD, f"{path}:{line}: {name}: say {INSTEAD[part]}"
            assert part != "hold" or HOLD.fullmatch(name.lstrip("_")), f"{path}:{line}: {name}: a hold is the row on-hold only"


def test_prose_is_plain() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in FILES
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if PROSE.search(line) and not (path in NUMBERS and "(R" in line)
    ]
    assert not found, "\n".join(found)
