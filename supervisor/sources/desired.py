"""What the fleet's operator asks of one node: the last order to it in the bucket RAE_DESIRED, encoded and read strictly.

An order may only make a node lend less, or take back such an order. A node obeys each order once, and none that is older than
the last one that it obeyed.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

from supervisor.linux.text import one_line
from supervisor.sources.sanitize import decode, encode

VERSION: Final = 1
MAX_BYTES: Final = 4096
MAX_BY: Final = 100
AHEAD_S: Final = 600.0  # how far the operator's clock may be ahead: an order from far in the future would outdo all later ones
MAX_WALL_S: Final = 1e11
QUESTIONS: Final = ("why", "log", "wake")  # what the operator may ask a node beside its orders; wake: another node
MAX_LINES: Final = 200  # of a log at once
FIELDS: Final = frozenset({"v", "want", "until", "after_task", "by", "at"})


class Want(StrEnum):
    """What is asked for. RUN takes the fleet's own PAUSE and OFF back."""

    PAUSE = "pause"
    OFF = "disable-until-told"
    RUN = "run"


class BadOrder(Exception):
    """It is no order of the fleet's; one line."""


@dataclass(frozen=True, slots=True)
class Order:
    """`until` and `at` are seconds since the epoch; `by` is user@host of the operator."""

    want: Want
    at: float
    by: str
    until: float | None = None
    after_task: bool = False

    def encode(self) -> bytes:
        """As it lies in the bucket."""
        return encode({"v": VERSION, **asdict(self)})


def read_order(data: bytes, wall_s: float) -> Order:
    """The order in these bytes. Raises BadOrder for all else: then nothing changes."""
    if len(data) > MAX_BYTES:
        raise BadOrder(f"it has {len(data)} bytes, allowed: {MAX_BYTES}")
    try:
        value = decode(data)
    except ValueError:
        raise BadOrder("it is not JSON") from None
    if not isinstance(value, dict) or value.get("v") != VERSION:
        raise BadOrder(f"it is not of version {VERSION}")
    if unknown := sorted(map(str, set(value) - FIELDS)):
        raise BadOrder(f"found {one_line(unknown[0], MAX_BY)}, allowed: {', '.join(sorted(FIELDS))}")
    want, by, after_task = value.get("want"), value.get("by"), value.get("after_task", False)
    if want not in list(Want):
        raise BadOrder(f"want: allowed: {', '.join(Want)}")
    if not isinstance(by, str) or not one_line(by, MAX_BY):
        raise BadOrder("by: allowed: a text")
    if not isinstance(after_task, bool):
        raise BadOrder("after_task: allowed: true or false")
    at, until = _time(value.get("at"), "at"), value.get("until")
    if at > wall_s + AHEAD_S:
        raise BadOrder(f"at: it lies more than {AHEAD_S / 60:g} minutes ahead; check the clocks")
    end = None if until is None else _time(until, "until")
    if want != Want.PAUSE and (end is not None or after_task):
        raise BadOrder("until and after_task: allowed with pause only")
    return Order(Want(want), at, one_line(by, MAX_BY), end, after_task)


def _time(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < MAX_WALL_S or math.isnan(value):
        raise BadOrder(f"{name}: allowed: seconds since the epoch")
    return float(value)
