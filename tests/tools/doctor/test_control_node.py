"""The doctor asks the control node as the daemon would, and changes nothing there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import rae_server as s
from support.rae_server import RaeServer, in_loop
from support.running import NodeFolder

from supervisor.config.load import load
from supervisor.tools.doctor.control_node import control_node, task_types


@pytest.mark.parametrize("dialect", "ABCD")
@in_loop
async def test_a_control_node_that_answers(tmp_path: Path, dialect: str) -> None:
    async with RaeServer(dialect).listening() as server:
        check = await control_node(load(NodeFolder.make(tmp_path, server.url).path))
        assert (check.ok, f"dialect {dialect}" in check.reason) == (True, True)
        assert {request.method for request in server.requests} == {"GET"}
        assert server.of("poll") == []


@pytest.mark.parametrize(
    ("server", "control", "said"),
    [
        (RaeServer("B", key="right"), {}, "401"),
        (RaeServer("B"), {"dialect": "D"}, "control.dialect is D"),
        (RaeServer(always={"task": s.status(500)}), {}, "500"),
        (None, {"url": "http://127.0.0.1:9"}, "cannot be reached: connection refused"),
    ],
    ids=["a key", "another dialect", "a fault", "nobody"],
)
@in_loop
async def test_what_is_wrong_is_named(tmp_path: Path, server: RaeServer | None, control: dict[str, Any], said: str) -> None:
    if server is None:
        check = await control_node(load(NodeFolder.make(tmp_path, node={"control": control}).path))
    else:
        async with server.listening():
            check = await control_node(load(NodeFolder.make(tmp_path, server.url, node={"control": control}).path))
    assert check.ok is False
    assert said in check.failure


def test_a_node_without_a_task_type_is_not_ready(tmp_path: Path) -> None:
    assert task_types(load(NodeFolder.make(tmp_path).path)).ok is True
