"""What the journal says to people: the text log beside it, journald's fields, and both on a disk that fails."""

from __future__ import annotations

import json
import os
import random
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from support import weeks
from support.clock import ManualClock
from support.simulated import Supply
from support.stories import FIRST_DAY, Story, at, zone

from states.limits import Limits
from states.memory import Memory
from supervisor.journal.daily_file import DayFile
from supervisor.journal.decision_log import ALIVE_EVERY_S, RECENT, Journal
from supervisor.journal.journald import Journald, of_service
from supervisor.journal.summary import LONGEST, summary
from supervisor.journal.text_log import TextLog
from supervisor.linux.text import one_line
from supervisor.tools.history.record import cut
from supervisor.tools.history.replay import replay_files
from supervisor.tools.history.timeline.reader import load as load_timeline
from supervisor.tools.history.whatif import live
from supervisor.tools.history.whatif import load as load_past

SCRIPT = Path(__file__).parents[1] / "support/full_disk.py"
DAY_S = 86400.0


def fields_of(raw: bytes) -> dict[str, str]:
    """A datagram of journald's native protocol, taken apart."""
    found: dict[str, str] = {}
    for line in raw.splitlines():
        name, _, value = line.partition(b"=")
        found[name.decode()] = value.decode()
    return found


@pytest.fixture
def listener(tmp_path: Path) -> socket.socket:
    """journald's end."""
    end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    end.bind(str(tmp_path / "journal.sock"))
    end.settimeout(10)
    return end


# --- the text log


def test_the_text_log_has_a_line_of_words_with_its_time(tmp_path: Path) -> None:
    clock = ManualClock()
    journal = Journal(tmp_path, clock, text=TextLog(tmp_path))
    journal.start("1.2", Limits(), Memory())
    journal.write("operator", word="pause", until="until resumed")
    journal.alive("DISABLED", "DISABLED: paused")
    journal.close()
    (path,) = tmp_path.glob("rae-node-*.log")
    lines = path.read_text().splitlines()
    assert [line.partition("  ")[2] for line in lines] == ["rae-node 1.2 has started", "operator: pause"]
    assert datetime.fromisoformat(lines[0].split()[0]).timestamp() == clock.wall
    assert oct(path.stat().st_mode)[-3:] == "640"


def test_both_files_turn_at_the_same_midnight_and_each_day_begins_with_its_state(tmp_path: Path) -> None:
    clock = ManualClock()
    journal = Journal(tmp_path, clock, keep_days=7, text=TextLog(tmp_path, 7))
    for _ in range(9 * 24):
        journal.alive("IDLE_WAIT", "IDLE_WAIT: user\nactive")
        clock.go(3600)
    names = sorted(path.name for path in tmp_path.iterdir())
    days = {name[10:20] for name in names if name.startswith("decisions-")}
    assert len(days) == 7
    assert {name[9:19] for name in names if name.startswith("rae-node-")} == days
    for path in tmp_path.glob("rae-node-*.log"):
        (line,) = path.read_text().splitlines()
        assert line.endswith("  IDLE_WAIT: user active")


def test_the_nodes_group_may_read_whatever_the_services_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        DayFile(tmp_path, "x", ".log", 7).append(0.0, b"a\n")
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()] == [0o640]


def test_a_quiet_day_of_both_is_under_a_megabyte(tmp_path: Path) -> None:
    clock = ManualClock(wall=time.mktime((2027, 1, 15, 0, 0, 0, 0, 0, -1)))
    journal = Journal(tmp_path, clock, text=TextLog(tmp_path))
    for _ in range(1440):
        journal.alive("IDLE_WAIT", "IDLE_WAIT: user active on seat0 2 min ago, 8 min to go")
        clock.go(ALIVE_EVERY_S)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1_000_000


@pytest.mark.parametrize("there", [True, False], ids=["somebody is there all day", "nobody, and no task"])
def test_a_quiet_day_of_the_real_loop_is_under_a_megabyte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    monkeypatch.setattr(weeks, "Journal", lambda folder, clock, keep_days: Journal(folder, clock, 7, text=TextLog(folder)))
    with zone():
        begin, end = at(0, 0), at(1, 0) - 1
        signs = [(begin + 60 * minute, begin + 60 * minute + 30) for minute in range(1440)] if there else []
        clock, supply = ManualClock(weeks.UP_S, begin), Supply(random.Random(1), filled_until=1e12)
        weeks.live_once(weeks.settings(tmp_path, logs), clock, Story(begin, end, there=signs), supply, end)
    assert len(list(logs.iterdir())) == 2
    assert 100_000 < sum(path.stat().st_size for path in logs.iterdir()) < 1_000_000


