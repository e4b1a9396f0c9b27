"""The link in a storm of faults; the bench `tests/bench/faults.py` has ten thousand requests of it."""

from __future__ import annotations

import pytest
from support.storm import SHARE, storm


@pytest.mark.parametrize("seed", [11, 12])
def test_every_task_is_settled_once_or_reported_in_a_storm_of_faults(seed: int) -> None:
    run = storm(500, seed)
    assert run.faults() == []
    assert run.proxy.requests >= 500
    assert sum(run.proxy.faults.values()) > 500 * SHARE / 2
    assert len(run.proxy.faults) > 25, "nearly every kind of fault came about"
    assert len(run.proxy.outcomes) > 5
