"""The kernel's reports on AMD and Intel GPUs, judged: their load, and who owns it (R9, R10)."""

from __future__ import annotations

from typing import Any

import pytest
from support.drm_rig import AMD, GIB, INTEL

from states.observation import Gpu
from supervisor.config.schema import GpuSettings
from supervisor.linux.proc import Name
from supervisor.sensors.gpu.drm_usage import Card, Look, busy_percent, judge, measured
from supervisor.sensors.gpu.ownership import Known, Process

NAMES = {
    10: Name("worker"),
    20: Name("sway", "", "/user.slice/user-1000.slice/session-2.scope"),
    30: Name("game", "", "/user.slice/user-1000.slice/user@1000.service/app.slice/app-game-1.scope"),
    40: Name("model", "", "/system.slice/ollama.service"),
}


def seen(
    *cards: Card, own: frozenset[int] = frozenset(), percents: dict[str, float] | None = None, **settings: Any
) -> tuple[Gpu | None, str]:
    lent = {card.pci for card in cards}
    age_s = {30: 1.0}
    known = Known(GpuSettings(**settings), lambda pid: NAMES.get(pid, Name()), own, age_s=lambda pid: age_s.get(pid, 9e9))
    use = judge(cards, lent, percents or {}, known)
    return use.gpu, use.error


def amd(*clients: Process, used: float = 0.0, hidden: tuple[int, ...] = ()) -> Card:
    return Card(AMD, "amdgpu", total=16 * GIB, used=int(used * GIB), clients=clients, hidden=hidden)


def client(pid: int, vram: float = 0.0, busy: bool = True) -> Process:
    return Process(pid, used=int(vram * GIB), busy=busy)


GAME = "game (pid 30)"


