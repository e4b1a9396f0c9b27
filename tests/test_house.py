"""The house: its rooms, and no import cycle between or inside them. What may import what is a contract in setup.cfg."""

from __future__ import annotations

import graphlib
import subprocess
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
ROOMS = {"cli", "config", "daemon", "journal", "linux", "sensors", "sources", "tasks", "tools"}


def test_supervisor_holds_rooms_and_nothing_else() -> None:
    listed = subprocess.check_output(["git", "ls-files", "supervisor"], cwd=ROOT, text=True).split()
    assert {Path(file).parts[1] for file in listed} == {"__init__.py", "py.typed", *ROOMS}


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Imports for type checkers count as well: who needs another's types knows of it."""
    graph = grimp.build_graph("supervisor", "states")
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError with the modules of a cycle


def test_tests_mirror_the_rooms() -> None:
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == {"bench", "deploy", "desktops", "e2e", "replays", "states", "support", *ROOMS}
