"""Generates the files in config/ from the types: `python -m supervisor.config.generate DIR`.

They show each setting with its default, its reason and what it allows. A test compares them with this module.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, get_args, get_origin

import msgspec

from supervisor.config.load import schema
from supervisor.config.schema import NODE_FILE, RUNTIME_FILE, SHIPPED_RUNTIME, NodeSettings, Runtime, TaskType
from supervisor.config.validate import allowed, description, unwrap
from supervisor.config.yaml_reader import resolved

WIDTH: Final = 112

EXAMPLES: Final = """\
  word_count:
    argv: [/usr/bin/python3, -m, word_count]
  llm_inference:
    argv: [/opt/rae-node/tasks/infer, --model, "deepseek-coder:6.7b"]
    timeout_minutes: 30
    on_yield: kill
    max_memory_gb: 16
    env: {OMP_NUM_THREADS: "4"}
"""

_RUNTIME_END: Final = """\

# This file has exactly these fields; all others are in node.yaml. Booleans are true or false, numbers are plain decimals.
# `rae-node config check` finds errors, and settings with which work can never begin. A running node reads changes at once.
"""
_NODE_HEAD: Final = """\
# The settings of the node beside runtime.yaml, each with its default: every line, and this whole file, may be left out.
# `rae-node config check` finds errors. A running node reads changes at once.
"""


def runtime_yaml() -> str:
    """The shipped runtime.yaml. Its lines are those of the source document: comments stand behind the values."""
    lines = []
    for section in msgspec.structs.fields(Runtime):
        lines.append(f"{section.name}:")
        for f in msgspec.structs.fields(section.type):
            setting = f"  {f.name}: {_scalar(getattr(getattr(SHIPPED_RUNTIME, section.name), f.name))}"
            lines.append(f"{setting:<34}# {_explained(f.type)}")
        lines.append("")
    return "\n".join(lines[:-1]) + "\n" + _RUNTIME_END


def node_yaml() -> str:
    """The shipped node.yaml."""
    lines = [_NODE_HEAD.rstrip(), ""]
    for f in msgspec.structs.fields(NodeSettings):
        lines += [*(_tasks(f) if f.name == "tasks" else _section(f, "")), ""]
    return "\n".join(lines[:-1]) + "\n"


def files() -> dict[str, str]:
    """Name and content of the shipped files."""
    schemas = {
        f"{which}.schema.json": json.dumps(schema(which), indent=2, ensure_ascii=False) + "\n"
        for which in ("runtime", "node")
    }
    return {RUNTIME_FILE: runtime_yaml(), NODE_FILE: node_yaml(), **schemas}


def _section(f: msgspec.structs.FieldInfo, indent: str) -> list[str]:
    lines = [*_comment(f.type.__doc__, f"{indent}# "), f"{indent}{f.name}:"]
    for inner in msgspec.structs.fields(f.type):
        if isinstance(inner.type, type) and issubclass(inner.type, msgspec.Struct):
            lines += _section(inner, indent + "  ")
        else:
            lines += _comment(_explained(inner.type), f"{indent}  # ")
            lines.append(f"{indent}  {inner.name}: {_value(inner)}")
    return lines


def _tasks(f: msgspec.structs.FieldInfo) -> list[str]:
    """The table of task types is empty, so comments describe its fields, and examples show them."""
    lines = [*_comment(description(f.type), "# "), "# Each type has:"]
    for name, inner in _flat(TaskType):
        lines += _comment(f"{name}: {_explained(inner.type)} Default: {_value(inner)}", "#   ", "#     ")
    lines += ["# Two examples; to use them, remove the {} and the #:", f"{f.name}: {{}}"]
    return lines + ["#" + line for line in EXAMPLES.splitlines()]


def _flat(kind: type[msgspec.Struct], before: str = "") -> Iterator[tuple[str, msgspec.structs.FieldInfo]]:
    """All fields, by dotted names."""
    for inner in msgspec.structs.fields(kind):
        if isinstance(inner.type, type) and issubclass(inner.type, msgspec.Struct):
            yield from _flat(inner.type, f"{before}{inner.name}.")
        else:
            yield f"{before}{inner.name}", inner


def _comment(text: str, first: str, later: str = "") -> list[str]:
    # names with dashes, such as /run/rae-node, stay whole for copying
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=later or first, break_on_hyphens=False)


def _explained(annotation: Any) -> str:
    return description(annotation) + ("" if _obvious(annotation) else f" Allowed: {allowed(annotation)}.")


def _obvious(annotation: Any) -> bool:
    """Whether a value needs no explanation of its form: true or false, any text, a list of these."""
    kind, metas, _ = unwrap(annotation)
    if get_origin(kind) is list:
        return _obvious(get_args(kind)[0])
    return kind is bool or (kind is str and not any(meta.pattern for meta in metas))


def _value(f: msgspec.structs.FieldInfo) -> str:
    value = f.default_factory() if f.default is msgspec.NODEFAULT else f.default
    if isinstance(value, list):
        return "[" + ", ".join(map(_scalar, value)) + "]"
    return "{}" if value == {} else _scalar(value)


def _scalar(value: Any) -> str:
    """A scalar as YAML, in quotes only where needed."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:g}"
    plain = value.replace("/", "").replace("-", "").replace("_", "").replace(":", "").isalnum() or "://" in value
    return value if plain and resolved(value) == "str" else json.dumps(value)


if __name__ == "__main__":
    for name, text in files().items():
        Path(sys.argv[1] if len(sys.argv) > 1 else "config", name).write_text(text)