@pytest.mark.parametrize(
    ("found", "gpu", "error"),
    [
        pytest.param(seen(amd()), Gpu(), "", id="nobody"),
        pytest.param(seen(amd(client(30, 1), used=1)), Gpu(0, 1, 1, True, (GAME,)), "", id="a game"),
        pytest.param(seen(amd(client(30, busy=False))), Gpu(), "", id="open, and never used"),
        pytest.param(seen(amd(used=1)), Gpu(0, 1), "", id="a little memory of nobody listed counts"),
        pytest.param(seen(amd(used=3)), None, f"3 GiB of VRAM on {AMD}, by no listed process: ", id="memory of nobody listed"),
        pytest.param(seen(amd(), percents={AMD: 60.0}), None, f"60 % load on {AMD}, by no listed process: ", id="load"),
        pytest.param(seen(amd(client(20, 0.4), used=0.5)), Gpu(0, 0.5), "", id="what draws a desktop"),
        pytest.param(seen(amd(client(20, 3), used=3)), Gpu(0, 3, 1, True, ("sway (pid 20)",)), "", id="over the cap"),
        pytest.param(seen(amd(hidden=(30,))), Gpu(), "", id="who cannot be looked into, without a sign of use"),
        pytest.param(seen(amd(used=2, hidden=(30,)), percents={AMD: 20.0}), Gpu(20, 2), "", id="hidden, as much as a desktop"),
        pytest.param(
            seen(amd(used=3, hidden=(30,)), percents={AMD: 60.0}), None,
            f"3 GiB of VRAM and 60 % load on {AMD}, by no process that can be looked into: `sudo fuser", id="hidden, with use",
        ),
        pytest.param(
            seen(amd(client(20, 0.4), used=2.6, hidden=(30,))), None, f"2 GiB of VRAM on {AMD}, by no process that can",
            id="beside a desktop that is seen, less is another's",
        ),
        pytest.param(seen(Card(INTEL, "i915", hidden=(30,)), percents={INTEL: 90.0}), None, "90 % load", id="hidden, Intel's"),
        pytest.param(
            seen(amd(used=0.25, hidden=(10, 30)), own=frozenset({10})), Gpu(0, 0.25), "", id="ours hidden, and not on it",
        ),
        pytest.param(
            seen(amd(Process(20, "c", GIB // 4), used=0.25)), Gpu(0, 0.25, 1, True, ("sway (pid 20)",)), "",
            id="what computes draws no desktop",
        ),
        pytest.param(
            seen(amd(client(10, 4), used=5), own=frozenset({10}), percents={AMD: 99.0}), Gpu(0, 1), "", id="ours"
        ),
        pytest.param(
            seen(amd(client(10, 4), client(30, 0.1), used=5), own=frozenset({10}), percents={AMD: 99.0}),
            Gpu(99, 1, 1, True, (GAME,)), "", id="ours beside a game",
        ),
        pytest.param(
            seen(Card(INTEL, "xe", clients=(client(30, 2), client(10, 1))), own=frozenset({10})),
            Gpu(0, 2, 1, True, (GAME,)), "", id="without a total, what is known is added up",
        ),
    ],
)  # fmt: skip
def test_whose_it_is(found: tuple[Gpu | None, str], gpu: Gpu | None, error: str) -> None:
    assert found[0] == gpu
    assert found[1].startswith(error)
    assert bool(found[1]) is bool(error)


LATE, EARLY = {77: 5.0}, {77: 4.9}


@pytest.mark.parametrize(
    ("card", "lately", "unlisted", "left", "held"),
    [
        pytest.param(amd(used=0.5), LATE, {AMD: 0.4}, "", False, id="given back"),
        pytest.param(amd(client(77, 2), used=2), EARLY, {}, "2 GiB by pid 77, which is gone", False, id="just gone"),
        pytest.param(amd(client(77, 2), used=2), LATE, {}, "2 GiB by pid 77, which is gone", True, id="gone for too long"),
        pytest.param(amd(client(77, busy=False)), LATE, {}, "", False, id="open, and never used"),
        pytest.param(amd(used=3), EARLY, {AMD: 1.0}, "2 GiB by no listed process", False, id="a driver that is late"),
        pytest.param(amd(used=3), LATE, {AMD: 1.0}, "2 GiB by no listed process", True, id="a driver that leaks"),
        pytest.param(amd(used=3), {}, {AMD: 1.0}, "2 GiB by no listed process", True, id="a leak of long ago"),
        pytest.param(amd(used=1.2), LATE, {AMD: 1.0}, "", False, id="the driver's bookkeeping"),
        pytest.param(amd(client(20, 1), used=2), LATE, {AMD: 1.0}, "", False, id="somebody else, who is listed"),
        pytest.param(
            amd(used=1.5, hidden=(30,)), LATE, {AMD: 1.0}, "0.5 GiB by no process that can be looked into", True,
            id="who cannot be looked into explains nothing",
        ),
        pytest.param(amd(client(40, 8), used=8), {40: 9.0}, {}, "8 GiB by model (pid 40)", True, id="a server keeps it"),
        pytest.param(amd(client(40, 0.4), used=0.4), {40: 9.0}, {}, "", False, id="a server's own small context"),
        pytest.param(amd(client(40, 8), used=8), {}, {}, "", False, id="a server that no recent task has used"),
        pytest.param(Card(INTEL, "xe", clients=(client(40, 8),)), {40: 9.0}, {}, "8 GiB by model (pid 40)", True, id="Intel's"),
        pytest.param(Card(AMD, "amdgpu", asleep=True), LATE, {AMD: 1.0}, "", False, id="asleep"),
    ],
)  # fmt: skip
def test_what_a_task_has_left(
    card: Card, lately: dict[int, float], unlisted: dict[str, float], left: str, held: bool
) -> None:
    """Reported at once; it blocks, with that reason, when it stays longer than VRAM_RELEASE_S."""
    settings = GpuSettings(own_units=["ollama.service"])
    names = {**NAMES, 77: Name()}
    known = Known(settings, lambda pid: names[pid], lately=lately, unlisted=unlisted)
    use = judge([card], {card.pci}, {}, known)
    assert use.gpu is not None
    assert (use.own.left, use.gpu.held) == (left, left if held else "")


def test_what_was_there_beside_the_task_is_not_the_tasks() -> None:
    """Its last look shows that; for a GPU whose driver reports no total, nothing is remembered."""
    beside = amd(client(10, 4), client(20, 1), used=6)
    other = Card(INTEL, "xe", clients=(client(10, 1),))
    use = judge([beside, other], {AMD, INTEL}, {}, Known(GpuSettings(), NAMES.__getitem__, {10}, {10: 0.0}))
    assert (use.own.unlisted, use.own.left) == ({AMD: 1.0}, "")


@pytest.mark.parametrize(
    ("card", "before", "vram_gb", "own"),
    [
        pytest.param(amd(used=9, hidden=(10, 30)), {AMD: 1.5}, 1.5, (1, 7.5, 99.0), id="what has come is the task's"),
        pytest.param(amd(used=9, hidden=(10,)), {}, 1.0, (1, 8.0, 99.0), id="without a look before it"),
        pytest.param(Card(INTEL, "i915", hidden=(10,)), {}, 0.0, (1, 0.0, 99.0), id="Intel's"),
    ],
)
def test_a_task_that_cannot_be_looked_into_is_known_by_what_is_used(
    card: Card, before: dict[str, float], vram_gb: float, own: tuple[int, float, float]
) -> None:
    """In a unit it has a user of its own; its use must not be taken for a person's (R4)."""
    use = judge([card], {card.pci}, {card.pci: 99.0}, Known(GpuSettings(), NAMES.__getitem__, {10}, before=before))
    assert use.gpu == Gpu(0, vram_gb)
    assert (use.own.processes, use.own.vram_gb, use.own.percent) == own


def test_a_task_on_a_card_that_is_not_lent_is_a_stray() -> None:
    cards = [amd(), Card(INTEL, "xe", clients=(client(10, 0, busy=False), client(10)))]
    use = judge(cards, {AMD}, {}, Known(GpuSettings(), NAMES.__getitem__, {10}))
    assert use.own.stray == f"GPU {INTEL}, which is not lent (gpu.lend)"


@pytest.mark.parametrize(
    ("then", "now", "percent"),
    [(0, 250_000_000, 25), (0, 2_000_000_000, 100), (None, 250_000_000, None), (0, None, None), (900, 100, None)],
)
def test_how_busy_a_client_keeps_it(then: int | None, now: int | None, percent: int | None) -> None:
    """By the time that its driver counts, in two looks one second apart; None: unknown."""
    looks = [Look(at_s, (Card(AMD, "amdgpu", clients=(Process(20, engine_ns=ns),)),)) for at_s, ns in ((1.0, then), (2.0, now))]
    ((card,), (again,)) = measured(looks[0], looks[1]), measured(None, looks[1])
    assert (card.clients[0].percent, again.clients[0].percent) == (percent, None)


@pytest.mark.parametrize(
    ("before", "after", "seconds", "percent"),
    [
        (0, 1000, 1.0, 0.0),
        (0, 250, 1.0, 75.0),
        (0, 0, 1.0, 100.0),
        (0, 1100, 1.0, 0.0),
        (500, 100, 1.0, None),
        (0, 10, 0.05, None),
        (None, 10, 1.0, None),
    ],
)
def test_idle_times_tell_how_busy_it_was(before: int | None, after: int, seconds: float, percent: float | None) -> None:
    then = Look(10.0, (Card(INTEL, "i915", idle_ms={} if before is None else {"gt0": before}),))
    card = Card(INTEL, "i915", idle_ms={"gt0": after})
    assert busy_percent(then, Look(10.0 + seconds, (card,)), card) == percent
    assert busy_percent(None, Look(10.0 + seconds, (card,)), card) is None


def test_the_busiest_part_counts_whatever_it_did_before() -> None:
    """The media part is fully busy now, but has been idle far longer since boot than the other."""
    then = Look(10.0, (Card(INTEL, "i915", idle_ms={"gt0": 1_000, "gt1": 90_000}),))
    card = Card(INTEL, "i915", idle_ms={"gt0": 2_000, "gt1": 90_000})
    assert busy_percent(then, Look(11.0, (card,)), card) == 100.0


@pytest.mark.parametrize(("used", "total"), [(17, 16), (-1, 16), (-1, None)])
def test_impossible_memory_is_unknown(used: int, total: int | None) -> None:
    card = Card(AMD, "amdgpu", percent=0, used=used, total=total)
    with pytest.raises(ValueError, match="impossible memory"):
        busy_percent(None, Look(0.0, (card,)), card)


def test_a_driver_that_tells_nothing_is_unknown() -> None:
    card = Card(INTEL, "i915")
    with pytest.raises(ValueError, match="does not report its load"):
        busy_percent(None, Look(0.0, (card,)), card)
