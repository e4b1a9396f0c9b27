"""The control socket against peers of every kind: the loop goes on, and honest ones are answered."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.waiting import watched_loop

from supervisor.linux.control_socket import (
    MAX_PEERS,
    PROTOCOL,
    ControlServer,
    DaemonDown,
    DaemonUnresponsive,
    Peer,
    ask,
    permitted,
)


def status(_request: dict[str, Any], _peer: Peer) -> dict[str, Any]:
    return {"state": "READY"}


def pause(request: dict[str, Any], _peer: Peer) -> dict[str, Any]:
    if request.get("until") == "soon":
        raise ValueError("soon is no time")
    return {"status": "paused"}


def broken(_request: dict[str, Any], _peer: Peer) -> dict[str, Any]:
    raise KeyError("as planned")


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Path]:
    """A server, and a loop that must never be held up for half a second."""
    server = ControlServer(folder / "control.sock", {"status": status, "pause": pause, "broken": broken}, frozenset({"pause"}))
    await server.start()
    try:
        async with watched_loop() as held:
            yield folder / "control.sock"
    finally:
        await server.stop()
    assert held.longest_s < 0.5
    assert not (folder / "control.sock").exists()


def in_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(**arguments: Any) -> None:
        asyncio.run(asyncio.wait_for(test(**arguments), 30))

    return run


async def say(path: Path, raw: bytes, *, end: bool = False) -> bytes:
    """What comes back for these bytes, until the server closes."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(raw)
        if end:
            writer.write_eof()
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def asked(**fields: Any) -> bytes:
    return json.dumps({"v": PROTOCOL, "ask": "status", **fields}).encode() + b"\n"


ODD: list[tuple[bytes, str]] = [
    (b"\n", "JSON object"),
    (b"hello\n", "JSON object"),
    (b"\xff\xfe\x00\n", "JSON object"),
    (b"[" * 4000 + b"\n", "JSON object"),
    (b'"status"\n', "version"),
    (b"[]\n", "version"),
    (b"null\n", "version"),
    (b'{"ask": "status"}\n', "version"),
    (asked(v=2), "version"),
    (asked(v="1"), "version"),
    (asked(ask="shutdown"), "unknown question 'shutdown'"),
    (asked(ask=["status"]), "unknown question ['status']"),
    (asked(ask=None), "unknown question None"),
    (asked(ask="pause", until="soon"), "soon is no time"),
    (asked(ask="broken"), "internal error: KeyError"),
    (b"x" * 1_000_000 + b"\n", "JSON object"),
    (b"x" * 5000, "JSON object"),
]


@pytest.mark.parametrize(("raw", "error"), ODD, ids=range(len(ODD)))
def test_what_makes_no_sense_is_told_so(tmp_path: Path, raw: bytes, error: str) -> None:
    async def test() -> None:
        async with serving(tmp_path) as path:
            answer = await say(path, raw)
            # a peer that goes on talking may find the door shut before it has read the answer
            if answer or len(raw) < 4096:
                refusal = json.loads(answer)
                assert refusal["ok"] is False
                assert refusal["v"] == PROTOCOL
                assert error in refusal["error"]
            assert json.loads(await say(path, asked()))["state"] == "READY"

    asyncio.run(asyncio.wait_for(test(), 30))


@in_loop
async def test_half_a_line_and_then_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as path:
        began_s = time.monotonic()
        assert await say(path, b'{"v": 1, "as') == b""
        assert 1.5 < time.monotonic() - began_s < 6
        assert json.loads(await say(path, b'{"v": 1, "ask": "status"}', end=True))["ok"] is True


@in_loop
async def test_a_crowd_that_says_nothing_keeps_nobody_out(tmp_path: Path) -> None:
    async with serving(tmp_path) as path:
        crowd = [await asyncio.open_unix_connection(path) for _ in range(3 * MAX_PEERS)]
        began_s = time.monotonic()
        for _ in range(5):
            assert json.loads(await say(path, asked()))["ok"] is True
        assert time.monotonic() - began_s < 1
        for _, writer in crowd:
            writer.close()


