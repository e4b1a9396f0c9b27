"""Who may ask the daemon what: docs/security.md has the same table. And what it does when its socket is gone."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.running import NodeFolder, daemon
from support.waiting import until

from supervisor.linux.control_socket import PROTOCOL, SOCKET_NAME, ask

pytestmark = pytest.mark.slow
ANNA, BERTA = 60001, 60002


def as_user(uid: int, work: Callable[[], Any]) -> Any:
    """What `work` returns in a process of another user."""
    reads, writes = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            os.write(writes, json.dumps(work()).encode())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writes)
    with os.fdopen(reads, "rb") as file:
        raw = file.read()
    os.waitpid(pid, 0)
    return json.loads(raw)


def report_as(uid: int, run: Path) -> socket.socket:
    """A session agent of that user, which stays connected."""
    peer = socket.socket(socket.AF_UNIX)
    os.setegid(uid)
    os.seteuid(uid)
    try:
        peer.connect(str(run / SOCKET_NAME))
    finally:
        os.seteuid(0)
        os.setegid(0)
    report = {"v": PROTOCOL, "tell": "presence", "sessions": [{"id": "7", "source": "x11", "idle": 5.0}]}
    peer.sendall(json.dumps(report).encode() + b"\n")
    assert json.loads(peer.recv(65536))["ok"]
    return peer


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_who_may_ask_what() -> None:
    # not in tmp_path: pytest closes the folder above it to others
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o711)
        folder = NodeFolder.make(Path(place, "node"))
        folder.path.chmod(0o711)
        run = folder.path / "run"
        with daemon(folder) as node:
            node.wait_up()
            with report_as(ANNA, run), report_as(BERTA, run):
                asked = {uid: as_user(uid, lambda: {name: ask(run, name) for name in ("status", "desktop", "pause")})
                         for uid in (0, ANNA, BERTA, 60003)}  # fmt: skip
        reports = {uid: [report["uid"] for report in answers["desktop"]["desktop"]] for uid, answers in asked.items()}
        assert reports == {0: [ANNA, BERTA], ANNA: [ANNA], BERTA: [BERTA], 60003: []}
        assert [uid for uid, answers in asked.items() if answers["pause"]["ok"]] == [0]
        whole, part = asked[0]["status"], asked[60003]["status"]
        assert whole["presence"] != []
        assert whole["recent"] != []
        assert (part["presence"], part["contradictions"], part["recent"]) == ([], [], [])
        assert whole.keys() == part.keys()
        assert part["state"]
        assert part["guards"] != []


def test_a_daemon_whose_socket_is_taken_listens_again_and_says_so_everywhere(tmp_path: Path) -> None:
    folder = NodeFolder.make(tmp_path)
    with daemon(folder) as node:
        node.wait_up()
        path = tmp_path / "run" / SOCKET_NAME
        with socket.socket(socket.AF_UNIX) as fake:
            fake.bind(str(tmp_path / "fake"))
            (tmp_path / "fake").replace(path)
            until(node.look, "an answer of the daemon itself")
        text = f"the control socket {path} was made again: a socket was in its place"
        assert any(text in note for note in node.ask()["notes"])
        assert text in " ".join(folder.cli("status").stdout.split())
        until(lambda: text in node.said, "a line on stderr")
        assert any(line.get("note") == text for line in folder.journal())
        assert folder.cli("timeline").returncode == 0
        folder.replays_clean()
