"""Files and answers that somebody has forged: no command hangs on them, and no terminal obeys them."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest
from support.running import RAE_NODE, SERVICE, NodeFolder, daemon
from support.waiting import until

pytestmark = pytest.mark.slow

# A title for the window, "clear the screen" in one byte, and text from right to left.
EVIL = "\x1b]0;owned\x07\x9b2J\u202e"
OBEYED = re.compile("\x1b]|\x07|\x9b|\u202e")


def forged(value: Any) -> Any:
    """Every text with what a terminal would obey, before and after it."""
    if isinstance(value, str):
        return f"{EVIL}{value}{EVIL}"
    if isinstance(value, dict):
        return {name: inner if name in ("since", "time") else forged(inner) for name, inner in value.items()}
    return [forged(inner) for inner in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> tuple[NodeFolder, dict[str, Any]]:
    """A node that has run: its folder with a journal, and its last answer."""
    folder = NodeFolder.make(tmp_path_factory.mktemp("lived"))
    with daemon(folder) as node:
        node.wait_for("READY")
        folder.cli("pause", "2h")
        answer = node.ask()
        node.stop()
    return folder, answer


@contextmanager
def liar(runtime: Path, answer: dict[str, Any]) -> Iterator[None]:
    """A process at the control socket that gives the same answer to everything."""
    runtime.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        (runtime / "control.sock").unlink(missing_ok=True)
        listener.bind(os.path.relpath(runtime / "control.sock"))
        listener.listen(10)
        raw = json.dumps(answer).encode() + b"\n"

        def serve() -> None:
            with suppress(OSError):
                while True:
                    peer, _ = listener.accept()
                    with peer:
                        peer.recv(65536)
                        peer.sendall(raw)

        server = threading.Thread(target=serve, daemon=True)
        server.start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
        server.join(5)


def on_terminal(argv: list[str], env: dict[str, str], enough: Callable[[bytes], object]) -> bytes:
    """What a program writes to a terminal of 100 × 30, until that is enough or it ends."""
    pid, leader = pty.fork()
    if pid == 0:
        os.execvpe(argv[0], argv, {**os.environ, **env, "TERM": "xterm", "LC_ALL": "C.UTF-8"})
    ioctl(leader, termios.TIOCSWINSZ, struct.pack("4H", 30, 100, 0, 0))
    wrote, until_s = b"", time.monotonic() + 30
    with suppress(OSError):  # EIO: it has ended
        while not enough(wrote) and time.monotonic() < until_s:
            if select.select([leader], [], [], 0.1)[0]:
                wrote += os.read(leader, 65536)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(leader)
    return wrote


ASKING = ["status", "status --json", "why", "why --json", "top", "pause", "resume", "doctor", "report", "check-user"]


@pytest.mark.parametrize("command", ASKING)
def test_no_answer_of_a_daemon_commands_a_terminal(
    lived: tuple[NodeFolder, dict[str, Any]], command: str
) -> None:
    folder, answer = lived
    lie = {**forged(answer), "v": 1, "ok": True}
    if command == "check-user":  # it reads this guard alone
        lie["guards"] = [{"name": "user_away", "ok": None, "reason": EVIL}]
    with liar(folder.path / "run", lie):
        done = folder.cli(*command.split())
        assert "owned" in done.stdout, "the lie was shown"
        assert not OBEYED.search(done.stdout + done.stderr)
        assert "Traceback" not in done.stderr
        if command.endswith("--json"):
            assert json.loads(done.stdout)["state"] == forged(answer["state"])
    with liar(folder.path / "run", {"v": 1, "ok": False, "error": EVIL}):
        done = folder.cli(*command.split())
        assert not OBEYED.search(done.stdout + done.stderr)


@pytest.mark.parametrize("command", ["top", "status --watch", "status"])
def test_nor_where_it_is_drawn(lived: tuple[NodeFolder, dict[str, Any]], command: str) -> None:
    folder, answer = lived
    with liar(folder.path / "run", {**forged(answer), "v": 1, "ok": True}):
        argv = [*RAE_NODE, *command.split(), "--config", str(folder.path)]
        wrote = on_terminal(argv, folder.environment, lambda wrote: wrote.count(b"owned") > 8)
    assert b"owned" in wrote
    assert b"\x1b[" in wrote or command == "status", "the command's own drawing passes"
    assert not OBEYED.search(wrote.decode(errors="replace"))
    assert rb"\x1b[" not in wrote, "and is not written out"


READING = [
    "timeline", "replay LOGS", "whatif --set safety.cooldown_minutes=5", "diagram --from LOGS",
    "record --from 2000-01-01 --to 2100-01-01 OUT LOGS",
]  # fmt: skip


def words(command: str, folder: Path) -> list[str]:
    places = {"LOGS": str(folder / "logs"), "OUT": str(folder / "out.yaml")}
    return [places.get(word, word) for word in command.split()]


@pytest.mark.parametrize("keep", ["kind v time", "kind v time from to state row effect"], ids=["all", "what is no name"])
@pytest.mark.parametrize("command", READING)
def test_no_journal_commands_a_terminal(
    lived: tuple[NodeFolder, dict[str, Any]], tmp_path: Path, command: str, keep: str
) -> None:
    names = keep.split()
    lines = [{name: value if name in names else forged(value) for name, value in line.items()} for line in lived[0].journal()]
    folder = NodeFolder.make(tmp_path)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/decisions-2026-01-01.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    argv = words(command, tmp_path)
    done = folder.cli(*argv)
    assert not OBEYED.search(done.stdout + done.stderr)
    assert "Traceback" not in done.stderr
    assert done.stdout + done.stderr
    wrote = on_terminal([*RAE_NODE, *argv, "--config", str(tmp_path)], folder.environment, lambda _: False)
    assert not OBEYED.search(wrote.decode(errors="replace"))


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a file without end"])
@pytest.mark.parametrize("command", READING)
def test_what_is_no_journal_hangs_no_command(
    lived: tuple[NodeFolder, dict[str, Any]], tmp_path: Path, command: str, kind: str
) -> None:
    folder, odd = NodeFolder.make(tmp_path), tmp_path / "logs/decisions-2026-01-01.jsonl"
    odd.parent.mkdir()
    if kind == "a pipe":
        os.mkfifo(odd)
    elif kind == "a device":
        odd.symlink_to("/dev/zero")
    else:
        odd.touch()
        os.truncate(odd, 1 << 40)
    done = folder.cli(*words(command, tmp_path), timeout_s=20)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert str(odd) in line
    assert ("it is larger than" if kind == "a file without end" else f"it is {kind}, not a plain file") in line


def pipe(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)


def test_a_daemon_lives_with_pipes_in_the_place_of_its_files(tmp_path: Path) -> None:
    """It starts, is paused because nobody knows better, says what is wrong, and takes a pause and its end."""
    folder = NodeFolder.make(tmp_path)
    today = time.strftime("%Y-%m-%d")
    for name in ("state/pause.json", "state/.pause.json.new", "state/task.json", f"logs/decisions-{today}.jsonl",
                 f"logs/rae-node-{today}.log"):  # fmt: skip
        pipe(tmp_path / name)
    with daemon(folder, argv=SERVICE) as node:
        node.wait_for("DISABLED")
        answer = node.ask()
        assert "pause.json cannot be read: it is a pipe, not a plain file" in answer["reason"]
        assert any("decisions cannot be logged" in note and "it is a pipe" in note for note in answer["notes"])
        assert folder.cli("pause").stdout.strip() == "paused, until `rae-node resume`"
        assert json.loads((tmp_path / "state/pause.json").read_text())["until"] is None
        assert folder.cli("resume").stdout.strip() == "the node is on"
        assert node.stop() == 0
    assert "Traceback" not in node.said


def test_a_forged_pause_reaches_neither_terminal_nor_systemd_nor_journal(tmp_path: Path) -> None:
    folder = NodeFolder.make(tmp_path)
    (tmp_path / "state").mkdir()
    (tmp_path / "state/pause.json").write_text(json.dumps({"v": 1, "until": None, "by": EVIL + "root"}))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(os.path.relpath(tmp_path / "notify"))
        with daemon(folder, argv=SERVICE, env={"NOTIFY_SOCKET": str(tmp_path / "notify")}) as node:
            node.wait_for("DISABLED")
            shown = folder.cli("status").stdout + folder.cli("pause", "2h").stdout
            until(lambda: "operator: pause" in node.said, "the line about the pause")
            node.stop()
        told = b""
        with suppress(BlockingIOError):
            while True:
                told += systemd.recv(65536, socket.MSG_DONTWAIT) + b"\n"
    logs = "".join(path.read_text() for path in (tmp_path / "logs").iterdir())
    assert "paused by root" in shown
    assert b"STATUS=DISABLED: paused by root" in told
    for text in (shown, told.decode(), node.said, logs):
        assert not OBEYED.search(text)
