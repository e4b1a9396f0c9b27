"""The link in a storm of faults; the bench `tests/bench/faults.py` has ten thousand requests of it."""

from __future__ import annotations

import pytest
from support.depth import DEEP, examples
from support.storm import SHARE, storm

REQUESTS = examples(500, 150)


@pytest.mark.deep
@pytest.mark.parametrize("seed", [11, 12] if DEEP else [11])
def test_every_task_is_settled_once_or_reported_in_a_storm_of_faults(seed: int) -> None:
    run = storm(REQUESTS, seed)
    assert run.faults() == []
    assert run.proxy.requests >= REQUESTS
    assert sum(run.proxy.faults.values()) > REQUESTS * SHARE / 2
    assert len(run.proxy.faults) > examples(25, 15), "many kinds of fault came about"
    assert len(run.proxy.outcomes) > examples(5, 2)
