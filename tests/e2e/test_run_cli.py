"""The commands from outside: exit codes, one line for every mistake, and what they say of a daemon that is down or mute."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.running import RAE_NODE, ROOT, NodeFolder, daemon

pytestmark = pytest.mark.slow

COMMANDS = [
    "run", "demo", "control", "status", "why", "top", "pause", "resume", "check-user", "check-gpu", "dry-run", "replay",
    "record", "timeline", "whatif", "diagram", "submit", "fleet", "bridge", "report", "verify", "doctor", "enable", "disable",
    "config check", "config schema",
]
# Those that ask the daemon.
CLIENTS = ["status", "status --json", "status --watch", "why", "top", "pause", "pause 2h", "resume", "diagram --highlight"]
WRONG = {
    "nope": "No such command",
    "status --nope": "No such option",
    "pause 5x": "allowed: a duration",
    "pause until 25:00": "allowed: a duration",
    "pause 0s": "allowed: a duration",
    "pause 99999999h": "below 10 years",
    "replay": "Missing argument",
    "check-user x": "unexpected extra argument",
    "control": "Missing option",
    "control --listen 0.0.0.0:1": "loopback",
    "diagram --format foo": "not one of",
    "demo --speed 100": "range",
    "demo --speed nan": "found nan, allowed: a number",
    "whatif --task-minutes nan": "found nan, allowed: a number",
    "submit x --timeout nan": "found nan, allowed: a number",
    "config schema foo": "not one of",
    "status --config /nonexistent": "no such folder",
}


def rae_node(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*RAE_NODE, *words], capture_output=True, text=True, cwd="/", timeout=60, check=False, **options)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_and_every_command_takes_a_configuration(command: str) -> None:
    done = rae_node(*command.split(), "--help")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "--config DIR" in done.stdout
    assert len(lines) > 6
    assert max(map(len, lines)) <= 80
    assert "exit " in done.stdout.lower() or command == "config schema", "its exit codes"


@pytest.mark.parametrize("words", WRONG)
def test_wrong_usage_is_exit_2_in_one_line(words: str) -> None:
    done = rae_node(*words.split())
    assert (done.returncode, done.stdout) == (2, ""), done
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert WRONG[words] in done.stderr


def test_without_a_command_the_help_is_shown() -> None:
    done = rae_node()
    assert done.returncode == 2
    assert all(f"{group}:" in done.stderr for group in ("Everyday", "Look into", "Set up", "A fleet"))


@pytest.mark.parametrize("command", CLIENTS)
def test_no_daemon_is_exit_3(tmp_path: Path, command: str) -> None:
    folder = NodeFolder.make(tmp_path)
    for stale in (False, True):
        if stale:
            (tmp_path / "run").mkdir()
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(tmp_path / "run/control.sock"))
        done = folder.cli(*command.split())
        assert (done.returncode, done.stdout) == (3, "")
        assert len(done.stderr.splitlines()) == 1
        assert "not running" in done.stderr


def test_a_broken_configuration_still_finds_the_daemon_or_says_that_there_is_none(tmp_path: Path) -> None:
    folder = NodeFolder.make(tmp_path)
    folder.put("runtime.yaml", "nonsense")
    assert folder.cli("status").returncode == 3


def test_a_daemon_that_hangs_is_exit_4(tmp_path: Path) -> None:
    folder = NodeFolder.make(tmp_path)
    with daemon(folder) as node:
        node.wait_up()
        os.kill(node.pid, signal.SIGSTOP)
        began_s = time.monotonic()
        asked = [subprocess.Popen([*RAE_NODE, *words.split(), "--config", str(tmp_path)], stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, text=True, cwd="/") for words in CLIENTS]
        for client in asked:
            out, errors = client.communicate(timeout=60)
            assert (client.returncode, out) == (4, "")
            assert "does not answer within 5 s" in errors
            assert len(errors.splitlines()) == 1
        assert time.monotonic() - began_s < 60  # not the time that it hangs
        os.kill(node.pid, signal.SIGCONT)
        assert folder.cli("status").returncode == 0


@pytest.mark.parametrize("answer", [b'{"v": 2, "ok": true}\n', b"hello\n", b"", b'{"v": 1', b"[" * 3000 + b"\n"])
def test_another_version_is_exit_4(tmp_path: Path, answer: bytes) -> None:
    folder = NodeFolder.make(tmp_path)
    (tmp_path / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "run/control.sock"))
        other.listen()

        def serve() -> None:
            peer, _ = other.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        done = folder.cli("status")
    assert done.returncode == 4
    assert len(done.stderr.splitlines()) == 1


def as_nobody(say: Callable[[], str]) -> str:
    """What `say` says, or raises, in a process of another user."""
    reads, writes = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            os.write(writes, say().encode())
        except BaseException as error:
            os.write(writes, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writes)
    with os.fdopen(reads) as said:
        return said.read()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # the child asks once, and is gone
def test_who_may_not_speak_is_told_so_and_gets_the_status() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    # not in tmp_path: each start of pytest closes the folder above it to others
    with tempfile.TemporaryDirectory() as base, daemon(NodeFolder.make(Path(base))) as node:
        Path(base).chmod(0o711)
        node.wait_up()
        assert as_nobody(node.state) in ("DISABLED", "IDLE_WAIT", "READY")
        assert "only root, the node's user and members of its group" in as_nobody(lambda: node.ask("pause")["error"])
        assert node.ask()["paused_until"] is None
        os.chmod(Path(base, "run/control.sock"), 0o600)
        assert as_nobody(lambda: node.ask()["status"]).startswith("DaemonUnresponsive: the daemon cannot be asked at ")
        assert as_nobody(lambda: node.ask()["status"]).endswith("Permission denied")


def test_ctrl_c_is_130_and_a_reader_that_left_is_no_matter(tmp_path: Path) -> None:
    NodeFolder.make(tmp_path)
    (tmp_path / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "run/control.sock"))
        mute.listen()
        argv = [*RAE_NODE, "status", "--config", str(tmp_path)]
        client = subprocess.Popen(argv, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/")
        mute.settimeout(60)
        peer, _ = mute.accept()
        with peer:
            client.send_signal(signal.SIGINT)
            out, errors = client.communicate(timeout=60)
        assert (client.returncode, out) == (130, "")
        assert "Traceback" not in errors
    for words in ("dry-run --json", "diagram --format svg", "replay tests/replays"):
        argv = [*RAE_NODE, *words.split(), "--config", str(tmp_path)]
        reads, writes = os.pipe()
        os.close(reads)
        done = subprocess.run(argv, stdout=writes, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
        os.close(writes)
        assert done.stderr == "", words
        assert done.returncode in (0, 1)


def test_a_fault_of_ours_is_one_line_without_a_traceback(tmp_path: Path) -> None:
    broken = (
        "import supervisor.cli.status as s, supervisor.cli.common as c\n"
        "import supervisor.linux.control_socket as k\n"
        "def ask(*a, **k): raise RuntimeError('as planned')\n"
        "k.ask = ask\n"
        "from supervisor.cli.main import main\n"
        "main()\n"
    )
    argv = [RAE_NODE[0], "-I", "-c", broken, "status", "--config", str(NodeFolder.make(tmp_path).path)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd="/", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == ["rae-node: RuntimeError: as planned (RAE_NODE_DEBUG=1 shows where)"]


@pytest.mark.parametrize("door", ["check_user_idle.py", "check_gpu_load.py"])
def test_the_doors_of_the_checks(tmp_path: Path, door: str) -> None:
    folder = NodeFolder.make(tmp_path)
    argv = ["/usr/bin/python3", str(ROOT / "deploy/agent" / door), "--config", str(tmp_path)]
    env = {**os.environ, **folder.environment}
    for text, code in (("", None), ("automation: 1\n", 1)):
        if text:
            folder.put("runtime.yaml", text)
        done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=60, check=False)
        first = done.stdout.splitlines()[0]
        assert done.returncode == (0 if first == "SAFE TO RUN" else 1)
        assert first == "SAFE TO RUN" or first.startswith("DO NOT RUN: ")
        assert done.stderr == ""
        assert code is None or (done.returncode == code and "runtime.yaml:1:" in first)
        options = {"capture_output": True, "text": True, "cwd": tmp_path, "env": env, "timeout": 60, "check": False}
        as_json = subprocess.run([*argv, "--json"], **options)
        answer = json.loads(as_json.stdout)
        assert set(answer) == {"safe", "reasons", "readings"}
        assert answer["safe"] is (as_json.returncode == 0)


def test_the_door_of_the_service_runs_the_node(tmp_path: Path) -> None:
    folder = NodeFolder.make(tmp_path)
    folder.constants.clear()  # the system's python3 runs the script alone
    with daemon(folder, argv=["/usr/bin/python3", str(ROOT / "deploy/agent/auto_runner.py")]) as node:
        node.wait_for("READY")
        assert node.stop() == 0
    folder.write(runtime={"automation": {"enabled": 1}})
    with daemon(folder, argv=["/usr/bin/python3", str(ROOT / "deploy/agent/auto_runner.py")]) as node:
        node.wait_for("DISABLED")
        assert node.stop() == 0
