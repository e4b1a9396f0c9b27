"""A task's GPU use stays under its limit over any minute, by pauses that are no more than needed (R4)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.tasks.gpu_quota import REST_S, GpuQuota

STEP_S = 0.05


def run(limit: float, loads: list[float], each_s: float = 100.0, look_s: float = 2.0) -> tuple[list[float], GpuQuota]:
    """The true load at each step, of a task that would load the GPU so much, driven as the monitor does it."""
    quota, now_s, looked_s, true = GpuQuota(limit, 0.0), 0.0, 0.0, list[float]()
    for load in loads:
        for _ in range(round(each_s / STEP_S)):
            now_s += STEP_S
            true.append(0.0 if quota.frozen else load)
            quota.advance(now_s)
            due = quota.due
            if due or now_s - looked_s >= look_s:
                looked_s = now_s
                quota.read(0.0 if quota.frozen else load, now_s)
            if due and quota.due:
                quota.turn(now_s, frozen=not quota.frozen)
    return true, quota


def means(true: list[float]) -> list[float]:
    """Over every minute, seconds apart."""
    width = round(60 / STEP_S)
    return [sum(true[i : i + width]) / width for i in range(0, len(true) - width, 20)]


@pytest.mark.parametrize("limit", [1, 5, 10, 30, 50, 80, 90, 95, 99])
def test_a_full_load_is_held_to_the_limit(limit: float) -> None:
    true, quota = run(limit, [100.0], 400)
    late = means(true)[60:]
    print(f"limit {limit}: {min(late):.1f} to {max(late):.1f} %")
    assert max(late) <= limit + 0.5
    assert sum(true) / len(true) >= 0.4 * limit
    assert sum(true) / len(true) >= 0.7 * limit or limit < 30
    assert quota.mean() <= limit + 0.5


@pytest.mark.parametrize(("limit", "load"), [(90, 90), (90, 10), (50, 40), (100, 100), (5, 4.5)])
def test_who_stays_under_it_is_not_touched(limit: float, load: float) -> None:
    true, quota = run(limit, [load])
    assert quota.rested_s == 0
    assert min(true) == load
    assert quota.mean() == pytest.approx(load, rel=0.05)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 100), st.lists(st.integers(0, 100), min_size=1, max_size=6), st.sampled_from([0.2, 1.0, 2.0]))
def test_whatever_the_load_does(limit: int, loads: list[int], look_s: float) -> None:
    """But for what happens between two looks at a load that has just risen."""
    true, quota = run(float(limit), [float(load) for load in loads], 40, look_s)
    assert all(mean <= limit + 100 * (look_s + 0.2) * len(loads) / 60 for mean in means(true))
    assert 0 <= quota.mean() <= 100


def test_pauses_are_worth_it_and_work_comes_back() -> None:
    true, _ = run(70, [100.0])
    stretches = "".join("x" if load else " " for load in true).split("x")
    pauses = [len(pause) * STEP_S for pause in stretches if pause]
    assert pauses
    assert min(pauses[:-1]) >= REST_S - STEP_S
    true, _ = run(50, [100.0, 20.0, 100.0])
    assert sum(true[2500:4000]) / 1500 == pytest.approx(20, rel=0.02), "a task that has calmed down is left alone"


def test_work_that_the_gpu_had_already_counts_while_it_is_frozen() -> None:
    quota = GpuQuota(50, 0.0)
    quota.read(100.0, 2.0)
    quota.advance(10.0)
    assert quota.due
    quota.turn(10.0, frozen=True)
    free_s = quota.wait_s()
    quota.read(100.0, 10.5)
    assert quota.wait_s() == free_s, "a sample of the time before"
    quota.read(40.0, 11.5)
    quota.advance(11.5)
    assert quota.wait_s() > free_s
    quota.read(40.0, 16.0)
    assert quota.wait_s() == pytest.approx(free_s - 1.5 + 1.5 * 40 / 47.5, abs=0.2), "for somebody else, so late"
    quota.read(None, 12.0)
    quota.read(100.0, 11.4)
    assert quota.wait_s() < 60
