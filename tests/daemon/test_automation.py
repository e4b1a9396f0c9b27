"""The operator's switch: what switches the node off, in which order, and what a restart remembers of it."""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.clock import ManualClock

from supervisor.daemon.automation import BOOT_ID, FLEET_FILE, LONGEST_S, PAUSE_FILE, AutomationSwitch, FleetPause
from supervisor.linux.clock import iso
from supervisor.sources.desired import Order, Want


def made(tmp_path: Path, clock: ManualClock | None = None) -> AutomationSwitch:
    switch = AutomationSwitch(tmp_path, clock or ManualClock())
    switch.configure(True)
    return switch


def test_the_first_of_what_switches_it_off_is_the_reason(tmp_path: Path) -> None:
    switch = made(tmp_path)
    assert switch.reading(1000, task_in_hand=False).on
    steps = [
        (lambda: switch.blockers.update(key="no key"), "no key", "node"),
        (lambda: switch.configure(False), "automation.enabled is false in runtime.yaml", "runtime.yaml"),
        (lambda: switch.pause(None, ""), "paused, until `rae-node resume`", "operator"),
        (lambda: switch.configure(False, ["node.yaml:1:1: bad", "more"]), "node.yaml:1:1: bad (and 1 more)", "configuration"),
        (lambda: setattr(switch, "stopping", "stopping"), "stopping", "operator"),
    ]
    for switch_off, reason, source in steps:
        switch_off()  # type: ignore[no-untyped-call]
        automation = switch.reading(1000, task_in_hand=False)
        assert (automation.on, automation.reason, automation.source) == (False, reason, source)


def test_a_pause_with_an_end_says_so_and_ends_by_itself(tmp_path: Path) -> None:
    clock = ManualClock()
    switch = made(tmp_path, clock)
    switch.pause(clock.wall + 60, "anna")
    automation = switch.reading(clock.now, task_in_hand=False)
    assert automation.reason.startswith("paused by anna until ")
    assert automation.until_s == pytest.approx(clock.now + 60)
    assert switch.paused_end() is not None
    clock.go(59.9)
    assert not switch.reading(clock.now, task_in_hand=False).on
    clock.go(0.2)
    assert switch.reading(clock.now, task_in_hand=False).on
    assert switch.paused_end() is None
    assert not (tmp_path / PAUSE_FILE).exists()


def test_another_days_end_names_the_day(tmp_path: Path) -> None:
    clock = ManualClock()
    switch = made(tmp_path, clock)
    end = clock.wall + 3 * 86400
    switch.pause(end, "")
    assert time.strftime("%a %d %b", time.localtime(end)) in switch.reading(clock.now, task_in_hand=False).reason


@pytest.mark.parametrize("until", [None, 3600.0])
def test_a_pause_survives_a_restart(tmp_path: Path, until: float | None) -> None:
    clock = ManualClock()
    made(tmp_path, clock).pause(None if until is None else clock.wall + until, "anna")
    again = made(tmp_path, clock)
    assert not again.reading(clock.now, task_in_hand=False).on
    assert again.paused_by == "anna"
    again.resume()
    assert made(tmp_path, clock).reading(clock.now, task_in_hand=False).on


@pytest.mark.parametrize("jump_s", [-86400.0, -1800.0, 1800.0, 86400.0])
@pytest.mark.parametrize("restart", [False, True])
def test_a_pause_for_some_time_lasts_so_long_whatever_the_wall_clock_is_set_to(
    tmp_path: Path, jump_s: float, restart: bool
) -> None:
    clock = ManualClock()
    switch = made(tmp_path, clock)
    switch.pause(None, "", for_s=600)
    clock.wall += jump_s
    switch = made(tmp_path, clock) if restart else switch
    clock.go(599)
    automation = switch.reading(clock.now, task_in_hand=False)
    assert (automation.on, automation.until_s) == (False, pytest.approx(clock.now + 1))
    assert switch.paused_end() == iso(clock.wall + 1), "the end is shown by the clock on the wall"
    assert time.strftime("%H:%M", time.localtime(clock.wall + 1)) in automation.reason
    clock.go(1)
    assert switch.reading(clock.now, task_in_hand=False).on


@pytest.mark.parametrize("boot", ["another", ""])
def test_after_a_reboot_a_pause_for_some_time_ends_by_the_wall_clock(tmp_path: Path, boot: str) -> None:
    clock = ManualClock()
    made(tmp_path, clock).pause(None, "", for_s=600)
    kept = json.loads((tmp_path / PAUSE_FILE).read_text())
    (tmp_path / PAUSE_FILE).write_text(json.dumps(kept | {"boot": boot}))
    clock.wall += 599
    clock.now = 5.0
    switch = made(tmp_path, clock)
    assert not switch.reading(clock.now, task_in_hand=False).on
    clock.go(1)
    assert switch.reading(clock.now, task_in_hand=False).on


