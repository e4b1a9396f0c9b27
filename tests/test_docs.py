"""README and docs/ stay true: requirements, links, commands, make targets, settings, and the README's length."""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from supervisor.cli.main import app
from supervisor.config.load import load
from supervisor.config.removed import REMOVED

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "deploy/fleet/README.md", "tests/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
BY_PAGE = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def commands(group: Any, prefix: str = "") -> dict[str, set[str]]:
    """Each command of `rae-node` by its whole name, with its options; "" holds those of `rae-node` itself."""
    context = typer.Context(group)
    found = {prefix.strip(): {option for parameter in group.get_params(context) for option in parameter.opts}}
    for name, command in getattr(group, "commands", {}).items():
        found |= commands(command, f"{prefix}{name} ")
    return found


COMMANDS = commands(typer.main.get_command(app))


def code(page: Path) -> list[str]:
    """All that a page shows as code: spans, and the lines of blocks."""
    blocks, text = [], page.read_text()
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        blocks += block.splitlines()
    return blocks + re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


def test_the_readme_is_short_and_begins_with_the_two_commands() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 200
    for command in ("make demo", "make test"):
        assert any(line.startswith(command) for line in lines[:60])


@BY_PAGE
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@BY_PAGE
def test_files_that_a_page_names_exist(page: Path) -> None:
    for name in code(page):
        if re.fullmatch(r"(config|deploy|diagrams|docs|states|supervisor|tests)/[\w./-]*", name):
            assert (ROOT / name).exists() or (page.parent / name).exists(), f"there is no {name}"


def definitions(node: ast.AST, before: str = "") -> set[str]:
    """Functions and classes of a file by their dotted names."""
    found: set[str] = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found |= {before + child.name} | definitions(child, f"{before}{child.name}.")
    return found


def test_the_hops_of_the_architecture_exist() -> None:
    """`file:Class.method`, below supervisor/ or the top level."""
    hops = re.findall(r"`([\w/]+\.py):([\w.]+)`", (ROOT / "docs/architecture.md").read_text())
    assert len(hops) > 15
    for file, name in hops:
        paths = [folder / file for folder in (ROOT / "supervisor", ROOT) if (folder / file).is_file()]
        paths = paths or list((ROOT / "supervisor").rglob(file))
        assert paths, f"there is no {file}"
        assert name in definitions(ast.parse(paths[0].read_text())), f"{file} has no {name}"


@BY_PAGE
def test_commands_and_their_options_exist(page: Path) -> None:
    for line in code(page):
        for name, group, rest in re.findall(r"(?<![\w./-])rae-node ([a-z][a-z-]*)(?: ([a-z]+))?([^|&`#;)]*)", line):
            whole = f"{name} {group}" if f"{name} {group}" in COMMANDS else name
            assert whole in COMMANDS, f"{line!r} names a command that does not exist"
            for option in re.findall(r"(?<= )(--[a-z-]+)", f" {group} {rest}"):
                assert option in COMMANDS[whole] | COMMANDS[""], f"{line!r}: {whole} has no {option}"
        for target in re.findall(r"(?<![\w-])make ([a-z]+)", line):
            assert target in TARGETS, f"{line!r} names a make target that does not exist"


@BY_PAGE
def test_configuration_that_a_page_shows_is_sound(page: Path, tmp_path: Path) -> None:
    """A block with runtime.yaml's sections has the shipped values; any other is a node.yaml."""
    for block in re.findall(r"^ *```yaml\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL):
        document, shipped = yaml.safe_load(block), (ROOT / "config/runtime.yaml").read_text()
        if "automation" in document:
            assert document == yaml.safe_load(shipped)
            continue
        (tmp_path / "runtime.yaml").write_text(shipped)
        (tmp_path / "node.yaml").write_text(textwrap.dedent(block))
        load(tmp_path)


@BY_PAGE
def test_settings_exist(page: Path) -> None:
    """What was removed may stand in the changelog."""
    known = yaml.safe_load((ROOT / "config/runtime.yaml").read_text()) | yaml.safe_load((ROOT / "config/node.yaml").read_text())
    for name in code(page):
        match = re.fullmatch(r"([a-z]+)\.([a-z_]+)(?:[.:].*)?", name)
        if match and match[1] in known and match[2] not in ("md", "py", "yaml") and page.name != "CHANGELOG.md":
            assert match[2] in known[match[1]], f"{name} is not a setting"


def test_the_changelog_names_every_removed_setting() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert [name for name in REMOVED if f"`{name}`" not in text] == []


def test_every_command_is_in_the_overview() -> None:
    shown = set(re.findall(r"^\| (.*?) \|", (ROOT / "docs/commands.md").read_text(), re.MULTILINE))
    named = {word for cell in shown for word in re.findall(r"`([a-z-]+(?: [a-z][a-z-]*)?)", cell)}
    assert {name for name in COMMANDS if name not in ("", "config")} <= named | {"config schema"}


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index


def requirements() -> dict[str, list[str]]:
    rows = re.findall(r"^\| (R\d+) \|.*\| ([^|]*) \|$", (ROOT / "docs/requirements.md").read_text(), re.MULTILINE)
    return {number: re.findall(r"`([^`]+)`", tests) for number, tests in rows}


def test_the_map_of_requirements_is_whole() -> None:
    assert list(requirements()) == [f"R{number}" for number in range(1, 25)]


@pytest.mark.parametrize(("number", "tests"), requirements().items())
def test_each_requirement_has_tests_that_exist(number: str, tests: list[str]) -> None:
    assert tests, f"{number} has no test"
    for test in tests:
        file, _, name = test.partition("::")
        path = ROOT / "tests" / file
        assert path.is_file(), f"{number}: there is no {path}"
        assert name in definitions(ast.parse(path.read_text())), f"{number}: {file} has no {name}"
