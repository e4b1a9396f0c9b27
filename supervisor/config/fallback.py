"""What is still usable of a broken configuration: the folders, and what the sensors watch.

With a broken file the daemon is DISABLED and shows the errors. It still needs a place for its socket and its journal, and
commands must find the socket there.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from states.limits import Limits
from supervisor.config.load import Config, ConfigErrors, folders, load
from supervisor.config.schema import NODE_FILE, SHIPPED_RUNTIME, Automation, NodeSettings, Paths
from supervisor.config.validate import Validator, validate
from supervisor.config.yaml_reader import Mapping, Scalar, UnreadableFile, YamlNode, parse, read


def load_or_disabled(folder: Path) -> Config:
    """The configuration; a broken one with automation off, and with what is sound in node.yaml."""
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
    off = msgspec.structs.replace(SHIPPED_RUNTIME, automation=Automation(enabled=False, auto_start=False))
    limits = Limits(gpu_required=node.gpu.presence == "required")
    return Config(folder, off, node, limits, folders(folder, node), node.node.id or "node")


def _paths(text: str) -> Paths:
    """node.yaml's `paths`, if that section alone is sound."""
    root, _ = parse(text, NODE_FILE)
    for key, value in root.pairs if isinstance(root, Mapping) else ():
        if isinstance(key, Scalar) and key.text == "paths":
            found = Validator(NODE_FILE, []).section(Paths, value, "paths", YamlNode(1, 1))
            if isinstance(found, Paths):
                return found
    return Paths()
