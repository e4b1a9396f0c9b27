"""How long to wait before the next try: back-off with full jitter, or longer where the server asks for it."""

from __future__ import annotations

from typing import Final

from tenacity import RetryCallState
from tenacity.wait import wait_random_exponential

FIRST_S: Final = 1.0  # the bound of the first wait; the bound doubles with each try
LONGEST_S: Final = 300.0  # the longest of our own waits
FLOOR_S: Final = 0.1  # full jitter may give zero, and that would be a busy loop
RETRY_AFTER_MAX_S: Final = 3600.0  # the longest Retry-After that is honoured


def backoff_s(state: RetryCallState) -> float:
    """Seconds until the next try, for tenacity. LONGEST_S bounds our own waits; a Retry-After may be longer."""
    jitter = wait_random_exponential(multiplier=min(FIRST_S, LONGEST_S), max=LONGEST_S, min=min(FLOOR_S, LONGEST_S))
    error = state.outcome.exception() if state.outcome is not None else None
    asked_s = getattr(error, "retry_after_s", None)
    own_s = float(jitter(state))
    return own_s if asked_s is None else max(own_s, min(asked_s, RETRY_AFTER_MAX_S))