def test_two_hundred_clients_of_every_kind_do_not_hold_up_the_daemons_loop() -> None:
    """Loosely, for the machine is shared: the bench's figure is the one to look at."""
    bench = Path(__file__).parents[1] / "bench/crowd.py"
    command = [sys.executable, str(bench), "--json", "--seconds", "1", "--rounds", "2"]
    result = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=180).stdout)
    assert min(seen["cpu_s"] for seen, _ in result["rounds"]) < 0.050, "computed at one go"
    assert min(seen["loop_s"] for seen, _ in result["rounds"]) < 0.250, "blocked, or computed"
    for _, crowd in result["rounds"]:
        assert crowd["answered"] > 10
        assert crowd.get("unanswered", 0) <= crowd["answered"] / 20


def test_a_client_that_is_let_go_unheard_asks_again(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "control.sock"))
        server.listen()

        def serve() -> None:
            for turn in range(3):
                peer, _ = server.accept()
                with peer:
                    if turn == 2:
                        peer.recv(4096)
                        peer.sendall(b'{"v": 1, "ok": true}\n')

        threading.Thread(target=serve, daemon=True).start()
        assert ask(tmp_path, "status")["ok"] is True


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize(
    ("groups", "may"),
    [([], False), ([7], False), ([os.getgid()], True), ([*range(60000, 60200), os.getgid()], True)],
    ids=["no group", "another", "ours", "ours among many"],
)
def test_supplementary_groups_count(groups: list[int], may: bool) -> None:
    # not in tmp_path: each start of pytest closes the folder above it to others
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as server:
        path = Path(folder, "s")
        path.parent.chmod(0o711)
        server.bind(str(path))
        path.chmod(0o666)
        server.listen()
        server.settimeout(30)
        become = f"import os, socket; os.setgroups({groups}); os.setgid(65534); os.setuid(65534)"
        say = f"s = socket.socket(socket.AF_UNIX); s.connect({str(path)!r}); s.recv(1)"
        with subprocess.Popen([sys.executable, "-I", "-c", f"{become}; {say}"]) as other:
            peer, _ = server.accept()
            with peer:
                assert permitted(peer) is may
            other.wait(30)


@in_loop
async def test_a_task_may_neither_command_nor_report(tmp_path: Path) -> None:
    heard: list[dict[str, Any]] = []

    class Receiver:
        def receive(self, message: dict[str, Any]) -> None:
            heard.append(message)

        def closed(self) -> None:
            pass

    for task in (True, False):
        server = ControlServer(
            tmp_path / "control.sock", {"status": status, "pause": pause}, frozenset({"pause"}),
            {"presence": lambda *_: (Receiver(), {})}, lambda pid, task=task: pid == os.getpid() and task,
        )  # fmt: skip
        await server.start()
        answers = {}
        for line in ("ask status", "ask pause", "tell presence"):
            kind, name = line.split()
            reader, writer = await asyncio.open_unix_connection(tmp_path / "control.sock")
            writer.write(json.dumps({"v": PROTOCOL, kind: name}).encode() + b"\n")
            answers[line] = json.loads(await reader.readline())["ok"]
            writer.close()
        await server.stop()
        assert answers == {"ask status": True, "ask pause": not task, "tell presence": not task}
        assert len(heard) == (not task)


@in_loop
async def test_a_report_is_taken_while_another_peer_holds_the_turn(tmp_path: Path) -> None:
    """The person's way to the freeze: neither a slow answer to somebody else nor a full house delays a report."""
    received = asyncio.Queue[dict[str, Any]]()

    class Receiver:
        def receive(self, message: dict[str, Any]) -> None:
            received.put_nowait(message)

        def closed(self) -> None:
            pass

    streams = {"presence": lambda *_: (Receiver(), {})}
    server = ControlServer(tmp_path / "control.sock", {"status": status}, frozenset(), streams)
    await server.start()
    reader, writer = await asyncio.open_unix_connection(tmp_path / "control.sock")
    report = json.dumps({"v": PROTOCOL, "tell": "presence"}).encode() + b"\n"
    writer.write(report)
    assert json.loads(await reader.readline())["ok"]
    async with server._turn:
        waiting = [asyncio.ensure_future(say(tmp_path / "control.sock", asked())) for _ in range(2 * MAX_PEERS)]
        writer.write(report)
        async with asyncio.timeout(5):
            assert len([await received.get(), await received.get()]) == 2
    await asyncio.gather(*waiting)
    writer.close()
    await server.stop()


