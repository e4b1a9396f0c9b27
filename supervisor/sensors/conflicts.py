"""Finds where sources of presence contradict each other. Each contradiction is reported when it begins and when it ends.

A source that says that nobody is at a desktop is contradicted by another source's sign of the same desktop, and by
somebody's touch anywhere: at a terminal, at an input device, by a program on the GPU. The fusion takes the newest of all
signs, so the source that says "present" wins. The report is for the operator, who may have a broken source to repair.

A contradiction counts only until its sign is older than the required idle time. It is reported only when it has lasted:
one source sees a returning person some milliseconds before the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from states.formatting import elapsed
from states.observation import NEVER
from supervisor.sensors.base import Away, Presence, Touch

SLACK_S: Final = 10.0  # terminals' times move in steps of 8 s
LASTS_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Contradiction:
    """One source says that nobody is there, another says otherwise. Times are seconds of CLOCK_BOOTTIME."""

    away: Away
    by: Touch

    def line(self, now_s: float) -> str:
        age_s = now_s - self.by.at_s
        when = "now" if age_s < 1.0 else f"{elapsed(age_s)} ago"
        idle = elapsed(now_s - self.away.since_s)
        return f"{self.away.source} says {self.away.about} for {idle}, but {self.by.source} says {self.by.sign} {when}"


def find(
    reports: Sequence[Presence], further: Sequence[Touch], now_s: float, matters_s: float
) -> list[Contradiction]:
    """Each source that says "away", with the newest sign against it. `further`: touches that no report contains.
    `matters_s`: how long a sign matters, in seconds."""
    found = []
    signs = [(now_s if r.present else r.last_sign_at_s, r) for r in reports if r.hands and not r.error]
    hands = [*further, *(Touch(at_s, r.source, r.present or r.sign) for at_s, r in signs if at_s != NEVER)]
    for away in (a for r in reports for a in r.away):
        denials = [away.denied] if away.denied else []
        newest = max([*denials, *hands], key=lambda touch: touch.at_s, default=None)
        if newest and newest.at_s > away.since_s + SLACK_S and now_s - newest.at_s < matters_s:
            found.append(Contradiction(away, newest))
    return found


class Contradictions:
    """The contradictions of the last look, and which of them were reported."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], tuple[float, bool]] = {}  # since when, and whether it was reported
        self.found: list[Contradiction] = []

    def update(self, found: list[Contradiction], now_s: float) -> list[str]:
        """Take over what a look has found; returns what to report, one line each."""
        self.found = found
        known = {(c.away.source, c.away.about): c for c in found}
        lines = []
        for key, (since_s, reported) in list(self._open.items()):
            if key not in known:
                del self._open[key]
                if reported:
                    lines.append(f"contradiction over: {key[0]} says {key[1]}: not against others any more")
            elif not reported and now_s - since_s >= LASTS_S:
                self._open[key] = since_s, True
                lines.append(f"contradiction: {known[key].line(now_s)}; somebody is taken to be there")
        for key in known.keys() - self._open.keys():
            self._open[key] = now_s, False
        return lines

    def due_s(self, now_s: float) -> float | None:
        """Seconds until one has lasted long enough to be reported; None: none is waiting."""
        waits = [max(0.0, since_s + LASTS_S - now_s) for since_s, reported in self._open.values() if not reported]
        return min(waits, default=None)