def test_a_pause_until_a_time_of_day_follows_the_wall_clock(tmp_path: Path) -> None:
    clock = ManualClock()
    switch = made(tmp_path, clock)
    switch.pause(clock.wall + 600, "")
    clock.wall += 600
    assert switch.reading(clock.now, task_in_hand=False).on


KEPT = [
    "", "{}", "[1]", "null", '{"until": "soon", "by": ""}', '{"until": NaN, "by": ""}', '{"until": 1e300, "by": ""}', "\x00",
    '{"until": Infinity, "by": ""}', f'{{"until": {"9" * 400}, "by": ""}}',
]


DURATION = {"until": 1_800_000_600.0, "by": "", "until_boot_s": 1600.0, "boot": Path(BOOT_ID).read_text().strip()}
DAMAGE: list[dict[str, Any]] = [{"until_boot_s": end} for end in ("soon", 1e300, None, 10**400)]


@pytest.mark.parametrize("text", [*KEPT, *(json.dumps(DURATION | changes) for changes in DAMAGE)])
def test_an_unreadable_pause_is_a_pause_without_an_end(tmp_path: Path, text: str) -> None:
    (tmp_path / PAUSE_FILE).write_text(text)
    switch = made(tmp_path)
    why = f"{tmp_path / PAUSE_FILE} is damaged"
    assert switch.reading(1000, task_in_hand=False).reason == f"paused, until `rae-node resume` ({why})"
    switch.resume()
    assert switch.reading(1000, task_in_hand=False).on


def test_a_pipe_in_the_place_of_the_pause_is_a_pause_and_gives_way_to_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / PAUSE_FILE)
    switch = made(tmp_path)
    why = f"{tmp_path / PAUSE_FILE} cannot be read: it is a pipe, not a plain file"
    assert switch.reading(1000, task_in_hand=False).reason == f"paused, until `rae-node resume` ({why})"
    switch.pause(None, "anna")
    assert made(tmp_path).reading(1000, task_in_hand=False).reason == "paused by anna, until `rae-node resume`"


def test_who_paused_it_is_one_line_of_plain_text(tmp_path: Path) -> None:
    by = "\x1b]0;title\x07\x9b2Janna\n\u202e" + "x" * 1000
    (tmp_path / PAUSE_FILE).write_text(json.dumps({"v": 1, "until": None, "by": by}))
    reason = made(tmp_path).reading(1000, task_in_hand=False).reason
    assert reason.startswith("paused by anna xxx")
    assert reason.isprintable()
    assert len(reason) < 120


def test_a_pause_file_that_is_no_file_is_a_pause_too_and_ends_without_a_fault(tmp_path: Path) -> None:
    (tmp_path / PAUSE_FILE).mkdir()
    switch = made(tmp_path)
    assert not switch.reading(1000, task_in_hand=False).on
    with pytest.raises(OSError):
        switch.resume()
    assert switch.reading(1000, task_in_hand=False).on


