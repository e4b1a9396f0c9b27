"""Where sources of presence contradict each other: found at each look, told once when it begins and once when it is over.

A source that says that nobody is at a desktop is contradicted by another one's sign of the same desktop, and by
somebody's touch wherever it was: a terminal, an input device, a program on the GPU. The fusion takes the newest sign of
all, so whoever says "present" is right; what is told here is for the operator, who may have a broken source to mend.

It is one only while it matters, that is until the sign is older than the person must be away; and it is told only when
it has lasted: a person who comes back is seen by one source some milliseconds before the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from states.observation import NEVER
from states.words import elapsed
from supervisor.sensors.base import Away, Presence

SLACK_S: Final = 10.0  # terminals' times move in steps of 8 s
LASTS_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Touch:
    """A sign that counts against any desktop's absence."""

    at_s: float
    source: str
    sign: str


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Who says that nobody is there, and who says otherwise; times are seconds of CLOCK_BOOTTIME."""

    away: Away
    by: Touch

    def tell(self, now_s: float) -> str:
        """Both sources and their readings, in one line."""
        age_s = now_s - self.by.at_s
        when = "now" if age_s < 1.0 else f"{elapsed(age_s)} ago"
        idle = elapsed(now_s - self.away.since_s)
        return f"{self.away.source} says {self.away.about} for {idle}, but {self.by.source} says {self.by.sign} {when}"


def touches(reports: Iterable[Presence], now_s: float) -> list[Touch]:
    """What somebody did by hand, by these reports."""
    signs = ((now_s if r.present else r.last_sign_at_s, r) for r in reports if r.hands and not r.error)
    return [Touch(at_s, r.source, r.present or r.sign) for at_s, r in signs if at_s != NEVER]


def find(
    reports: Sequence[Presence], further: Sequence[Touch], now_s: float, matters_s: float
) -> list[Contradiction]:
    """Each source that says "away" beside the newest sign against it. `further`: touches that no report tells of;
    `matters_s`: how long a sign matters, in seconds."""
    found = []
    hands = [*touches(reports, now_s), *further]
    for away in (a for r in reports for a in r.away):
        said = [Touch(away.denied_at_s, away.denied_by, away.denied)] if away.denied_by else []
        newest = max([*said, *hands], key=lambda touch: touch.at_s, default=None)
        if newest and newest.at_s > away.since_s + SLACK_S and now_s - newest.at_s < matters_s:
            found.append(Contradiction(away, newest))
    return found


class Contradictions:
    """Those that there are, and the news of them."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], tuple[float, bool]] = {}  # since when, and whether it was told
        self.found: list[Contradiction] = []

    def look(self, found: list[Contradiction], now_s: float) -> list[str]:
        """Take over what a look has found; what is to be told, a line each."""
        self.found = found
        known = {(c.away.source, c.away.about): c for c in found}
        lines = []
        for key, (since_s, told) in list(self._open.items()):
            if key not in known:
                del self._open[key]
                if told:
                    lines.append(f"contradiction over: {key[0]} says {key[1]}: not against others any more")
            elif not told and now_s - since_s >= LASTS_S:
                self._open[key] = since_s, True
                lines.append(f"contradiction: {known[key].tell(now_s)}; somebody is taken to be there")
        for key in known.keys() - self._open.keys():
            self._open[key] = now_s, False
        return lines

    def due_s(self, now_s: float) -> float | None:
        """Seconds until one has lasted long enough to be told; None: none waits for that."""
        waits = [max(0.0, since_s + LASTS_S - now_s) for since_s, told in self._open.values() if not told]
        return min(waits, default=None)