@in_loop
async def test_a_crowd_that_asks_is_answered(tmp_path: Path) -> None:
    async with serving(tmp_path) as path:
        answers = await asyncio.gather(*(say(path, asked()) for _ in range(50)))
        assert all(json.loads(answer)["ok"] for answer in answers)


@in_loop
async def test_a_peer_that_reads_nothing_or_leaves(tmp_path: Path) -> None:
    async with serving(tmp_path) as path:
        for _ in range(10):
            peer = socket.socket(socket.AF_UNIX)
            peer.connect(str(path))
            peer.sendall(asked())
            peer.close()
        silent = socket.socket(socket.AF_UNIX)
        silent.connect(str(path))
        silent.sendall(asked() * 100)
        assert json.loads(await say(path, asked()))["ok"] is True
        silent.close()


@in_loop
async def test_it_takes_the_place_of_a_dead_one_and_anybody_may_connect(tmp_path: Path) -> None:
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / "control.sock"))
    dead.close()
    async with serving(tmp_path) as path:
        assert oct(path.stat().st_mode)[-3:] == "666"
        assert json.loads(await say(path, asked(ask="pause")))["status"] == "paused"


def fake(path: Path, kind: str) -> None:
    """Put something into the place of the socket, or change it."""
    here = path.with_name("here")
    match kind:
        case "removed":
            path.unlink()
        case "moved":
            path.rename(path.with_name("elsewhere"))
        case "a socket":
            with socket.socket(socket.AF_UNIX) as other:
                other.bind(str(here))
            here.replace(path)
        case "a file":
            here.write_text("")
            here.replace(path)
        case "a pipe":
            os.mkfifo(here)
            here.replace(path)
        case "a symbolic link":
            here.symlink_to("/dev/null")
            here.replace(path)
        case "a folder":
            path.unlink()
            (path / "in it").mkdir(parents=True)
        case "0000":
            path.chmod(0)
        case "folder removed":
            path.unlink()
            path.parent.rmdir()
        case "folder moved":
            path.parent.rename(path.parent.with_name("elsewhere"))


FAKES = {
    "removed": "somebody had removed it", "moved": "somebody had removed it", "a socket": "a socket was in its place",
    "a file": "a file was in its place", "a pipe": "a pipe was in its place",
    "a symbolic link": "a symbolic link was in its place", "a folder": "", "0000": "somebody had changed its mode to 0000",
    "folder removed": "somebody had removed it", "folder moved": "somebody had removed it",
}  # fmt: skip


@pytest.mark.parametrize("kind", FAKES)
@pytest.mark.parametrize("when", ["before the start", "while it listens"])
@in_loop
async def test_whatever_is_in_its_place_it_listens_again_and_says_so(tmp_path: Path, when: str, kind: str) -> None:
    path, told = tmp_path / "run/control.sock", asyncio.Queue[str]()
    if when == "before the start":
        path.parent.mkdir()
        path.touch()
        fake(path, kind)
        path.parent.mkdir(exist_ok=True)
        (path.with_name(".control.sock.new") / "in it").mkdir(parents=True)
    server = ControlServer(path, {"status": status}, frozenset(), on_repair=told.put_nowait)
    await server.start()
    try:
        if when == "while it listens":
            assert json.loads(await say(path, asked()))["ok"]
            fake(path, kind)
            text = await told.get()
            assert FAKES[kind] in text
            assert str(path) in text
        assert json.loads(await say(path, asked()))["ok"]
        assert oct(path.stat().st_mode)[-3:] == "666"
        assert told.empty()
    finally:
        await server.stop()
    assert not path.exists()