def test_a_pause_that_cannot_be_kept_holds_until_the_restart(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    switch = made(tmp_path / "state")
    with pytest.raises(OSError):
        switch.pause(None, "")
    assert not switch.reading(1000, task_in_hand=False).on


@given(st.floats())
def test_no_end_breaks_it(until: float) -> None:
    import tempfile

    clock = ManualClock()
    with tempfile.TemporaryDirectory() as folder:
        switch = made(Path(folder), clock)
        if clock.wall < until <= clock.wall + LONGEST_S:
            switch.pause(until, "")
            assert not switch.reading(clock.now, task_in_hand=False).on
        else:
            with pytest.raises(ValueError):
                switch.pause(until, "")
            assert switch.reading(clock.now, task_in_hand=False).on
        switch.paused_end()
        json.dumps(switch.paused_end(), allow_nan=False)


def test_a_pause_after_the_task_in_hand(tmp_path: Path) -> None:
    clock = ManualClock()
    switch = made(tmp_path, clock)
    switch.pause(clock.wall + 60, "", after_task=True)
    assert switch.reading(clock.now, task_in_hand=True).on
    assert switch.finishing
    assert not switch.reading(clock.now, task_in_hand=False).on
    assert not switch.reading(clock.now, task_in_hand=True).on, "a claim that comes late begins nothing"
    clock.go(61)
    assert switch.reading(clock.now, task_in_hand=True).on
    switch.pause(clock.wall + 60, "", after_task=True)
    assert not made(tmp_path, clock).reading(clock.now, task_in_hand=False).on, "after a restart nothing is in hand"
    clock.go(61)
    assert switch.reading(clock.now, task_in_hand=True).on, "its end came before the task's"
    assert not switch.finishing
    switch.pause(None, "", after_task=True)
    switch.resume()
    assert not switch.finishing


def test_the_fleet_hears_whose_pause_it_is_and_no_name(tmp_path: Path) -> None:
    switch = made(tmp_path)
    assert switch.for_the_fleet() == {}
    switch.pause(None, "mia")
    assert switch.for_the_fleet() == {"paused_by": "person", "paused_until": ""}
    switch.pause(None, "", for_s=7200)
    told = switch.for_the_fleet()
    assert told == {"paused_by": "operator", "paused_until": switch.paused_end()}
    switch.resume()
    assert switch.for_the_fleet() == {}


ORDERS_OF_THE_FLEET = [
    Order(want, 0.0, "ops@far", until, after_task)
    for want, until, after_task in (
        (Want.PAUSE, None, False), (Want.PAUSE, 1e10, False), (Want.PAUSE, 5.0, False), (Want.PAUSE, None, True),
        (Want.OFF, None, False), (Want.RUN, None, False),
    )
]


@given(
    orders=st.lists(st.tuples(st.sampled_from(ORDERS_OF_THE_FLEET), st.floats(1, 100)), max_size=8),
    person=st.sampled_from(["", "paused", "switched off", "broken", "blocked"]),
    restarts=st.booleans(),
)
def test_no_word_of_the_fleet_makes_a_node_lend_more(orders: list[tuple[Order, float]], person: str, restarts: bool) -> None:
    """Whatever comes in whatever order: without any it would lend at least as much (R1)."""
    with tempfile.TemporaryDirectory() as folder:
        clock = ManualClock()
        switch = AutomationSwitch(Path(folder), clock)
        switch.configure(person != "switched off", ["broken"] if person == "broken" else [])
        switch.blockers["tasks"] = "blocked" if person == "blocked" else ""
        if person == "paused":
            switch.pause(None, "anna")
        alone = switch.reading(clock.now, task_in_hand=False)
        newest, last = 0.0, None
        for order, at in orders:
            if switch.fleet.obey(replace(order, at=at)):
                assert at > newest
                newest, last = at, order
            else:
                assert at <= newest
        if restarts:
            switch.fleet = FleetPause(Path(folder) / FLEET_FILE, clock)
        seen = switch.reading(clock.now, task_in_hand=False)
        assert seen.on <= alone.on
        if person in ("paused", "broken"):
            assert (seen.on, seen.reason) == (alone.on, alone.reason)
        ended = last is None or last.want is Want.RUN or (last.until is not None and last.until <= clock.wall)
        assert seen.on == (alone.on and ended)


def test_the_fleets_pause_says_whose_it_is_and_what_ends_it(tmp_path: Path) -> None:
    clock = ManualClock()
    switch = AutomationSwitch(tmp_path, clock)
    switch.configure(True)

    def reason() -> str:
        return switch.reading(clock.now, task_in_hand=False).reason

    assert switch.fleet.obey(Order(Want.PAUSE, 1.0, "ops@far"))
    assert reason() == "paused by ops@far over the fleet, until `rae-node fleet resume`"
    assert switch.for_the_fleet()["paused_by"] == "operator"
    assert switch.fleet.obey(Order(Want.OFF, 2.0, "ops@far"))
    assert reason() == "paused by ops@far over the fleet, until `rae-node fleet enable`"
    switch.resume()  # the machine's own
    assert reason().startswith("paused by ops@far")
    assert switch.fleet.obey(Order(Want.RUN, 3.0, "ops@far"))
    assert reason() == ""
    switch.pause(None, "anna")
    assert switch.fleet.obey(Order(Want.PAUSE, 4.0, "ops@far", after_task=True))
    assert switch.for_the_fleet()["paused_by"] == "person"
    assert reason().startswith("paused by anna")
    switch.resume()
    assert switch.reading(clock.now, task_in_hand=True).on
    assert switch.first.note == "finishes the task in hand, takes no other, then pauses until `rae-node fleet resume`"
    assert not switch.reading(clock.now, task_in_hand=False).on


def test_a_damaged_note_of_the_fleets_word_pauses_until_the_next_one(tmp_path: Path) -> None:
    (tmp_path / FLEET_FILE).write_text("{")
    switch = AutomationSwitch(tmp_path, ManualClock())
    switch.configure(True)
    assert not switch.reading(0, task_in_hand=False).on
    assert switch.fleet.obey(Order(Want.RUN, 1.0, "ops@far"))
    assert switch.reading(0, task_in_hand=False).on
