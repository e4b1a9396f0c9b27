"""The fusion of all signs of the person: unknown blocks, the last sign never goes back, a foreign GPU process moves it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from states.guards import user_away
from states.limits import Limits
from states.memory import Memory
from states.observation import NEVER, NO_TASK, Automation, Cpu, Gpu, Host, Person, Reading
from supervisor.sensors.base import Presence, PresenceSensor
from supervisor.sensors.observer import Observer, fuse

NOW_S = 10_000.0
LIMITS = Limits()


class Scripted(PresenceSensor):
    """A sensor that says what the test gives it."""

    def __init__(self, name: str, say: Presence | Exception) -> None:
        self.name = name
        self.say = say

    def latest(self, now_s: float) -> Presence:
        """See PresenceSensor."""
        if isinstance(self.say, Exception):
            raise self.say
        return self.say


def sign(ago_s: float, source: str = "a", read_ago_s: float = 0.0) -> Presence:
    return Presence(source, NOW_S - read_ago_s, NOW_S - ago_s, f"user active on {source}")


def there(source: str = "a") -> Presence:
    return Presence(source, NOW_S, present=f"session of anna on {source}")


def nothing(source: str = "a") -> Presence:
    return Presence(source, NOW_S)


def blind(source: str = "a") -> Presence:
    return Presence(source, NOW_S, NOW_S - 5000, error=f"{source} cannot tell")


def gpu(foreign: int = 0, **fields: Any) -> Reading[Gpu]:
    names = ("game (pid 7)",) * foreign
    return Reading(Gpu(1.0, 1.0, foreign, foreign_names=names, **fields), "", "nvml", NOW_S)


UNKNOWN_GPU: Reading[Gpu] = Reading(None, "the driver hangs", "nvml", NOW_S)


def observer(
    reports: Sequence[Presence | Exception], look: Reading[Gpu] | Exception | None = None, first_sign_s: float = NEVER,
    **more: Any,
) -> Observer:  # fmt: skip
    def answer(value: Any) -> Any:
        def read(now_s: float) -> Any:
            if isinstance(value, Exception):
                raise value
            return value

        return read

    sensors = [Scripted(f"s{i}", report) for i, report in enumerate(reports)]
    cpu, host = Reading(Cpu(1.0), "", "cpu", NOW_S), Reading(Host(), "", "host", NOW_S)
    return Observer(sensors, answer(look or gpu()), answer(cpu), answer(host), first_sign_s, **more)


@pytest.mark.parametrize(
    ("reports", "look", "idle_s", "text"),
    [
        ([sign(700)], gpu(), 700, "user active on a"),
        ([sign(700), sign(3, "b")], gpu(), 3, "user active on b"),
        ([sign(3, "b"), sign(700)], gpu(), 3, "user active on b"),
        ([sign(700), there("b")], gpu(), 0, "session of anna on b"),
        ([sign(700), nothing("b")], gpu(), 700, "user active on a"),
        ([nothing()], gpu(), NOW_S, "machine started"),
        ([nothing(), nothing("b")], gpu(), NOW_S, "machine started"),
        ([sign(700)], gpu(1), 0, "GPU used by game (pid 7)"),
        ([nothing()], gpu(2), 0, "GPU used by game (pid 7)"),
        ([there()], gpu(1), 0, "GPU used by game (pid 7)"),
        ([sign(700)], UNKNOWN_GPU, 700, "user active on a"),
        ([sign(700)], RuntimeError("nvml is broken"), 700, "user active on a"),
        ([blind()], gpu(), None, "a cannot tell"),
        ([blind(), there("b")], gpu(), None, "a cannot tell"),
        ([sign(3, "b"), blind()], gpu(), None, "a cannot tell"),
        ([blind(), blind("b")], gpu(1), None, "a cannot tell; b cannot tell"),
        ([RuntimeError("oops"), sign(700)], gpu(), None, "s0 failed: RuntimeError: oops"),
        ([], gpu(), None, "no source of presence is switched on"),
        ([], gpu(1), None, "no source of presence is switched on"),
    ],
)
def test_the_fusion(reports: list[Any], look: Any, idle_s: float | None, text: str) -> None:
    seen = observer(reports, look).look(NOW_S, LIMITS, Automation(True), NO_TASK)
    if idle_s is None:
        assert seen.person.value is None
        assert text in seen.person.error
        assert user_away.judge(seen, Memory(), LIMITS) is None
    else:
        assert seen.person.value == Person(NOW_S - idle_s, text, lasts=idle_s == 0)
        wait_s = user_away.explain(seen, Memory(), LIMITS).wait_s
        assert wait_s == (None if idle_s == 0 else max(0.0, LIMITS.idle_required_s - idle_s)), "what time ends"
        assert user_away.judge(seen, Memory(), LIMITS) is (idle_s >= LIMITS.idle_required_s)


def test_the_oldest_look_is_what_counts_as_the_age() -> None:
    seen = observer([sign(700, read_ago_s=40), sign(800, "b")]).look(NOW_S, LIMITS, Automation(True), NO_TASK)
    assert seen.person.read_at_s == NOW_S - 40
    assert user_away.judge(seen, Memory(), Limits(max_age_person_s=30)) is None


def test_the_start_is_a_sign_where_events_alone_tell() -> None:
    seen = observer([nothing()], first_sign_s=NOW_S - 10).look(NOW_S, LIMITS, Automation(True), NO_TASK)
    assert seen.person.value == Person(NOW_S - 10, "node started")


def test_not_watched_nobody_is_asked_for() -> None:
    limits = Limits(detect_active_user=False)
    seen = observer([blind()]).look(NOW_S, limits, Automation(True), NO_TASK)
    assert user_away.judge(seen, Memory(), limits) is True


@pytest.mark.parametrize("which", ["gpu", "cpu", "host"])
def test_a_sensor_that_raises_is_unknown_with_its_reason(which: str) -> None:
    watcher = observer([sign(700)])

    def raises(now_s: float) -> Any:
        raise OSError("as planned")

    setattr(watcher, which, raises)
    seen = watcher.look(NOW_S, LIMITS, Automation(True), NO_TASK)
    reading = getattr(seen, which)
    assert reading.value is None
    assert reading.error == "its sensor failed: OSError: as planned"


REPORTS = st.builds(
    Presence,
    source=st.sampled_from("ab"),
    read_at_s=st.just(NOW_S),
    last_sign_at_s=st.floats(-1e5, NOW_S) | st.just(NEVER),
    sign=st.sampled_from(["", "user active"]),
    present=st.sampled_from(["", "", "anna"]),
    error=st.sampled_from(["", "", "", "cannot tell"]),
)
LOOKS = st.sampled_from([gpu(), gpu(1), UNKNOWN_GPU, gpu(present=False)])


@given(st.lists(st.tuples(st.lists(REPORTS, max_size=3), LOOKS, st.floats(0, 1e4)), max_size=8))
def test_the_last_sign_never_goes_back_and_unknown_always_blocks(history: list[tuple[Any, Reading[Gpu], float]]) -> None:
    now_s, newest_s = NOW_S, NEVER
    watcher = observer([])
    for reports, look, wait_s in history:
        now_s += wait_s
        watcher.presence = tuple(Scripted(r.source, r) for r in reports)
        watcher.gpu = lambda _now_s, look=look: look  # type: ignore[misc]
        seen = watcher.look(now_s, LIMITS, Automation(True), NO_TASK)
        person = seen.person.value
        if any(r.error for r in reports) or not reports:
            assert person is None
            assert seen.person.error
            assert user_away.judge(seen, Memory(), LIMITS) is None
        else:
            assert person is not None
            assert person.last_sign_at_s >= max([newest_s, *(r.last_sign_at_s for r in reports)])
            assert person.last_sign_at_s <= now_s
            newest_s = person.last_sign_at_s
            if look.value is not None and look.value.foreign:
                assert person.last_sign_at_s == now_s


@given(st.lists(REPORTS, max_size=4), st.floats(-1e5, NOW_S))
def test_what_is_remembered_counts_like_any_sign(reports: list[Presence], last_s: float) -> None:
    person, _, _ = fuse(reports, NOW_S, Person(last_s))
    assert person.last_sign_at_s >= max(0.0, last_s)


@pytest.mark.parametrize(
    ("slept_s", "sign_at_s"),
    [([30.0], NOW_S), ([2.0, 2.0], NOW_S), ([0.4, 0.4], NOW_S - 5000), ([-3.0, 0.0], NOW_S - 5000), ([-3.0, 60.0], NOW_S + 1)],
)
def test_a_sleep_that_nobody_announced_is_a_sign(slept_s: list[float], sign_at_s: float) -> None:
    """CLOCK_MONOTONIC does not count it. The difference of the two clocks may come out too small on a busy machine."""
    now = [0.0]
    watching = observer([sign(5000)], suspended_s=lambda: now[0])
    for tick, now[0] in enumerate(slept_s):
        person = watching.look(NOW_S + tick, LIMITS, Automation(True), NO_TASK).person.value
    assert person is not None
    assert person.last_sign_at_s == sign_at_s
    assert (person.sign == "the machine woke up from sleep") is (sign_at_s >= NOW_S)
