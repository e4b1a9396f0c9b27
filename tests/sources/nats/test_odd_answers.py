"""A fleet's server that answers oddly: nothing ends the node, only sound tasks are taken, and when it is calm, work goes on."""

from __future__ import annotations

import asyncio
import gc
import json
from pathlib import Path
from typing import Any

import pytest
from support.nats_liar import Liar
from support.nats_rig import Rig, node, until
from support.rae_server import in_loop

from states.ending import failed, handed_back, succeeded
from supervisor.sources.base import Claim

ID = "7bc3cfb7-7654-4c30-a856-0f28b426b085"


def end(rig: Rig, claim: Claim, n: int) -> None:
    """One outcome of each kind in turn."""
    assert claim.type == "echo"
    assert isinstance(claim.payload, dict)
    match n % 5:
        case 0 | 1:
            rig.source.settle(claim, succeeded({"n": n}))
        case 2:
            rig.source.settle(claim, failed("failed"))
        case 3:
            rig.source.hand_back(claim, handed_back("back", n), "resubmit")
        case _:
            rig.source.hand_back(claim, handed_back("back"), "fail")


@pytest.mark.parametrize("seed", range(1, 5))
@in_loop
async def test_no_odd_answer_ends_the_node(tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture) -> None:
    escaped: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: escaped.append(context))
    liar, claims = Liar(seed), 0
    control = {"poll_s": 0.1, "heartbeat_s": 0.2, "backoff_longest_s": 0.05}
    async with liar.listening() as url, node(url, tmp_path, types=("echo",), **control) as rig:
        while (claim := rig.source.take()) is None or claim.id != ID:
            if claim is not None:
                end(rig, claim, claims)
                claims += 1
            if liar.requests > 400 and not liar.calm:
                liar.calm = True
                liar.tasks.append(json.dumps({"id": ID, "type": "echo", "payload": {"n": 1}}).encode())
            rig.source.ask()
            await asyncio.sleep(0.005)
            assert not [task for task in rig.source._work if task.done()]
        rig.source.settle(claim, succeeded({"x": 1}))
        await rig.delivered()
        assert json.loads(liar.results[f"rae.results.{ID}"])["result"] == {"x": 1}
        await until(lambda: liar.acknowledged, "acknowledged")
    gc.collect()
    assert not escaped, [f"{c.get('message')}: {c.get('exception')!r} {c.get('task') or c.get('future')!r}" for c in escaped]
    assert caplog.text == ""
    assert claims > 3, "it says nothing without claims"
