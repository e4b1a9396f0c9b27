"""What a desktop says on its own bus: a real Mutter where there is one; the screen saver as a service."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest
from support.displays import missing
from support.session_services import Service, beside
from support.waiting import eventually

from supervisor.sensors.session_agent import session_bus as idle_bus
from supervisor.sensors.session_agent.inhibitors import SAVER
from supervisor.sensors.session_agent.session_bus import MUTTER, MUTTER_PATH, BusIdle
from supervisor.sensors.session_agent.source import boot_s


def idle(source: BusIdle) -> bool:
    return source.reading is not None and source.reading.idle_since_s is not None


def active(source: BusIdle) -> bool:
    return source.reading is not None and source.reading.idle_since_s is None


def test_mutter_signals_both_ways_and_is_asked_for_a_proof(tmp_path: Path) -> None:
    async def story(address: str, source: BusIdle) -> None:
        mutter = Service(address, MUTTER)
        ids = iter(range(1, 100))
        idle_ms = 0
        mutter.answers = {
            "AddIdleWatch": lambda m: ("u", [next(ids)]) if m.body == [300] else ("s", [""]),
            "AddUserActiveWatch": lambda m: ("u", [next(ids)]),
            "GetIdletime": lambda m: ("t", [idle_ms]),
        }
        await mutter.start()
        await eventually(lambda: active(source), "the probe")
        assert source.reading
        assert (source.reading.source, source.reading.pid) == ("Mutter's idle monitor", os.getpid())
        idle_ms, begun_s = 300, boot_s()
        await mutter.emit(MUTTER_PATH, "WatchFired", "u", 1)
        await eventually(lambda: idle(source) and mutter.asked[-1] == "GetIdletime", "idle")
        assert source.reading.idle_since_s is not None
        assert begun_s - 0.31 <= source.reading.idle_since_s <= boot_s() - 0.29
        await mutter.emit(MUTTER_PATH, "WatchFired", "u", 2)  # the watch of the beginning, which is over by now
        await mutter.emit(MUTTER_PATH, "WatchFired", "u", 3)
        await eventually(lambda: active(source), "a touch", 20)
        # A touch between the signal and the watch for it.
        idle_ms = 0
        await mutter.emit(MUTTER_PATH, "WatchFired", "u", 1)
        await eventually(lambda: mutter.asked.count("AddUserActiveWatch") == 3 and active(source), "the touch in between")
        idle_ms = 5000
        await source.prove()
        assert idle(source)
        mutter.answers["GetIdletime"] = ("s", ["soon"])
        await source.prove()
        assert source.reading is None
        await mutter.stop()

    beside(tmp_path, story)


def test_a_real_mutter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := missing("mutter"):
        pytest.skip(reason)

    async def story(address: str, source: BusIdle) -> None:
        runtime = tmp_path / "run"
        runtime.mkdir(mode=0o700)
        env = {
            "PATH": os.environ["PATH"], "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(runtime),
            "DBUS_SESSION_BUS_ADDRESS": address, "GSETTINGS_BACKEND": "memory", "LIBGL_ALWAYS_SOFTWARE": "1",
            "MUTTER_DEBUG_RESET_IDLETIME": "1",
        }
        argv = ["mutter", "--headless", "--wayland", "--no-x11", "--virtual-monitor", "320x240"]
        with subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as mutter:
            try:
                await eventually(lambda: idle(source), "idle", 20)
                assert source.reading
                assert source.reading.pid == mutter.pid
                reset = ["busctl", f"--address={address}", "call", MUTTER, MUTTER_PATH, MUTTER, "ResetIdletime"]
                assert await asyncio.to_thread(subprocess.call, reset) == 0
                await eventually(lambda: active(source), "a touch", 20)
                await eventually(lambda: idle(source), "idle again")
                await source.prove()
                assert idle(source)
            finally:
                mutter.kill()
        await eventually(lambda: source.reading is None, "its end")

    beside(tmp_path, story, 1.0)


@pytest.mark.parametrize("per_s", [1, 1000], ids=["seconds", "milliseconds"])
def test_the_screen_saver_is_asked_only_where_wanted_and_its_unit_is_proven(
    tmp_path: Path, per_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle_bus, "POLL_S", 0.5)

    async def story(address: str, source: BusIdle) -> None:
        saver = Service(address, SAVER)
        since_s = boot_s() - 60
        saver.answers["GetSessionIdleTime"] = lambda _: ("u", [int((boot_s() - since_s) * per_s)])
        await saver.start()
        await asyncio.sleep(0.1)
        assert saver.asked == []
        source.poll(True)
        await eventually(lambda: idle(source), "idle", 20)
        assert source.reading
        assert "asked every" in source.reading.source
        assert source.reading.idle_since_s == pytest.approx(since_s, abs=5)  # its own seconds, and the machine's pauses
        since_s = boot_s()

        def touched() -> bool:  # seen within the moment itself, or by the time that has passed since
            seen = source.reading
            return seen is not None and (seen.idle_since_s is None or seen.idle_since_s >= since_s - 1.2)

        await eventually(touched, "a touch", 20)
        source.poll(False)
        assert source.reading is None
        await saver.stop()

    beside(tmp_path, story)


def test_a_screen_saver_whose_time_does_not_pass_proves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle_bus, "PROBE_S", 0.05)

    async def story(address: str, source: BusIdle) -> None:
        saver = Service(address, SAVER)
        saver.answers["GetSessionIdleTime"] = ("u", [100_000])
        await saver.start()
        source.poll(True)
        await eventually(lambda: len(saver.asked) > 5, "questions")
        assert source.reading is None
        await saver.stop()

    beside(tmp_path, story)


def test_a_small_growth_proves_no_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody types, and by chance the second answer is one millisecond more than the first."""
    monkeypatch.setattr(idle_bus, "PROBE_S", 0.05)
    monkeypatch.setattr(idle_bus, "POLL_S", 0.5)

    async def story(address: str, source: BusIdle) -> None:
        saver = Service(address, SAVER)
        answers = iter([2, 3, *([90, 140] * 1000)])
        saver.answers["GetSessionIdleTime"] = lambda _: ("u", [next(answers)])
        await saver.start()
        source.poll(True)
        while len(saver.asked) < 12:
            await asyncio.sleep(0.01)
            assert not idle(source)
        await saver.stop()

    beside(tmp_path, story)


