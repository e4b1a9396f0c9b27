"""The inotify watcher: events by path, watches that end, and a kernel that gives no instance or no watch."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from inotify_simple import INotify
from support.waiting import eventually

from supervisor.linux import inotify
from supervisor.linux.inotify import Event, Watcher, flags


def refuse(**_: object) -> None:
    raise OSError(24, "Too many open files")


class Watchless(INotify):
    """inotify whose user has no watches left."""

    def add_watch(self, *_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")


def test_events_name_the_watched_file_or_the_entry(tmp_path: Path) -> None:
    seen: list[Event] = []

    async def scene() -> None:
        with Watcher(seen.extend) as watcher:
            assert watcher.add(tmp_path, flags.CREATE)
            (tmp_path / "a").write_text("")
            await eventually(lambda: [event.path for event in seen] == [f"{tmp_path}/a"])
            assert watcher.add(tmp_path / "a", flags.OPEN)
            assert watcher.watched == {str(tmp_path), f"{tmp_path}/a"}
            (tmp_path / "a").read_text()
            (event,) = watcher.read()
            assert (event.path, event.mask) == (f"{tmp_path}/a", flags.OPEN)
            (tmp_path / "a").unlink()
            assert [event.gone for event in watcher.read()] == [True]
            assert watcher.watched == {str(tmp_path)}

    asyncio.run(scene())


def test_a_removed_watch_reports_nothing(tmp_path: Path) -> None:
    async def scene() -> None:
        with Watcher(lambda _: None) as watcher:
            watcher.add(tmp_path, flags.CREATE)
            watcher.remove(tmp_path)
            (tmp_path / "a").write_text("")
            assert (watcher.read(), watcher.watched) == ([], set())

    asyncio.run(scene())


def test_dropped_events_are_an_event_without_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        with Watcher(lambda _: None) as watcher:
            monkeypatch.setattr(INotify, "read", lambda *_, **__: [(-1, int(flags.Q_OVERFLOW), 0, "")])
            assert watcher.read() == [Event("", flags.Q_OVERFLOW, overflow=True)]

    asyncio.run(scene())


@pytest.mark.parametrize("lacking", [refuse, Watchless], ids=["instance", "watch"])
def test_what_the_kernel_refuses_is_no_error(lacking: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inotify, "INotify", lacking)

    async def scene() -> None:
        watcher = Watcher(lambda _: None)
        watcher.open()
        assert not watcher.add(tmp_path, flags.CREATE)
        assert (watcher.read(), watcher.is_open) == ([], lacking is Watchless)
        watcher.remove(tmp_path)
        watcher.close()
        watcher.close()

    asyncio.run(scene())