def test_no_reason_of_others_begins_a_line_of_its_own() -> None:
    forged = summary("link", {"event": "down", "url": "http://h", "reason": "x\n2026-11-24T00:00:00Z  READY\x1b[2J\r"})
    assert len(forged.splitlines()) == 1
    assert "\x1b" not in forged
    assert len(one_line("y" * 10 * LONGEST, LONGEST)) == LONGEST


Break = Callable[[Path], None]


def move_file(logs: Path) -> None:
    for path in list(logs.iterdir()):
        path.rename(logs.parent / path.name)


def delete_folder(logs: Path) -> None:
    for path in logs.iterdir():
        path.unlink()
    logs.rmdir()


@pytest.mark.parametrize("broken", [move_file, delete_folder])
def test_what_is_taken_away_is_made_again_at_once(tmp_path: Path, broken: Break) -> None:
    logs = tmp_path / "logs"
    journal = Journal(logs, ManualClock(), text=TextLog(logs))
    journal.write("operator", word="pause")
    broken(logs)
    journal.write("operator", word="resume")
    assert not journal.trouble
    (decisions,), (text,) = logs.glob("decisions-*"), logs.glob("rae-node-*")
    assert [json.loads(line)["word"] for line in decisions.read_text().splitlines()] == ["resume"]
    assert text.read_text().endswith("operator: resume\n")


def test_a_folder_that_fails_is_said_once_and_its_mending_with_what_is_missing(tmp_path: Path) -> None:
    clock, said, logs = ManualClock(), list[str](), tmp_path / "logs"
    journal = Journal(logs, clock, say=said.append, text=TextLog(logs))
    journal.write("operator", word="pause")
    logs.rename(tmp_path / "away")
    logs.write_text("")  # where the folder was is a file: not even root writes into it
    for _ in range(3):
        journal.write("operator", word="resume")
    assert journal.trouble.startswith(f"decisions cannot be logged in {logs}: ")
    logs.unlink()
    (tmp_path / "away").rename(logs)
    clock.go(60)
    journal.alive("READY", "READY: safe")
    assert not journal.trouble
    assert said == [
        "operator: pause",
        f"decisions cannot be logged in {logs}: Not a directory",  # asked once more, it says "File exists"
        *["operator: resume"] * 3,
        f"decisions are logged again in {logs}; 3 lines are missing",
    ]
    (text,) = logs.glob("rae-node-*")
    words = [line.partition("  ")[2] for line in text.read_text().splitlines()]
    assert words[0] == "operator: pause"
    assert words[1].startswith("(4 lines are missing here: the text log cannot be written in ")