def test_a_unit_that_turns_out_wrong_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was taken for seconds goes on as milliseconds do."""
    monkeypatch.setattr(idle_bus, "PROBE_S", 0.05)
    monkeypatch.setattr(idle_bus, "POLL_S", 0.1)
    monkeypatch.setattr(idle_bus, "UNIT_S", 0.2)

    async def story(address: str, source: BusIdle) -> None:
        saver = Service(address, SAVER)
        value = 100
        saver.answers["GetSessionIdleTime"] = lambda _: ("u", [value])
        await saver.start()
        source.poll(True)
        await eventually(lambda: idle(source), "seconds, by chance")
        value = 190
        await eventually(lambda: source.reading is None, "doubt")
        await saver.stop()

    beside(tmp_path, story)


def test_a_screen_saver_that_goes_tells_of_no_touch_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last word was that nobody is there, which somebody who comes back would never change."""
    monkeypatch.setattr(idle_bus, "PROBE_S", 0.05)
    monkeypatch.setattr(idle_bus, "POLL_S", 0.1)
    monkeypatch.setattr(idle_bus, "UNIT_S", 0.2)

    async def story(address: str, source: BusIdle) -> None:
        for _ in range(2):
            since_s = boot_s() - 60
            saver = Service(address, SAVER)
            saver.answers["GetSessionIdleTime"] = lambda _, since_s=since_s: ("u", [int(boot_s() - since_s)])
            await saver.start()
            source.poll(True)
            await eventually(lambda: idle(source), "idle")
            await saver.stop()
            await eventually(lambda: source.reading is None, "its end")

    beside(tmp_path, story)


@pytest.mark.parametrize("member", ["AddIdleWatch", "AddUserActiveWatch", "GetIdletime"])
def test_a_mutter_that_is_busy_for_once_is_asked_again(member: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GNOME's shell answers nobody while it starts: without a second question its session would never be proven idle."""
    monkeypatch.setattr(idle_bus, "ANSWER_S", 0.1)
    monkeypatch.setattr(idle_bus, "AGAIN_S", 0.1)

    async def story(address: str, source: BusIdle) -> None:
        mutter = Service(address, MUTTER)
        ids = iter(range(1, 100))
        well = {
            "AddIdleWatch": lambda _: ("u", [next(ids)]), "AddUserActiveWatch": lambda _: ("u", [next(ids)]),
            "GetIdletime": ("t", [5000]),
        }  # fmt: skip
        mutter.answers = well | {member: None}
        await mutter.start()
        await eventually(lambda: member in mutter.asked, "the first question")
        assert not idle(source)
        mutter.answers = well
        await eventually(lambda: idle(source), "idle")
        if member == "AddIdleWatch":  # set once only
            return
        mutter.answers = well | {member: None}
        asked = mutter.asked.count(member)
        await mutter.emit(MUTTER_PATH, "WatchFired", "u", source._idle_watch)
        await eventually(lambda: mutter.asked.count(member) > asked and source.reading is None, "doubt")
        mutter.answers = well
        await eventually(lambda: idle(source), "idle again")
        await mutter.stop()

    beside(tmp_path, story)
