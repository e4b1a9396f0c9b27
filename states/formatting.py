"""Numbers and times in words for people: `7 min`, `2 h 5 min`, `3.5 GiB`."""

from __future__ import annotations

import math


def duration(seconds: float) -> str:
    """A time to go, rounded up so that it never says less than is left: `40 s`, `7 min`, `2 h 5 min`, `3 d 4 h`."""
    if math.isnan(seconds):
        return "an unknown time"
    if math.isinf(seconds):
        return "for ever"
    whole = max(0, math.ceil(seconds - 1e-3))
    if whole < 100:
        return f"{whole} s"
    minutes = math.ceil(whole / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def elapsed(seconds: float) -> str:
    """A time that has passed, rounded down, so that "9 min of 10 min" never reads as reached before it is."""
    whole = max(0, math.floor(seconds + 1e-3)) if math.isfinite(seconds) else 0
    if not math.isfinite(seconds):
        return "for ever" if seconds > 0 else "no time"
    if whole < 100:
        return f"{whole} s"
    minutes = whole // 60
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def number(value: float) -> str:
    """At most two decimals, without trailing zeros."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.2f}".rstrip("0").rstrip(".")
