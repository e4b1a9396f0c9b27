"""What systemd is told, by a socket that plays its part around the real daemon."""

from __future__ import annotations

import itertools
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.running import SERVICE, NodeFolder, daemon
from support.waiting import until

pytestmark = pytest.mark.slow


class Listener:
    """NOTIFY_SOCKET: every message with the time it came at."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.got: list[tuple[float, dict[str, str]]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                raw = self._socket.recv(65536)
            except OSError:
                return
            fields = dict(line.partition("=")[::2] for line in raw.decode().splitlines())
            self.got.append((time.monotonic(), fields))

    def of(self, key: str) -> list[tuple[float, str]]:
        """When and what of one kind."""
        return [(at, fields[key]) for at, fields in self.got if key in fields]

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    there = Listener(tmp_path / "notify")
    yield there
    there.close()


def test_ready_status_watchdog_reload_and_stop(tmp_path: Path, listener: Listener) -> None:
    watchdog_s = 1.0
    folder = NodeFolder.make(tmp_path / "n", runtime={"safety": {"idle_required_minutes": 60, "detect_active_user": True}})
    env = {"NOTIFY_SOCKET": str(listener.path), "WATCHDOG_USEC": str(int(watchdog_s * 1e6))}
    with daemon(folder, env=env, argv=SERVICE) as node:
        until(lambda: listener.of("READY"), "READY=1")
        # what is ready has looked once, and knows where it is
        assert listener.of("STATUS")[0][1].partition(":")[0] in ("DISABLED", "IDLE_WAIT")
        until(lambda: len(listener.of("WATCHDOG")) >= 8, "the watchdog is fed", 20)
        fed = [at for at, _ in listener.of("WATCHDOG")]
        gaps = sorted(later - sooner for sooner, later in itertools.pairwise(fed))
        assert gaps[len(gaps) // 2] < watchdog_s, gaps
        texts = [text for _, text in listener.of("STATUS")]
        assert texts[-1].startswith("IDLE_WAIT: ")
        node.process.send_signal(signal.SIGHUP)
        until(lambda: listener.of("RELOADING"), "RELOADING=1")
        until(lambda: len(listener.of("READY")) == 2, "READY=1 after the reload")
        (reloading_at, _), (ready_at, _) = listener.of("RELOADING")[0], listener.of("READY")[1]
        assert reloading_at <= ready_at
        assert all("MONOTONIC_USEC" in fields for _, fields in listener.got if "RELOADING" in fields)
        assert node.stop() == 0
        until(lambda: listener.of("STOPPING"), "STOPPING=1")


def test_a_broken_configuration_is_ready_too_and_says_so(tmp_path: Path, listener: Listener) -> None:
    folder = NodeFolder.make(tmp_path / "n", runtime={"automation": {"enabled": "maybe"}})
    with daemon(folder, env={"NOTIFY_SOCKET": str(listener.path)}, argv=SERVICE) as node:
        until(lambda: listener.of("READY"), "READY=1")
        assert listener.of("STATUS")[-1][1].startswith("DISABLED: runtime.yaml:")
        node.stop()


def test_nobody_reads_and_the_node_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(path))
        folder = NodeFolder.make(tmp_path / "n")
        with daemon(folder, env={"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "40000"}, argv=SERVICE) as node:
            node.wait_for("READY")
            until(lambda: deaf.recv(1, socket.MSG_PEEK), "it was told")
            for _ in range(20):
                assert node.ask()["state"]
            assert node.stop() == 0
