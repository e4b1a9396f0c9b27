"""Words of the fleet's operator: what is none is refused, whatever it is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.sources.desired import AHEAD_S, BadOrder, Order, Want, read_order

NOW = 1.8e9
GOOD: dict[str, Any] = {"v": 1, "want": "pause", "until": NOW + 60, "after_task": False, "by": "ops@control", "at": NOW}


@pytest.mark.parametrize("order", [
    Order(Want.PAUSE, NOW, "ops@control", NOW + 60, True), Order(Want.OFF, NOW, "ops@control"), Order(Want.RUN, NOW, "a@b"),
])  # fmt: skip
def test_an_order_is_read_as_it_was_written(order: Order) -> None:
    assert read_order(order.encode(), NOW) == order


@pytest.mark.parametrize("wrong", [
    {"v": 2}, {"want": "resume"}, {"want": []}, {"until": "18:00"}, {"until": True}, {"until": -1}, {"until": 1e300},
    {"after_task": 1}, {"by": ""}, {"by": 7}, {"by": "\x1b[0m"}, {"at": None}, {"at": NOW + AHEAD_S + 1}, {"more": 1},
    {"want": "run"}, {"want": "disable-until-told"}, {"by": "x" * 5000},
])  # fmt: skip
def test_what_is_no_order_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadOrder):
        read_order(json.dumps({**GOOD, **wrong}).encode(), NOW)


@given(st.binary(max_size=200))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(BadOrder):
        read_order(data, NOW)
