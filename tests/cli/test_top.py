"""`top`: what it shows at every size, and the whole of it in a real terminal, with a daemon that dies and one that hangs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from support.running import RAE_NODE, NodeFolder, daemon
from support.terminal import terminal

from supervisor.cli import top
from supervisor.cli.common import fit
from supervisor.cli.top_view import BAR, KEYS, LastAnswer, bar, screen
from supervisor.linux import control_socket as control

GUARDS = ("automation_on", "user_away", "gpu_free", "cpu_free", "host_fit", "task_claimed", "task_over", "task_gone",
          "cooldown_over")


def answer(**changes: Any) -> dict[str, Any]:
    """What the daemon says, with everything as long as it may be."""
    guards = [
        {"name": name, "ok": name != "user_away", "reason": f"{name} is as it is, said in far too many words " * 3,
         "value": 180.0 if name == "user_away" else 12.0, "limit": 600.0 if name == "user_away" else 80.0, "unit": "s",
         "wait_s": 420.0 if name == "user_away" else 0.0}
        for name in GUARDS
    ]
    status: dict[str, Any] = {
        "state": "IDLE_WAIT", "cause": "user active on seat0", "next": "may work in 7 min if nobody comes back", "last": None,
        "task_usage": None, "status": "IDLE_WAIT: user active on seat0, 7 min to go",
        "since": "2026-11-24T18:00:00+00:00", "guards": guards,
        "blocked_by": ["user_away"], "unblock": "wait 7 min (safety.idle_required_minutes)", "task": None,
        "paused_until": None, "notes": ["a note"], "recent": [
            {"time": f"2026-11-24T17:00:{n:02}+00:00", "text": f"IDLE_WAIT → READY: safe {n}"} for n in range(12)
        ],
        "source": {"url": "http://h", "link": "up", "since": "2026-11-24T17:00:00+00:00", "reason": "", "outbox": 0},
    }
    return status | changes


@pytest.mark.parametrize("height", [1, 2, 5, 12, 24, 25, 60])
@pytest.mark.parametrize("width", [1, 20, 80, 200])
def test_it_fits_at_every_size(width: int, height: int) -> None:
    lines = screen(LastAnswer(answer()), "a message", width, height)
    assert len(lines) == height
    assert all(line.cell_len <= width for line in lines)
    assert lines[-1].plain.startswith(f" {KEYS} "[: max(0, width - 1)])


def test_at_80_by_24_everything_has_its_place() -> None:
    text = [line.plain for line in screen(LastAnswer(answer()), "", 80, 24)]
    assert text[0].startswith("WAITING (IDLE_WAIT) for ")
    assert text[0].endswith(": user active on seat0")
    assert text[1:3] == ["Next: may work in 7 min if nobody comes back", "Last: no task since the start"]
    (away,) = [line for line in text if "user_away" in line]
    assert away.startswith("> no user_away     ████░░░░░░░░ user_away is as")
    assert away.endswith("…  7 min to go")
    assert {name for name in GUARDS if any(f"{name} " in line for line in text)} == set(GUARDS)
    for word in ("task     none", "link     up for", "last decisions"):
        assert any(line.startswith(word) for line in text), word
    assert text[-2].endswith("IDLE_WAIT → READY: safe 11"), "the last ones, where not all fit"


def test_an_old_answer_is_not_shown_as_the_present() -> None:
    text = [line.plain for line in screen(LastAnswer(answer(), 75, "the daemon is not running; start it"), "", 80, 24)]
    assert text[0] == "the daemon is not running; start it"
    assert text[1] == "75 s ago it was IDLE_WAIT: user active on seat0, 7 min to go"
    text = [line.plain for line in screen(LastAnswer(None, 0, "nothing yet"), "", 80, 24)]
    assert "nothing yet" in text


@pytest.mark.parametrize(
    ("value", "limit", "full"),
    [(0, 80, 0), (40, 80, BAR // 2), (99, 80, BAR), (-1, 80, 0), (5, 0, None), ("absent", None, None), (True, True, None)],
)
def test_bars(value: Any, limit: Any, full: int | None) -> None:
    assert bar(value, limit, plain=True) == (" " * BAR if full is None else "#" * full + "." * (BAR - full))


NOTE = "note          " + "a word and another one " * 8


@pytest.mark.parametrize(("lines", "height", "fitted"), [
    (["short", "", "shorter"], None, ["short", "", "shorter"]),
    (["  ok  user_away      " + "away " * 12], None, ["  ok  user_away      " + "away " * 7 + "away",
                                                      " " * 21 + "away away away away"]),
    ([NOTE, NOTE], 2, [NOTE[:59] + "…"] * 2),
    (["a" * 90], None, ["a" * 60, "a" * 30]),
])
def test_lines_are_folded_under_their_own_text(lines: list[str], height: int | None, fitted: list[str]) -> None:
    assert fit(lines, 60, height) == fitted


# --- in a real terminal


@pytest.mark.slow
def test_top_in_a_terminal(tmp_path: Path) -> None:
    folder = NodeFolder.make(tmp_path / "n", runtime={"safety": {"cooldown_minutes": 5}})
    argv = [*RAE_NODE, "top", "--config", str(folder.path)]
    with daemon(folder) as node:
        node.wait_for("READY")
        with terminal(tmp_path, argv) as window:
            shown = window.wait(lambda text: KEYS in text and text.startswith("READY for ") and "no link to" in text, "top")
            assert "ok user_away" in shown
            window.press("2")
            window.wait(lambda text: text.startswith("OFF (DISABLED)") and ": paused until" in text, "a pause of two hours")
            window.press("a")
            window.wait(lambda text: "until `rae-node resume`" in text.splitlines()[0], "after the task, and there is none")
            window.press("p")
            window.wait(lambda text: "until `rae-node resume`" in text.splitlines()[0], "a pause without an end")
            window.press("r")
            window.wait(lambda text: text.startswith("READY"), "resumed")
            window.resize(60, 14)
            window.wait(lambda text: text.startswith("READY") and len(text.splitlines()) == 14 and "host_fit" in text, "small")
            window.resize(120, 40)
            window.wait(lambda text: text.startswith("READY") and len(text.splitlines()) == 40 and "start" in text, "large")
            os.kill(node.pid, signal.SIGSTOP)
            window.wait(lambda text: text.startswith("the daemon does not answer within 3 s"), "hung")
            os.kill(node.pid, signal.SIGCONT)
            window.wait(lambda text: text.startswith("READY"), "back")
            node.kill()
            window.wait(lambda text: text.startswith("the daemon is not running"), "down")
            window.press("q")
            window.wait(lambda text: "exit 3" in text, "the end")
        with daemon(folder) as again:
            again.wait_up()
            with terminal(tmp_path, argv, {"NO_COLOR": "1"}) as window:
                window.wait(lambda text: KEYS in text, "top")
                assert "\x1b[36m" not in window.colours()
                window.press("q")
                window.wait(lambda text: "exit 0" in text, "the end")
            with terminal(tmp_path, argv) as window:
                window.wait(lambda text: KEYS in text, "top")
                assert "\x1b[36m" in window.colours()
                window.press("C-c")
                window.wait(lambda text: "exit 130" in text, "the end")


@pytest.mark.slow
def test_status_and_why_fit_a_screen(tmp_path: Path) -> None:
    folder = NodeFolder.make(tmp_path / "n", runtime={"safety": {"detect_active_user": True, "idle_required_minutes": 10}})
    with daemon(folder) as node:
        node.wait_up()
        with terminal(tmp_path, [*RAE_NODE, "status", "--config", str(folder.path)]) as window:
            shown = window.wait(lambda text: "exit 0" in text, "status")
            assert shown.startswith("WAITING (IDLE_WAIT) for "), "one screen: the first line is still there"
        with terminal(tmp_path, [*RAE_NODE, "status", "--watch", "--config", str(folder.path)]) as window:
            window.wait(lambda text: text.startswith("WAITING (IDLE_WAIT)") and "version  " in text, "status --watch, whole")
        with terminal(tmp_path, [*RAE_NODE, "why", "--config", str(folder.path)], height=60) as window:
            shown = window.wait(lambda text: "exit 0" in text, "why")
            assert "To unblock it: " in shown
            assert "> ??  user_away" in shown or "> no  user_away" in shown


@pytest.mark.slow
@pytest.mark.slow
def test_why_a_watch_has_ended_is_there_to_read(tmp_path: Path) -> None:
    """Its own screen goes with it, and all that was said on that."""
    folder = NodeFolder.make(tmp_path / "n")
    argv = [*RAE_NODE, "status", "--watch", "--config", str(folder.path)]
    with terminal(tmp_path, argv) as window:
        assert "the daemon is not running" in window.wait(lambda text: "exit 3" in text, "its end, without a daemon")
    with daemon(folder) as node:
        node.wait_up()
        with terminal(tmp_path, argv) as window:
            window.wait(lambda text: "version  " in text, "status --watch")
            node.stop()
            assert "the daemon is not running" in window.wait(lambda text: "exit 3" in text, "its end")


@pytest.mark.parametrize(("name", "trouble", "code", "message"), [("status", "a fault", 1, ""), ("pause", "", 0, "a fault")])
def test_a_daemon_that_refuses_is_shown_as_such(
    name: str, trouble: str, code: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "ask", lambda *_, **__: {"v": 1, "ok": False, "error": "a fault"})
    client = top._Client(Path("/nowhere"), {})
    assert client._ask(name) is None
    assert (client.trouble, client.code, client.message) == (trouble, code, message)


def test_without_a_terminal_it_is_shown_once(tmp_path: Path) -> None:
    folder = NodeFolder.make(tmp_path)
    done = folder.cli("top")
    assert (done.returncode, done.stdout) == (3, "")
    assert "not running" in done.stderr
    with daemon(folder) as node:
        node.wait_for("READY")
        done = folder.cli("top")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("READY for ")
        assert len(done.stdout.splitlines()) < 24
        assert "\x1b" not in done.stdout
        assert KEYS not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("answers", "code", "says"), [(None, 3, "not running"), ({"v": 2}, 4, "another version")])
def test_there_is_nothing_to_show(tmp_path: Path, answers: Any, code: int, says: str) -> None:
    folder = NodeFolder.make(tmp_path / "n")
    with socket.socket(socket.AF_UNIX) as other:
        if answers is not None:
            (folder.path / "run").mkdir()
            other.bind(str(folder.path / "run/control.sock"))
            other.listen()

            def serve() -> None:
                peer, _ = other.accept()
                with peer:
                    peer.recv(4096)
                    peer.sendall(json.dumps(answers).encode() + b"\n")

            threading.Thread(target=serve, daemon=True).start()
        with terminal(tmp_path, [*RAE_NODE, "top", "--config", str(folder.path)]) as window:
            assert says in " ".join(window.wait(lambda text: f"exit {code}" in text, "the end").split())


def test_no_other_command_pays_for_it() -> None:
    code = "import sys, supervisor.cli.main; sys.exit('supervisor.cli.top_view' in sys.modules or 'rich.live' in sys.modules)"
    assert subprocess.run([RAE_NODE[0], "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
