"""Attempts that ended with their node: it crashed, the watchdog ended it, or the power was cut; or it could not start the task
at all. A task that has lost MAX_LOST attempts fails: perhaps it is the task that ends its nodes. A person who comes back loses
no attempt.

The count is in the note of the task in flight, and in the payload of a task that is posted again, for its next node. There
the claim has it as a field of its own: the task's program never sees it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from supervisor.sources.base import Claim

LOST_KEY: Final = "rae_lost_attempts"  # in a payload
MAX_LOST: Final = 2
GIVEN_UP: Final = (
    f"lost: {MAX_LOST} attempts at this task ended with their node, by a crash, its watchdog or a power cut;"
    " it is not tried again"
)


def lost_in(payload: Mapping[str, Any]) -> int:
    """The count in a payload; 0 where there is none."""
    count = payload.get(LOST_KEY)
    return min(count, MAX_LOST) if type(count) is int and count > 0 else 0


def read_count(claim: Claim) -> Claim:
    """The claim with its count as a field, and no longer in its payload."""
    if LOST_KEY not in claim.payload:
        return claim
    payload = {name: value for name, value in claim.payload.items() if name != LOST_KEY}
    return replace(claim, payload=payload, lost=lost_in(claim.payload))


def with_count(payload: Mapping[str, Any], lost: int) -> Mapping[str, Any]:
    """The payload as it is posted again."""
    return {**payload, LOST_KEY: lost} if lost else payload
