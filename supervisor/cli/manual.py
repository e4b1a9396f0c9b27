"""Generates the manual page rae-node(1) from the commands: `python -m supervisor.cli.manual > rae-node.1`."""

from __future__ import annotations

import re
from typing import Any

import typer

from supervisor import VERSION


def page() -> str:
    """The page as roff."""
    from supervisor.cli.main import app

    root: Any = typer.main.get_command(app)
    what: str = root.help
    lines = [
        f'.TH RAE-NODE 1 "" "rae-node {VERSION}" "User Commands"',
        ".SH NAME",
        "rae\\-node \\- " + _roff(what[0].lower() + what[1:].split(",")[0]),
        ".SH SYNOPSIS",
        ".B rae\\-node",
        "[\\fB\\-\\-config\\fR \\fIDIR\\fR] \\fICOMMAND\\fR [\\fIARGUMENTS\\fR]",
        ".SH DESCRIPTION",
        _roff(what),
        ".SH COMMANDS",
    ]
    context = typer.Context(root, info_name="rae-node")
    for name, command, inner in _commands(root, context):
        usage = " ".join(piece for piece in command.collect_usage_pieces(inner) if piece != "[OPTIONS]")
        lines += [".SS " + _roff(f"{name} {usage}".strip()), *_paragraphs(command.help or "")]
        for parameter in command.params:
            record = parameter.get_help_record(inner)
            if record and record[0] != "-h, --help":
                lines += [".TP", f".B {_roff(record[0])}", _roff(record[1])]
    lines += [".SH EXIT STATUS", _roff(root.epilog.removeprefix("Exit codes: ")), ".SH FILES"]
    for path, what in (
        ("/opt/rae-node/agent/runtime.yaml", "The safety limits."),
        ("/opt/rae-node/agent/node.yaml", "Everything else, each setting with its reason."),
        ("/opt/rae-node/logs/", "What the node decided, and why; one file a day."),
    ):
        lines += [".TP", f".I {_roff(path)}", _roff(what)]
    return "\n".join(lines) + "\n"


def _commands(group: Any, context: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Every command by its whole name, also those in groups."""
    found = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        inner = typer.Context(command, info_name=name, parent=context)
        is_group = hasattr(command, "list_commands")
        if not is_group or command.invoke_without_command:
            found.append((prefix + name, command, inner))
        if is_group:
            found += _commands(command, inner, f"{prefix}{name} ")
    return found


def _paragraphs(text: str) -> list[str]:
    blocks = [" ".join(block.split()) for block in re.split(r"\n\s*\n", text.strip())]
    return [line for block in blocks for line in (_roff(block), ".PP")][:-1]


def _roff(text: str) -> str:
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("\n", " ")
    return "\\&" + escaped if escaped[:1] in ".'" else escaped


if __name__ == "__main__":
    print(page(), end="")
