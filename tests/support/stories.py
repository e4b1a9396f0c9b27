"""Simulated people: what happens at a machine, in seconds since the epoch, from one seed."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
# The end of summer time in central Europe lies in the month that begins here.
FIRST_DAY: Final = (2026, 10, 5)
ZONE: Final = "CET-1CEST,M3.5.0,M10.5.0/3"


@contextlib.contextmanager
def zone(name: str = ZONE) -> Iterator[None]:
    """Local time is this zone's, for a while."""
    kept = os.environ.get("TZ")
    os.environ["TZ"] = name
    time.tzset()
    try:
        yield
    finally:
        if kept is None:
            del os.environ["TZ"]
        else:
            os.environ["TZ"] = kept
        time.tzset()


@dataclass
class Story:
    """Everything that happens from `begin` to `end`, in order. Spans are (from, to, more)."""

    begin: float
    end: float
    there: list[tuple[float, float]] = field(default_factory=list)  # signs come all the time
    gpu: list[tuple[float, float, float, float, str]] = field(default_factory=list)  # percent, GiB, name of the program
    cpu: list[tuple[float, float, float]] = field(default_factory=list)  # percent
    off: list[tuple[float, float, bool]] = field(default_factory=list)  # True: the power went, nothing was closed
    down: list[tuple[float, float]] = field(default_factory=list)  # no way to the control node
    pauses: list[tuple[float, float]] = field(default_factory=list)  # when it was said, until when


def at(day: int, hour: float, first: tuple[int, int, int] = FIRST_DAY) -> float:
    """Local time `hour` of the n-th day, in seconds since the epoch; a clock change moves it as it moves people."""
    year, month, mday = first
    minutes = round(hour * 60)
    return time.mktime((year, month, mday + day, minutes // 60, minutes % 60, 0, 0, 0, -1))


def weekday(day: int) -> int:
    """0 is Monday."""
    return time.localtime(at(day, 12)).tm_wday


def sit(story: Story, rng: random.Random, begin: float, end: float, busy_s: float, rests: tuple[float, float]) -> None:
    """A person at the machine: `busy_s` at a time on average, with pauses; `rests` are the shares of middling and of
    long ones."""
    now = begin
    while now < end:
        until = min(end, now + 20 + rng.expovariate(1 / busy_s))
        story.there.append((now, until))
        kind = rng.random()
        long, middling = rests[1], rests[0] + rests[1]
        pause = rng.uniform(15, 50) * MINUTE if kind < long else rng.uniform(3, 11) * MINUTE if kind < middling else 0
        now = until + (pause or 5 + rng.expovariate(1 / 50))


def office(rng: random.Random, days: int) -> Story:
    """Nine to five on weekdays, with lunch and meetings; compiles; off over every second weekend."""
    story = Story(at(0, 0), at(days, 0))
    for day in range(days):
        if weekday(day) >= 5:
            if weekday(day) == 5 and (day // 7) % 2:
                sit(story, rng, at(day, 11), at(day, 11.4), 4 * MINUTE, (0.1, 0.0))  # a look from home
            continue
        come, go = rng.uniform(8.1, 8.9), rng.uniform(16.6, 18.2)
        lunch = rng.uniform(12, 12.6)
        sit(story, rng, at(day, come), at(day, lunch), 6 * MINUTE, (0.14, 0.06))
        sit(story, rng, at(day, lunch + rng.uniform(0.6, 1.0)), at(day, go), 6 * MINUTE, (0.14, 0.06))
        for _ in range(rng.randint(1, 4)):
            begin = at(day, rng.uniform(come, go))
            story.cpu.append((begin, begin + rng.uniform(4, 14) * MINUTE, rng.uniform(84, 99)))
        if weekday(day) == 4 and (day // 7) % 2 == 0:
            story.off.append((at(day, go + 0.4), at(day + 3, 7.9), False))
    return story


def gamer(rng: random.Random, days: int) -> Story:
    """Plays at night, longer at weekends; the game holds the GPU; often off until the morning."""
    story = Story(at(0, 0), at(days, 0))
    for day in range(days):
        evenings = [(rng.uniform(19.0, 20.2), rng.uniform(23.6, 26.0))]
        if weekday(day) >= 5:
            evenings.insert(0, (rng.uniform(13.5, 14.5), rng.uniform(17.0, 18.2)))
        for come, go in evenings:
            sit(story, rng, at(day, come), at(day, go), 11 * MINUTE, (0.10, 0.05))
            begin = come + rng.uniform(0.2, 0.6)
            while begin < go - 0.3:
                end = min(go - 0.05, begin + rng.uniform(0.8, 2.6))
                story.gpu.append((at(day, begin), at(day, end), rng.uniform(70, 99), rng.uniform(5, 11), "game.x86_64"))
                begin = end + rng.uniform(0.1, 0.5)
        if rng.random() < 0.4:
            story.off.append((at(day, evenings[-1][1] + 0.2), at(day + 1, rng.uniform(8.5, 11)), False))
        elif rng.random() < 0.5:
            begin = at(day + 1, rng.uniform(4, 8))
            story.cpu.append((begin, begin + rng.uniform(8, 25) * MINUTE, rng.uniform(82, 95)))  # the game's update
    return story


def nobody(rng: random.Random, days: int) -> Story:
    """Nobody home: a backup every night, a look from afar now and then, a power cut, a control node out of reach."""
    story = Story(at(0, 0), at(days, 0))
    for day in range(days):
        begin = at(day, 3)
        story.cpu.append((begin, begin + rng.uniform(20, 35) * MINUTE, rng.uniform(85, 97)))
        if rng.random() < 0.3:
            hour = rng.uniform(9, 22)
            sit(story, rng, at(day, hour), at(day, hour + rng.uniform(0.1, 0.4)), 3 * MINUTE, (0.1, 0.0))
    if days > 2:
        story.off.append((at(days // 3, 14.3), at(days // 3, 19.6), True))
        story.down.append((at(days // 2, 1.2), at(days // 2, 10.1)))
        story.pauses.append((at(days // 2 + 1, 12), at(days // 2 + 1, 15)))
    return story


KINDS: Final[Mapping[str, Callable[[random.Random, int], Story]]] = {"office": office, "gamer": gamer, "nobody": nobody}
