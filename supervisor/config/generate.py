"""The shipped files of config/, made from the types: `python -m supervisor.config.generate DIR` writes them anew.

Every setting stands in them with its default, its reason and what it allows; a test compares them with this file.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from supervisor.config.load import schema
from supervisor.config.schema import NODE_FILE, RUNTIME_FILE, NodeSettings, Runtime, TaskType
from supervisor.config.validate import allowed, description
from supervisor.config.yaml_reader import resolved

WIDTH: Final = 112

# The source document's values (R7). The lines of this file are those of that document: comments stand behind them.
SEED: Final[dict[str, dict[str, bool | int]]] = {
    "automation": {"enabled": True, "auto_start": True},
    "safety": {
        "detect_active_user": True,
        "idle_required_minutes": 10,
        "max_cpu_percent": 80,
        "max_gpu_percent": 90,
        "max_vram_gb": 14,
        "cooldown_minutes": 15,
    },
    "execution": {
        "poll_interval_sec": 45,
        "heartbeat_interval_sec": 30,
        "task_timeout_minutes": 180,
        "retry_on_disconnect": True,
    },
}

EXAMPLES: Final = """\
  word_count:
    argv: [/usr/bin/python3, -m, word_count]
  llm_inference:
    executor: command
    argv: [/opt/rae-node/tasks/infer, --model, "deepseek-coder:6.7b"]
    allow_any_command: false
    sandbox: none
    sandbox_read: []
    sandbox_network: false
    timeout_minutes: 30
    on_yield: kill
    hold_sec: 60
    checkpoint: none
    on_preempt: fail
    grace_sec: 0
    notice: {signal: none}
    max_result_mb: 1
    max_memory_gb: 16
    max_vram_gb: 12
    max_disk_gb: 2
    max_processes: 200
    env: {OLLAMA_HOST: "127.0.0.1:11434", OMP_NUM_THREADS: "4"}
    ollama_url: "http://127.0.0.1:11434"
"""

_RUNTIME_END: Final = """\

# Exactly these fields, no more and no fewer; everything else is in node.yaml. Booleans are true or false, numbers plain
# decimals. `rae-node config check` says what is wrong and whether work could ever begin; a running node reads a
# changed file by itself.
"""
_NODE_HEAD: Final = """\
# What the node needs beside runtime.yaml. Every setting stands here with its default, so each line may be left out, and
# so may this whole file. `rae-node config check` says what is wrong; a running node reads a changed file by itself.
"""


def runtime_yaml() -> str:
    """The shipped runtime.yaml: the seed's fields, values and lines."""
    lines = []
    for section in msgspec.structs.fields(Runtime):
        lines.append(f"{section.name}:")
        for f in msgspec.structs.fields(section.type):
            setting = f"  {f.name}: {_scalar(SEED[section.name][f.name])}"
            lines.append(f"{setting:<34}# {_explained(f.type)}")
        lines.append("")
    return "\n".join(lines[:-1]) + "\n" + _RUNTIME_END


def node_yaml() -> str:
    """The shipped node.yaml: every setting with its default, its reason, and what it allows."""
    lines = [_NODE_HEAD.rstrip(), ""]
    for f in msgspec.structs.fields(NodeSettings):
        if f.name == "tasks":
            lines += _tasks(f)
        else:
            lines += _section(f, "")
        lines.append("")
    return "\n".join(lines[:-1]) + "\n"


def write(folder: Path) -> None:
    """Write all four files."""
    for name, text in files().items():
        (folder / name).write_text(text)


def files() -> dict[str, str]:
    """Name and content of the shipped files."""
    schemas = {
        f"{which}.schema.json": json.dumps(schema(which), indent=2, ensure_ascii=False) + "\n"
        for which in ("runtime", "node")
    }
    return {RUNTIME_FILE: runtime_yaml(), NODE_FILE: node_yaml(), **schemas}


def _section(f: msgspec.structs.FieldInfo, indent: str) -> list[str]:
    lines = [*_comment(f.type.__doc__.partition("\n\n")[0], indent), f"{indent}{f.name}:"]
    for inner in msgspec.structs.fields(f.type):
        if isinstance(inner.type, type) and issubclass(inner.type, msgspec.Struct):
            lines += _section(inner, indent + "  ")
        else:
            lines += _comment(_explained(inner.type), indent + "  ")
            lines.append(f"{indent}  {inner.name}: {_value(inner)}")
    return lines


def _tasks(f: msgspec.structs.FieldInfo) -> list[str]:
    """The table of task types is empty; what may stand in it is told, and shown by examples."""
    lines = [*_comment(description(f.type), ""), "# Each type has:"]
    for name, inner in _flat(TaskType):
        text = f"{name}: {_explained(inner.type)} Default: {_value(inner)}"
        lines += _wrapped(text, "#   ", "#     ")
    lines += ["# Two examples; remove the {} and the # to use them:", f"{f.name}: {{}}"]
    return lines + ["#" + line for line in EXAMPLES.splitlines()]


def _flat(kind: type[msgspec.Struct], before: str = "") -> Iterator[tuple[str, msgspec.structs.FieldInfo]]:
    """The fields with their names, those of a section within it as `section.field`."""
    for inner in msgspec.structs.fields(kind):
        if isinstance(inner.type, type) and issubclass(inner.type, msgspec.Struct):
            yield from _flat(inner.type, f"{before}{inner.name}.")
        else:
            yield f"{before}{inner.name}", inner


def _comment(text: str, indent: str) -> list[str]:
    return _wrapped(" ".join(text.split()), f"{indent}# ", f"{indent}# ")


def _wrapped(text: str, first: str, later: str) -> list[str]:
    """Names with dashes, as /run/rae-node, stay whole: they are there to be copied."""
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=later, break_on_hyphens=False)


def _explained(annotation: Any) -> str:
    return f"{description(annotation)} Allowed: {allowed(annotation)}."


def _value(f: msgspec.structs.FieldInfo) -> str:
    value = f.default_factory() if f.default is msgspec.NODEFAULT else f.default
    if isinstance(value, list):
        return "[" + ", ".join(map(_scalar, value)) + "]"
    return "{}" if value == {} else _scalar(value)


def _scalar(value: Any) -> str:
    """A scalar as YAML, in quotes only where it needs them."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:g}"
    plain = value.replace("/", "").replace("-", "").replace("_", "").replace(":", "").isalnum() or "://" in value
    return value if plain and resolved(value) == "str" else json.dumps(value)


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "config"))