def test_the_text_log_alone_may_fail(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "logs", ManualClock(), text=TextLog(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    journal.write("operator", word="pause")
    assert "the text log cannot be written" in journal.trouble
    assert list((tmp_path / "logs").glob("decisions-*"))


def test_the_last_words_are_kept_for_those_who_watch(tmp_path: Path) -> None:
    journal = Journal(tmp_path, ManualClock())
    for number in range(RECENT + 3):
        journal.write("operator", word=str(number))
    assert [text for _, text in journal.recent] == [f"operator: {n}" for n in range(3, RECENT + 3)]


# --- journald


def test_a_line_reaches_journald_with_its_fields(tmp_path: Path, listener: socket.socket) -> None:
    said: list[str] = []
    journal = Journal(tmp_path / "logs", ManualClock(), say=said.append, journald=Journald(str(tmp_path / "journal.sock")))
    verdict = {"name": "user_away", "ok": None, "reason": "unknown"}
    journal.write(
        "decision", **{"from": "READY"}, to="RUNNING", row="task-claimed", reason="", tick=7, effects=["inhibit", "start"],
        guards=[verdict], task={"id": "t1", "type": "render", "phase": "claimed"}, observation={"cpu": 1}, at_s=1.0,
    )
    seen = fields_of(listener.recv(65536))
    assert seen == {
        "MESSAGE": "READY → RUNNING: task-claimed (render t1)", "PRIORITY": "6", "SYSLOG_IDENTIFIER": "rae-node",
        "RAE_KIND": "decision", "RAE_FROM": "READY", "RAE_TO": "RUNNING", "RAE_ROW": "task-claimed", "RAE_REASON": "",
        "RAE_TICK": "7", "RAE_EFFECTS": "inhibit,start", "RAE_GUARD_USER_AWAY": "unknown", "RAE_TASK_ID": "t1",
        "RAE_TASK_TYPE": "render", "RAE_TASK_PHASE": "claimed",
    }
    journal.write("effect", tick=7, effect="wipe", ok=False, detail="two\nlines\x1b[2J\x9b", took_s=0.1)
    seen = fields_of(listener.recv(65536))
    assert (seen["PRIORITY"], seen["RAE_DETAIL"], seen["RAE_OK"]) == ("4", "two\\nlines\\x1b[2J\\x9b", "False")
    assert said == []


def test_without_journald_it_is_said_to_who_started_it(tmp_path: Path) -> None:
    said: list[str] = []
    journal = Journal(tmp_path, ManualClock(), say=said.append, journald=Journald(str(tmp_path / "no-such.sock")))
    journal.write("operator", word="pause")
    assert said == ["operator: pause"]


def test_a_journald_that_hangs_holds_nobody_up(tmp_path: Path, listener: socket.socket) -> None:
    said: list[str] = []
    journal = Journal(tmp_path / "logs", ManualClock(), say=said.append, journald=Journald(str(tmp_path / "journal.sock")))
    began_s = time.monotonic()
    for _ in range(2000):
        journal.write("operator", word="pause")
    assert time.monotonic() - began_s < 20
    assert said == [], "stderr goes to the same journald, and blocks"
    assert fields_of(listener.recv(65536))["MESSAGE"] == "operator: pause"


def test_only_a_stderr_that_goes_to_journald_is_replaced_by_it() -> None:
    here = os.fstat(2)
    of_it = of_service({"JOURNAL_STREAM": f"{here.st_dev}:{here.st_ino}"})
    assert of_it is not None
    of_it.close()
    assert of_service({}) is None
    assert of_service({"JOURNAL_STREAM": "1:1"}) is None


# --- a full disk, for an hour of ticks


def test_an_hour_on_a_full_disk_loses_lines_and_no_safety(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    script = f'mount -t tmpfs -o size=96k none "{logs}" && exec "$@"'
    box = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
    if os.geteuid() != 0 or subprocess.run([*box, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespace with a tmpfs of its own here: run as root on a machine that allows it")
    done = subprocess.run([*box, sys.executable, str(SCRIPT), str(logs)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    full = [at for at, text in told["said"] if "cannot be logged" in text]
    again = [at for at, text in told["said"] if "are logged again" in text]
    assert 900 <= full[0] < 900 + 180, "said at the next line"
    assert again
    assert 4800 <= again[-1] <= 4800 + 60, "it recovers by itself, within a minute"
    # no safety was lost: the person came back in the middle of a task, on the full disk
    (back,) = [at for at, text in told["said"] if "RUNNING → COOLDOWN: user-returned" in text]
    assert 2407 <= back < 2408
    stop, hand_back, wipe, release = [text for at, text in told["said"] if back <= at < back + 5][1:5]
    assert stop.startswith("  stop done")
    assert hand_back.startswith("  hand_back done")
    assert wipe.startswith("  wipe done")
    assert release.startswith("  release done")
    assert any(at > 4800 and "next-task" in text for at, text in told["said"]), "and it works on"
    during, after = told["trouble_then_and_after"]
    assert "decisions cannot be logged" in during
    assert after == ""
    gaps = [entry for entry in told["entries"] if entry["kind"] == "gap"]
    assert sum(gap["lost"] for gap in gaps) > 100
    assert all("No space left" in gap["why"] or "only a part" in gap["why"] for gap in gaps)
    missing = [a["boot_s"] - b["boot_s"] for b, a in zip(told["entries"], told["entries"][1:], strict=False)]
    assert max(missing) > 3000, "the gap is the time that it tells of"
    assert "missing here" in told["text"]
    assert told["replays"] == [True], "today's lifecycle decides as the journal says, across the gap"


# --- a torn line, in every reader

TEARS = {
    "half a line": b'{"v": 1, "kind": "alive", "time": "20',
    "half a sign": '{"v": 1, "kind": "alive", "reason": "→'.encode()[:-1],
    "zeros": b"\0" * 5000,
    "too deep": b'{"v": 1, "kind": ' + b"[" * 100_000,
    "no object": b"17",
    "another version": b'{"v": 2, "kind": "decision"}',
    "no kind": b'{"v": 1}',
}


def past(logs: Path) -> tuple[Any, ...]:
    """What every reader of journals makes of a folder."""
    lived = load_past([logs])
    last = datetime(*FIRST_DAY, 23, 0, tzinfo=timezone(timedelta(hours=2)))
    told = load_timeline([logs], 7)
    return (
        [(r.ok, r.steps) for r in replay_files([logs])],
        cut([logs], last - timedelta(hours=12), last),
        live(lived, lived.limits, 1200.0),
        repr(replace(told, left_out=0)),
    )


@pytest.fixture(scope="module")
def whole() -> tuple[Path, tuple[Any, ...]]:
    """A day's journal, and what every reader makes of it."""
    with zone():
        logs = weeks.lived("office", 1)
        return logs, past(logs)


@pytest.mark.parametrize("tear", TEARS)
def test_every_reader_leaves_a_torn_last_line_out(
    tmp_path: Path, whole: tuple[Path, tuple[Any, ...]], tear: str
) -> None:
    journal, expected = whole
    with zone():
        logs = tmp_path / "logs"
        logs.mkdir()
        for path in journal.iterdir():
            (logs / path.name).write_bytes(path.read_bytes() + TEARS[tear])
        assert past(logs) == expected
