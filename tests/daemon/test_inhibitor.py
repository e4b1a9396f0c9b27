"""The block locks, on a private bus where logind does as told."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from support.login1 import FakeLogin1, PrivateBus
from support.waiting import eventually

from supervisor.daemon.inhibitor import Inhibitor, InhibitRefused, LockReport, ReleaseFailed
from supervisor.linux.dbus import SystemBus

Story = Callable[[FakeLogin1, Inhibitor], Awaitable[None]]


@pytest.fixture
def private_bus(tmp_path: Path) -> Iterator[PrivateBus]:
    with PrivateBus(tmp_path) as daemon:
        yield daemon


def play(private_bus: PrivateBus, story: Story, mode: str = "required") -> list[int]:
    """Run a story between the inhibitor and its logind; how often on_change was called."""
    changes: list[int] = []

    async def run() -> None:
        fake = await FakeLogin1(private_bus.address).start()
        bus = SystemBus(private_bus.address, backoff_s=(0.01, 0.05))
        inhibitor = Inhibitor(bus, mode, on_change=lambda: changes.append(1))
        await bus.start()
        try:
            await story(fake, inhibitor)
        finally:
            await bus.stop()
            await fake.stop()

    asyncio.run(run())
    return changes


def test_one_lock_a_kind_in_block_mode_until_released(private_bus: PrivateBus) -> None:
    async def story(fake: FakeLogin1, inhibitor: Inhibitor) -> None:
        assert not inhibitor.held
        assert await inhibitor.release() == LockReport.NONE_HELD
        assert await inhibitor.take("task t1\n(llm)") == LockReport.TAKEN
        assert inhibitor.held
        why = f"task t1 (llm) (pid {os.getpid()})"
        assert [entry[:4] for entry in fake.locks()] == [[k, "rae-node", why, "block"] for k in ("sleep", "idle")]
        assert await inhibitor.take("again") == LockReport.HELD
        assert len(fake.locks()) == 2
        assert await inhibitor.release() == LockReport.RELEASED
        assert not inhibitor.held
        assert fake.locks() == []
        assert await inhibitor.release() == LockReport.NONE_HELD

    assert play(private_bus, story) == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("org.freedesktop.DBus.Error.AccessDenied", "polkit refuses the lock org.freedesktop.login1.inhibit-block-"),
        ("org.freedesktop.DBus.Error.InteractiveAuthorizationRequired", "set host.inhibitor to none in node.yaml"),
        ("org.freedesktop.DBus.Error.LimitsExceeded", "no lock on sleep: logind refuses Inhibit: as planned"),
    ],
)
def test_a_refusal_is_said_with_its_mend(private_bus: PrivateBus, error: str, words: str) -> None:
    async def story(fake: FakeLogin1, inhibitor: Inhibitor) -> None:
        fake.replies["Inhibit"] = error
        with pytest.raises(InhibitRefused) as refused:
            await inhibitor.take("task")
        assert words in str(refused.value)
        assert "\n" not in str(refused.value)
        assert not inhibitor.held

    play(private_bus, story)


def test_one_refused_kind_releases_the_other(private_bus: PrivateBus) -> None:
    async def story(fake: FakeLogin1, inhibitor: Inhibitor) -> None:
        fake.refused_kinds = {"idle"}
        with pytest.raises(InhibitRefused, match="inhibit-block-idle"):
            await inhibitor.take("task")
        assert fake.calls.count("Inhibit") == 2
        await eventually(lambda: not fake.locks(), "the lock on sleep given up")
        fake.refused_kinds = set()
        await inhibitor.take("task")
        assert inhibitor.held

    play(private_bus, story)


def test_no_bus_no_lock_and_no_traceback(private_bus: PrivateBus, caplog: pytest.LogCaptureFixture) -> None:
    async def story(fake: FakeLogin1, inhibitor: Inhibitor) -> None:
        private_bus.kill()
        with pytest.raises(InhibitRefused, match=r"no lock on sleep: .*system bus"):
            await inhibitor.take("task")

    play(private_bus, story)
    gc.collect()  # asyncio tells of an error that nobody asked for when it is collected
    assert caplog.text == ""


def test_none_does_nothing_and_says_so(private_bus: PrivateBus) -> None:
    async def story(fake: FakeLogin1, inhibitor: Inhibitor) -> None:
        assert await inhibitor.take("task") == LockReport.NONE_USED
        assert await inhibitor.release() == LockReport.NONE_USED
        assert not inhibitor.held
        assert "Inhibit" not in fake.calls

    play(private_bus, story, mode="none")


def test_a_logind_that_forgot_the_locks_means_they_are_lost(private_bus: PrivateBus) -> None:
    async def story(fake: FakeLogin1, inhibitor: Inhibitor) -> None:
        await inhibitor.take("task")
        await fake.stop()
        await eventually(lambda: inhibitor.lost, "the loss")
        assert not inhibitor.held
        second = await FakeLogin1(private_bus.address).start()
        await eventually(lambda: "ListInhibitors" in second.calls, "the question")
        await inhibitor._check  # the answer is heard
        assert inhibitor.lost == "the sleep lock is lost: logind was restarted"
        assert await inhibitor.release() == LockReport.RELEASED
        assert inhibitor.lost == ""
        await inhibitor.take("task 2")
        assert inhibitor.held
        await second.stop()

    assert play(private_bus, story)


def test_a_descriptor_held_elsewhere_is_a_release_that_failed(private_bus: PrivateBus) -> None:
    async def story(fake: FakeLogin1, inhibitor: Inhibitor) -> None:
        await inhibitor.take("task")
        copy = os.dup(inhibitor._locks[0].fd)
        with pytest.raises(ReleaseFailed, match="still lists the lock on sleep"):
            await inhibitor.release()
        assert not inhibitor.held
        os.close(copy)
        assert await inhibitor.release() == LockReport.RELEASED

    play(private_bus, story)


def test_a_release_that_logind_cannot_confirm_is_a_release(private_bus: PrivateBus) -> None:
    async def story(fake: FakeLogin1, inhibitor: Inhibitor) -> None:
        await inhibitor.take("task")
        fake.delays["ListInhibitors"] = 3600.0
        assert await inhibitor.release() == LockReport.UNCONFIRMED
        private_bus.kill()
        assert await inhibitor.release() == LockReport.UNCONFIRMED

    play(private_bus, story)
