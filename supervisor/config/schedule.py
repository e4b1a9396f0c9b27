"""Working hours: `work.hours` and `work.days` of node.yaml at a local time. Pure."""

from __future__ import annotations

import time
from math import isfinite
from typing import Final

from supervisor.config.schema import Work

_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_S: Final = 86400


def in_hours(work: Work, local: time.struct_time) -> tuple[bool, float]:
    """(whether work is allowed now, seconds until that changes or inf).

    A window past midnight belongs to the day on which it begins. The seconds are those of the wall clock: before a change to
    or from daylight-saving time they are wrong by an hour, and right again after it.
    """
    now_s = local.tm_hour * 3600 + local.tm_min * 60 + min(local.tm_sec, 59)
    spans = sorted(
        (shift * _DAY_S + start, shift * _DAY_S + end)
        for shift in range(-1, 9)  # yesterday's window may still be open; eight days show every change
        if _DAYS[(local.tm_wday + shift) % 7] in work.days
        for start, end in windows(work)
    )
    until_s: float | None = None
    for opens_s, closes_s in spans:
        if until_s is not None and opens_s <= until_s:
            until_s = max(until_s, closes_s)
        elif until_s is None and opens_s <= now_s < closes_s:
            until_s = closes_s
    if until_s is not None:
        return True, float("inf") if until_s - now_s > 7 * _DAY_S else until_s - now_s
    return False, min((opens_s - now_s for opens_s, _ in spans if opens_s > now_s), default=float("inf"))


def opens_at_s(work: Work, wall_s: float) -> float | None:
    """When the next window opens, in seconds since the epoch; None: there is none, or work is always allowed. See in_hours."""
    inside, change_s = in_hours(work, time.localtime(wall_s))
    if inside and isfinite(change_s):
        wall_s += change_s + 1
        inside, change_s = in_hours(work, time.localtime(wall_s))
    return None if inside or not isfinite(change_s) else wall_s + change_s


def windows(work: Work) -> list[tuple[int, int]]:
    """The windows of a day, without empty ones: (start, end) in seconds from its midnight. An end may be in the next day."""
    if not work.hours:
        return [(0, _DAY_S)]
    spans = []
    for text in work.hours:
        start, end = (int(t[:2]) * 3600 + int(t[3:]) * 60 for t in text.split("-"))
        if start != end:
            spans.append((start, end if end > start else end + _DAY_S))
    return spans
