"""The shipped files and the schemas are what the types say (R7), and their examples work."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from states.limits import Limits
from supervisor.config.feasibility import never_ready
from supervisor.config.generate import EXAMPLES, files
from supervisor.config.load import load, schema
from supervisor.config.schema import SHIPPED_RUNTIME, NodeSettings, TaskType
from supervisor.config.validate import description

CONFIG = Path(__file__).parents[2] / "config"


@pytest.mark.parametrize("name", sorted(files()))
def test_a_shipped_file_is_the_generated_one(name: str) -> None:
    """`make schemas` writes them."""
    assert (CONFIG / name).read_text() == files()[name]


def test_the_shipped_configuration_is_sound_and_says_the_defaults() -> None:
    """Both files load, the limits are the defaults of Limits, and READY can be reached."""
    config = load(CONFIG)
    assert config.node == NodeSettings()
    assert config.limits == Limits()
    assert never_ready(config.runtime, config.node) == []


def test_the_shipped_runtime_file_has_the_seeds_lines() -> None:
    """The seed's fields, values, order and line numbers."""
    lines = (CONFIG / "runtime.yaml").read_text().splitlines()
    assert yaml.safe_load("\n".join(lines)) == msgspec.to_builtins(SHIPPED_RUNTIME)
    assert lines[8].startswith("  max_gpu_percent: 90 ")
    assert [line for line in lines if line and not line.startswith((" ", "#"))] == ["automation:", "safety:", "execution:"]


def _keys(cls: type[Any]) -> dict[str, Any]:
    """The names that a section has to have, nested."""
    return {
        f.name: _keys(f.type) if isinstance(f.type, type) and issubclass(f.type, msgspec.Struct) else None
        for f in msgspec.structs.fields(cls)
    }


def _shape(document: dict[str, Any], keys: dict[str, Any]) -> dict[str, Any]:
    return {name: _shape(value, keys[name]) if keys.get(name) else None for name, value in document.items()}


def test_every_setting_stands_in_the_shipped_node_file() -> None:
    """None is missing, none is too much."""
    keys = _keys(NodeSettings)
    assert _shape(yaml.safe_load((CONFIG / "node.yaml").read_text()), keys) == keys


def test_every_setting_has_a_reason() -> None:
    """A field without a description would be unexplained in the file and in the schema."""

    def missing(cls: type[Any], path: str) -> list[str]:
        out = []
        for f in msgspec.structs.fields(cls):
            if isinstance(f.type, type) and issubclass(f.type, msgspec.Struct):
                out += missing(f.type, f"{path}{f.name}.")
            elif not description(f.type):
                out.append(path + f.name)
        return out

    assert missing(NodeSettings, "") + missing(TaskType, "tasks.") == []


def test_the_examples_work_once_uncommented(tmp_path: Path) -> None:
    """What the comment says to do gives a sound file."""
    text = (CONFIG / "node.yaml").read_text()
    commented = "".join(f"#{line}\n" for line in EXAMPLES.splitlines())
    assert f"tasks: {{}}\n{commented}" in text
    (tmp_path / "node.yaml").write_text(text.replace(f"tasks: {{}}\n{commented}", f"tasks:\n{EXAMPLES}"))
    (tmp_path / "runtime.yaml").write_text((CONFIG / "runtime.yaml").read_text())
    tasks = load(tmp_path).node.tasks
    assert list(tasks) == ["word_count", "llm_inference"]
    for name in TaskType.__struct_fields__:
        assert re.search(rf"^#   {name}[.:]", text, re.MULTILINE), "a comment describes every field"


def test_the_schemas_say_what_the_errors_say() -> None:
    """Bounds, descriptions and required fields; unknown fields are refused."""
    runtime = schema("runtime")
    gpu = runtime["$defs"]["Safety"]["properties"]["max_gpu_percent"]
    assert (gpu["exclusiveMinimum"], gpu["maximum"]) == (0, 100)
    assert gpu["description"]
    for definition in runtime["$defs"].values():
        assert definition["required"] == list(definition["properties"])
        assert definition["additionalProperties"] is False
    node = json.loads(json.dumps(schema("node")))
    assert {"type": "null"} in node["$defs"]["NodeSettings"]["properties"]["tasks"]["anyOf"]
