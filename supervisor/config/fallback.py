"""What can still be known of a broken configuration: where the node's folders are, and with what it would watch.

A broken file means DISABLED with its lines as the reason, not an exit (house); the daemon then still needs a place for
its socket and its journal, and commands must find it there. Nothing else is taken from a broken file, and automation
is off.
"""

from __future__ import annotations

import os
from pathlib import Path

from states.limits import Limits
from supervisor.config.cross_field import resolve
from supervisor.config.load import Config, ConfigErrors, Folders, load
from supervisor.config.schema import NODE_FILE, Automation, Execution, NodeSettings, Paths, Runtime, Safety
from supervisor.config.validate import Validator, validate
from supervisor.config.yaml_reader import Mapping, Scalar, UnreadableFile, YamlNode, parse, read

# The shipped values (interface §2), switched off.
OFF = Runtime(
    Automation(enabled=False, auto_start=False),
    Safety(True, 10, 80, 90, 14, 15),
    Execution(45, 30, 180, True),
)


def load_or_disabled(folder: Path) -> Config:
    """The configuration if it is sound, else one that is off, with what node.yaml soundly says."""
    try:
        return load(folder)
    except ConfigErrors:
        pass
    folder = Path(os.path.abspath(folder))
    try:
        text = read(folder, NODE_FILE) or ""
    except UnreadableFile:
        text = ""
    node = validate(NodeSettings, text, NODE_FILE, [], []) or NodeSettings(paths=_paths(text))
    paths = Folders(**{name: resolve(folder, getattr(node.paths, name)) for name in node.paths.__struct_fields__})
    return Config(folder, OFF, node, Limits(gpu_required=node.gpu.presence == "required"), paths, node.node.id or "node")


def _paths(text: str) -> Paths:
    """node.yaml's `paths`, if that section alone is sound."""
    root, _ = parse(text, NODE_FILE)
    for key, value in root.pairs if isinstance(root, Mapping) else ():
        if isinstance(key, Scalar) and key.text == "paths":
            found = Validator(NODE_FILE, []).section(Paths, value, "paths", YamlNode(1, 1))
            if isinstance(found, Paths):
                return found
    return Paths()
