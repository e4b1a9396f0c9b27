"""A clock that a test owns."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ManualClock:
    """Both times in seconds, moved by the test alone."""

    now: float = 1000.0
    wall: float = 1_800_000_000.0

    def now_s(self) -> float:
        """See Clock."""
        return self.now

    def wall_s(self) -> float:
        """See Clock."""
        return self.wall

    def go(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        self.wall += seconds
