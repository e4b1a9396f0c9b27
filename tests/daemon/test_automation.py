"""The operator's will: what switches the node off, in which order, and what a restart remembers of it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.clock import ManualClock

from supervisor.daemon.automation import LONGEST_S, PAUSE_FILE, Will


def made(tmp_path: Path, clock: ManualClock | None = None) -> Will:
    will = Will(tmp_path, clock or ManualClock())
    will.accept(True)
    return will


def test_the_first_of_what_switches_it_off_is_the_reason(tmp_path: Path) -> None:
    will = made(tmp_path)
    assert will.automation(1000).on
    steps = [
        (lambda: will.hindrances.update(key="no key"), "no key", "node"),
        (lambda: will.accept(False), "automation.enabled is false in runtime.yaml", "runtime.yaml"),
        (lambda: will.pause(None, ""), "paused, until `rae-node resume`", "operator"),
        (lambda: will.refuse(["node.yaml:1:1: bad", "more"]), "node.yaml:1:1: bad (and 1 more)", "configuration"),
        (lambda: setattr(will, "stopping", "stopping"), "stopping", "operator"),
    ]
    for switch_off, reason, source in steps:
        switch_off()  # type: ignore[no-untyped-call]
        automation = will.automation(1000)
        assert (automation.on, automation.reason, automation.source) == (False, reason, source)


def test_a_pause_with_an_end_says_so_and_ends_by_itself(tmp_path: Path) -> None:
    clock = ManualClock()
    will = made(tmp_path, clock)
    will.pause(clock.wall + 60, "anna")
    automation = will.automation(clock.now)
    assert automation.reason.startswith("paused by anna until ")
    assert automation.until_s == pytest.approx(clock.now + 60)
    assert will.paused_end() is not None
    clock.go(59.9)
    assert not will.automation(clock.now).on
    clock.go(0.2)
    assert will.automation(clock.now).on
    assert will.paused_end() is None
    assert not (tmp_path / PAUSE_FILE).exists()


def test_another_days_end_names_the_day(tmp_path: Path) -> None:
    clock = ManualClock()
    will = made(tmp_path, clock)
    end = clock.wall + 3 * 86400
    will.pause(end, "")
    assert time.strftime("%a %d %b", time.localtime(end)) in will.automation(clock.now).reason


@pytest.mark.parametrize("until", [None, 3600.0])
def test_a_pause_survives_a_restart(tmp_path: Path, until: float | None) -> None:
    clock = ManualClock()
    made(tmp_path, clock).pause(None if until is None else clock.wall + until, "anna")
    again = made(tmp_path, clock)
    assert not again.automation(clock.now).on
    assert again.paused_by == "anna"
    again.resume()
    assert made(tmp_path, clock).automation(clock.now).on


KEPT = [
    "", "{}", "[1]", "null", '{"until": "soon", "by": ""}', '{"until": NaN, "by": ""}', '{"until": 1e300, "by": ""}', "\x00",
    '{"until": Infinity, "by": ""}',
]


@pytest.mark.parametrize("text", KEPT)
def test_an_unreadable_pause_is_a_pause_without_an_end(tmp_path: Path, text: str) -> None:
    (tmp_path / PAUSE_FILE).write_text(text)
    will = made(tmp_path)
    assert will.automation(1000).reason == "paused, until `rae-node resume`"
    will.resume()
    assert will.automation(1000).on


def test_a_pause_file_that_is_no_file_is_a_pause_too_and_ends_without_a_fault(tmp_path: Path) -> None:
    (tmp_path / PAUSE_FILE).mkdir()
    will = made(tmp_path)
    assert not will.automation(1000).on
    with pytest.raises(OSError):
        will.resume()
    assert will.automation(1000).on


def test_a_pause_that_cannot_be_kept_holds_until_the_restart(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    will = made(tmp_path / "state")
    with pytest.raises(OSError):
        will.pause(None, "")
    assert not will.automation(1000).on


@given(st.floats())
def test_no_end_breaks_it(until: float) -> None:
    import tempfile

    clock = ManualClock()
    with tempfile.TemporaryDirectory() as folder:
        will = made(Path(folder), clock)
        if clock.wall < until <= clock.wall + LONGEST_S:
            will.pause(until, "")
            assert not will.automation(clock.now).on
        else:
            with pytest.raises(ValueError):
                will.pause(until, "")
            assert will.automation(clock.now).on
        will.paused_end()
        json.dumps(will.paused_end(), allow_nan=False)


def test_a_pause_after_the_task_in_hand(tmp_path: Path) -> None:
    clock, busy = ManualClock(), [True]
    will = made(tmp_path, clock)
    will.in_hand = lambda: busy[0]
    will.pause(clock.wall + 60, "", after_task=True)
    assert will.automation(clock.now).on
    assert will.finishing
    busy[0] = False
    assert not will.automation(clock.now).on
    busy[0] = True  # a claim that comes late begins nothing
    assert not will.automation(clock.now).on
    clock.go(61)
    assert will.automation(clock.now).on
    will.pause(clock.wall + 60, "", after_task=True)
    assert not made(tmp_path, clock).automation(clock.now).on  # after a restart nothing is in hand
    clock.go(61)
    assert will.automation(clock.now).on  # its end came before the task's
    assert not will.finishing
    will.pause(None, "", after_task=True)
    will.resume()
    assert not will.finishing
