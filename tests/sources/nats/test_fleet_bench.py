"""The fleet bench, small: it measures, and what must be zero is zero."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path
from typing import Any

import pytest
from support.nats_rig import needs_server

pytestmark = [needs_server, pytest.mark.nightly]


def bench() -> Any:
    place = Path(__file__).parents[2] / "bench" / "fleet.py"
    spec = importlib.util.spec_from_file_location("bench_fleet", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["bench_fleet"] = module  # its dataclasses look there for their own names
    spec.loader.exec_module(module)
    return module


def test_a_small_fleet_loses_nothing(tmp_path: Path) -> None:
    module = bench()
    run = asyncio.run(
        asyncio.wait_for(
            module.measure(6, 30, task_s=0.5, processes=2, servers=3, folder=tmp_path, quiet=True), 120
        )
    )
    print(module.table([run]))
    assert (run.results, run.lost, run.left_in_queue, run.twice_unknown) == (30, 0, 0, 0)
    assert set(run.log.delivered.values()) <= {1}
    assert module.percentiles([1.0, 2.0, 3.0]) == ["3", "2.000", "3.000"]
