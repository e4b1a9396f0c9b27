"""Folders that cannot be used, two daemons in one place, and a log folder that fails under a running node."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from support.running import RAE_NODE, NodeFolder, control_node, daemon
from support.waiting import until

pytestmark = pytest.mark.slow


def test_a_second_daemon_in_one_place_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = NodeFolder.make(tmp_path)
    with daemon(folder) as node:
        node.wait_up()
        done = folder.cli("run")
        assert (done.returncode, done.stdout) == (1, "")
        assert len(done.stderr.splitlines()) == 1
        assert str(tmp_path / "run") in done.stderr
        assert node.ask()["state"]
        node.kill()
    with daemon(folder) as node:  # what a killed one left is in nobody's way
        node.wait_up()


def mortal() -> list[str]:
    """What makes a root process subject to permissions, as any user is."""
    if os.geteuid() != 0:
        return []
    words = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search,-fowner,-chown", "--inh-caps", "-all"]
    if shutil.which("setpriv") is None or subprocess.run([*words, "true"], capture_output=True, check=False).returncode:
        pytest.skip("setpriv cannot drop capabilities here")
    return words


@pytest.mark.parametrize("name", ["logs", "workdir", "runtime", "state"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    words = mortal()
    folder = NodeFolder.make(tmp_path / "n")
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if words:
        os.chown(locked, 65534, 65534)
        locked.chmod(0o755)
    folder.write(node={"paths": {name: str(locked / "deep")}})
    argv = [*words, *RAE_NODE, "run", "--config", str(folder.path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd="/", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert str(locked / "deep") in line
    assert f"paths.{name}" in line
    # unattended it goes on where it can, is off, says why, and is mended without a restart
    with daemon(folder, argv=[*words, *RAE_NODE, "run", "--unattended"]) as node:
        if name == "runtime":
            until(lambda: "no control socket" in node.said, "it says that it cannot be asked")
        else:
            until(lambda: str(locked / "deep") in node.look().get("reason", ""), "off, with the folder")
            assert node.state() == "DISABLED"
        if words:
            os.chown(locked, 0, 0)
        locked.chmod(0o700)
        node.process.send_signal(1)
        if name != "runtime":
            node.wait_for("READY")
        else:
            until(lambda: (locked / "deep/control.sock").exists(), "the socket", 40)
        assert node.stop() == 0


def test_folders_that_somebody_closes_or_removes_are_opened_or_made_again_and_that_is_said(tmp_path: Path) -> None:
    folder = NodeFolder.make(tmp_path)
    names = {"logs": 0o750, "work": 0o700, "run": 0o755, "state": 0o700}
    for name in names:
        (tmp_path / name).mkdir(mode=0)
    with control_node() as control, daemon(folder, argv=[*mortal(), *RAE_NODE, "run"]) as node:
        folder.write(node={"control": {"url": control.url}})
        node.wait_for("READY")
        for name, mode in names.items():
            assert (tmp_path / name).stat().st_mode & 0o777 == mode
            assert f"{tmp_path / name}: had mode 0000; it has {mode:04o} again" in node.said
        (tmp_path / "work").chmod(0)
        assert control.settled(control.add("echo"))["status"] == "COMPLETED"
        assert any("work had mode 0000; it has 0700 again" in note for note in node.ask()["notes"])
        shutil.rmtree(tmp_path / "work")
        shutil.rmtree(tmp_path / "run")
        assert control.settled(control.add("echo"))["status"] == "COMPLETED"
        until(node.look, "an answer")
        notes = " ".join(node.ask()["notes"])
        assert "work was gone and is made again" in notes
        assert "control.sock was made again: somebody had removed it" in notes
        assert folder.cli("run").returncode == 1, "the new folder is locked too"


def test_a_log_folder_that_goes_away_is_made_again(tmp_path: Path) -> None:
    with control_node() as control, daemon(NodeFolder.make(tmp_path, control.url)) as node:
        node.wait_for("READY")
        (tmp_path / "logs").rename(tmp_path / "gone")  # at once, or a line that is written meanwhile is in the way
        shutil.rmtree(tmp_path / "gone")
        assert control.settled(control.add("echo"))["status"] == "COMPLETED"
        until(lambda: "task-ended" in node.folder.rows(), "the decisions after that")
        node.stop()


def test_a_full_or_read_only_log_folder_does_not_stop_it(tmp_path: Path) -> None:
    folder = NodeFolder.make(tmp_path / "n", node={"work": {"run_minutes": 5}})
    logs = folder.path / "logs"
    logs.mkdir()
    # the test's process shares the mount with the daemon alone, which gets it by a namespace of its own
    script = f'mount -t tmpfs -o size=256k,nr_inodes=64 none "{logs}" && exec "$@"'
    box = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
    if os.geteuid() != 0 or subprocess.run([*box, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespace with a tmpfs of its own here")
    with control_node() as control:
        folder.write(node={"control": {"url": control.url}})
        with daemon(folder, argv=[*box, *RAE_NODE, "run"]) as node:
            node.wait_for("READY")
            inside = Path(f"/proc/{node.pid}/root{logs}")
            (journal,) = inside.glob("decisions-*")

            def fill() -> None:
                fd = os.open(inside / "ballast", os.O_WRONLY | os.O_CREAT)
                with contextlib.suppress(OSError):
                    while os.write(fd, b"x" * 512):
                        pass
                os.close(fd)

            fill()
            tasks = [control.add("echo", {"n": n}) for n in range(6)]
            assert [control.settled(task)["status"] for task in tasks] == ["COMPLETED"] * 6
            full = ("No space left", "only a part")
            until(lambda: any(word in note for word in full for note in node.ask()["notes"]), "status says so")
            assert f"decisions cannot be logged in {logs}" in folder.cli("status").stdout
            (inside / "ballast").unlink(missing_ok=True)
            assert control.settled(control.add("echo"))["status"] == "COMPLETED"
            until(lambda: not any("cannot be logged" in note for note in node.ask()["notes"]), "it is over")
            node.wait_for("READY")
            inside_words = ["nsenter", "-t", str(node.pid), "-m"]
            subprocess.run([*inside_words, "mount", "-t", "tmpfs", "-o", "ro", "none", str(logs)], check=True)
            assert control.settled(control.add("echo"))["status"] == "COMPLETED"
            assert any("Read-only file system" in note for note in node.ask()["notes"])
            subprocess.run([*inside_words, "umount", str(logs)], check=True)
            control.settled(control.add("echo"))
            node.wait_for("READY")
            text = journal.read_text()
            node.stop()
    entries = []
    for line in text.splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    gaps = [entry for entry in entries if entry["kind"] == "gap"]
    assert len(gaps) >= 2
    assert all(gap["lost"] >= 1 and gap["why"] for gap in gaps)
    copy = tmp_path / "copy" / journal.name
    copy.parent.mkdir()
    copy.write_text(text)
    told = folder.cli("replay", str(copy))
    assert told.returncode == 0, told.stdout + told.stderr


def test_a_deep_place_is_no_matter(tmp_path: Path) -> None:
    folder = NodeFolder.make(tmp_path / ("d" * 60) / ("e" * 60))
    with daemon(folder) as node:
        node.wait_for("READY")
        began_s = time.monotonic()
        assert folder.cli("status").returncode == 0
        assert time.monotonic() - began_s < 10
        assert node.stop() == 0
