"""Four dialects, one contract: found in the OpenAPI document or by probing, given by the configuration, found again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support import rae_server as s
from support.rae_rig import in_made_time, running
from support.rae_server import RaeServer, in_loop

from states.ending import succeeded
from states.observation import Link
from supervisor.sources.base import Claim


@pytest.mark.parametrize("openapi", [True, False], ids=["openapi", "probing"])
@pytest.mark.parametrize("dialect", "ABCD")
@in_loop
async def test_each_dialect_is_found_and_a_task_goes_round(tmp_path: Path, dialect: str, openapi: bool) -> None:
    """Fault 11: the shipped agent talks to no release after v2.9.0."""
    async with RaeServer(dialect, openapi=openapi).listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        assert rig.source.status.dialect == dialect
        assert await rig.poll() is None
        task_id = server.add("kind", {"a": 1}, 3)
        claim = await rig.claim()
        assert claim == Claim(task_id, "kind", {"a": 1}, 3)
        rig.source.settle(claim, succeeded({"x": 2}))
        await rig.delivered()
        assert server.task(task_id)["status"] == "COMPLETED"
        assert server.task(task_id)["result"] == {"x": 2}
        if not openapi and dialect == "A":
            assert not any(request.path == "/control/tasks/poll" for request in server.requests[:4]), "probing must not poll"


@in_loop
async def test_the_configuration_names_the_dialect(tmp_path: Path) -> None:
    async with (
        RaeServer("C", openapi=False).listening() as server,
        running(server, tmp_path, dialect="C") as rig,
    ):
        await rig.up()
        assert server.of("openapi") == server.of("nodes") == []


@pytest.mark.parametrize("fault", [s.silent, s.huge, s.half], ids=["silent", "huge", "half"])
@in_made_time
async def test_without_a_usable_openapi_document_the_dialect_is_probed_for(tmp_path: Path, fault: s.Fault) -> None:
    async with RaeServer("C", always={"openapi": fault}).listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        assert rig.source.status.dialect == "C"


@in_loop
async def test_a_dialect_that_moves_is_found_again(tmp_path: Path) -> None:
    async with RaeServer("B").listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        server.dialect = "D"
        task_id = server.add()
        assert (await rig.claim()).id == task_id
        assert rig.source.status.dialect == "D"
        assert rig.source.status.link is Link.UP


@in_loop
async def test_a_dialect_that_was_mistaken_is_found_again(tmp_path: Path) -> None:
    """One bad answer to the probe makes B look like A, whose poll B reads as a look at a task."""
    async with RaeServer("B", openapi=False).listening() as server, running(server, tmp_path) as rig:
        server.faults["task"].append(s.status(405))
        await rig.up()
        assert rig.source.status.dialect == "A"
        assert await rig.poll() is None
        assert "422" in await rig.down()
        task_id = server.add()
        assert (await rig.claim()).id == task_id
        assert rig.source.status.dialect == "B"


@in_loop
async def test_something_else_at_the_url_is_said(tmp_path: Path) -> None:
    always = {kind: s.status(404, {"detail": "Not Found"}) for kind in ("openapi", "nodes")}
    async with RaeServer(always=always).listening() as server, running(server, tmp_path) as rig:
        assert "check control.url" in await rig.down()


@pytest.mark.parametrize(("configured", "real"), [(a, b) for a in "ABCD" for b in "ABCD" if a != b])
@in_made_time
async def test_a_wrong_dialect_names_the_setting(tmp_path: Path, configured: str, real: str) -> None:
    async with RaeServer(real).listening() as server, running(server, tmp_path, dialect=configured) as rig:
        await asyncio.sleep(0.2)
        for _ in range(60):
            rig.source.ask()
            await asyncio.sleep(10)
        assert rig.names().count("up") <= 11
        status = rig.source.status
        assert f"control.dialect: {configured}" in status.error
        assert "auto" in status.error
        assert rig.names().count("poll-lost") == 0