@in_loop
async def test_who_removes_it_again_and_again_is_not_raced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time it is made again after the pause; what comes between is one time, and nothing looks at it meanwhile."""
    monkeypatch.setattr("supervisor.linux.control_socket.MADE_AGAIN_S", 0.5)
    told, path = asyncio.Queue[str](), tmp_path / "control.sock"
    server = ControlServer(path, {"status": status}, frozenset(), on_repair=told.put_nowait)
    await server.start()
    path.unlink()
    await told.get()
    for _ in range(20):
        path.unlink(missing_ok=True)
        await asyncio.sleep(0.01)
    assert told.empty()
    assert not path.exists()
    await told.get()
    assert json.loads(await say(path, asked()))["ok"]
    assert told.empty()
    await server.stop()


@in_loop
async def test_where_it_cannot_be_made_again_that_is_told_once_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supervisor.linux.control_socket.MADE_AGAIN_S", 0.05)
    told, run = asyncio.Queue[str](), tmp_path / "run"
    server = ControlServer(run / "control.sock", {"status": status}, frozenset(), on_repair=told.put_nowait)
    await server.start()
    run.rename(tmp_path / "elsewhere")
    run.touch()
    assert "cannot be made again: File exists" in await told.get()
    await asyncio.sleep(0.2)
    assert told.empty()
    run.unlink()
    assert "was made again" in await told.get()
    assert json.loads(await say(run / "control.sock", asked()))["ok"]
    await server.stop()


@in_loop
async def test_without_inotify_it_looks_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supervisor.linux.control_socket.UNWATCHED_S", 0.05)
    monkeypatch.setattr("supervisor.linux.inotify.Watcher.add", lambda *_: False)
    told, path = asyncio.Queue[str](), tmp_path / "control.sock"
    server = ControlServer(path, {"status": status}, frozenset(), on_repair=told.put_nowait)
    await server.start()
    await asyncio.sleep(0.2)
    assert told.empty()
    path.unlink()
    assert "was made again" in await told.get()
    await server.stop()


@in_loop
async def test_a_report_stream_outlives_its_socket(tmp_path: Path) -> None:
    """The person's way to the freeze does not break because somebody removes a file."""
    heard, told, path = asyncio.Queue[dict[str, Any]](), asyncio.Queue[str](), tmp_path / "control.sock"

    class Receiver:
        def receive(self, message: dict[str, Any]) -> None:
            heard.put_nowait(message)

        def closed(self) -> None:
            pass

    server = ControlServer(path, {}, frozenset(), {"presence": lambda *_: (Receiver(), {})}, on_repair=told.put_nowait)
    await server.start()
    _, writer = await asyncio.open_unix_connection(path)
    report = json.dumps({"v": PROTOCOL, "tell": "presence"}).encode() + b"\n"
    writer.write(report)
    await heard.get()
    path.unlink()
    await told.get()
    writer.write(report)
    assert await heard.get()
    writer.close()
    await server.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_socket_of_somebody_else_is_not_asked(tmp_path: Path) -> None:
    """A client would tell "paused" while nothing is paused."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "control.sock"))
        os.seteuid(65534)
        try:
            server.listen()
        finally:
            os.seteuid(0)
        with pytest.raises(DaemonUnresponsive, match=r"a process of uid 65534 listens at .*, which is not the node's"):
            ask(tmp_path, "pause")


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(DaemonDown):
        ask(tmp_path, "status")
    with pytest.raises(DaemonDown):
        ask(tmp_path / "missing", "status")
    (tmp_path / "file").write_text("")
    with pytest.raises(DaemonDown):
        ask(tmp_path / "file", "status")


def test_a_trickling_daemon_is_given_up_in_time(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "control.sock"))
        server.listen()

        def trickle() -> None:
            peer, _ = server.accept()
            with peer:
                try:
                    for _ in range(100):
                        peer.sendall(b" ")
                        time.sleep(0.05)
                except OSError:
                    pass

        threading.Thread(target=trickle, daemon=True).start()
        began_s = time.monotonic()
        with pytest.raises(DaemonUnresponsive):
            ask(tmp_path, "status", timeout_s=0.5)
        assert time.monotonic() - began_s < 1.5


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    for _ in range(5):
        with pytest.raises(DaemonDown):
            ask(tmp_path, "status")
    left = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            left.append(os.readlink(f"/proc/self/fd/{name}"))
    assert [place for place in left if place.startswith(str(tmp_path))] == []
