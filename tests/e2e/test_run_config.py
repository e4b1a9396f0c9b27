"""The configuration changes, breaks and is mended under a running node; and broken at its start."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import yaml
from support.running import RAE_NODE, SERVICE, NodeFolder, control_node, daemon
from support.waiting import until

pytestmark = pytest.mark.slow


def test_limits_change_under_a_running_task(tmp_path: Path) -> None:
    with control_node() as control, daemon(NodeFolder.make(tmp_path, control.url)) as node:
        task = control.add("sleep")
        node.wait_for_task()
        node.folder.write(runtime={"execution": {"task_timeout_minutes": 0.01}})
        assert control.settled(task)["error"].startswith("timeout: ")
        node.stop()
    node.folder.replays_clean()


def test_a_file_that_breaks_stops_the_task_and_mended_the_node_goes_on(tmp_path: Path) -> None:
    with control_node() as control, daemon(NodeFolder.make(tmp_path, control.url)) as node:
        task = control.add("sleep")
        node.wait_for_task()
        node.folder.put("runtime.yaml", "automation: 1")
        node.wait_for("DISABLED")
        reason = node.ask()["reason"]
        assert reason.startswith("runtime.yaml:1:"), reason
        assert control.settled(task)["error"].startswith("preempted: the node's configuration is broken")
        (tmp_path / "runtime.yaml").unlink()
        until(lambda: "not found" in node.ask()["reason"], "a missing file is said")
        node.folder.write(runtime={}, node={})
        until(lambda: node.state() != "DISABLED", "mended")
        node.stop()
    problems = [line["problem"] for line in node.folder.journal() if line["kind"] == "config" and "problem" in line]
    assert problems[0].startswith("runtime.yaml:1:")
    node.folder.replays_clean()


def test_parts_wait_for_the_task_in_hand(tmp_path: Path) -> None:
    with control_node() as control, control_node() as other, daemon(NodeFolder.make(tmp_path, control.url)) as node:
        task = control.add("sleep")
        node.wait_for_task()
        node.folder.write(node={"control": {"url": other.url}})
        until(lambda: any("takes effect when" in note for note in node.ask()["notes"]), "a note")
        assert control.task(task)["status"] == "PROCESSING"
        node.folder.write(node={"tasks": {"more": {"argv": ["/bin/cat"]}}})
        node.folder.cli("pause", "1s")
        assert control.settled(task)["status"] == "FAILED"
        assert other.settled(other.add("more", {"n": 2}))["result"] == {"n": 2}
        assert node.ask()["source"]["url"] == other.url
        node.stop()
    node.folder.replays_clean()


def test_it_changes_while_paused_and_while_the_control_node_is_away(tmp_path: Path) -> None:
    with daemon(NodeFolder.make(tmp_path)) as node:
        until(lambda: "cannot be reached" in node.look().get("reason", ""), lambda: f"no link: {node.look()}")
        assert node.folder.cli("status").stdout.startswith("READY: safe, but no link to the control node: ")
        node.folder.cli("pause")
        node.wait_for("DISABLED")
        with control_node() as control:
            node.folder.write(node={"control": {"url": control.url}})
            until(lambda: node.ask()["source"]["link"] == "up", "the new control node, also while paused")
            assert node.ask()["state"] == "DISABLED"
            node.folder.cli("resume")
            assert control.settled(control.add("echo"))["status"] == "COMPLETED"
            node.stop()
    node.folder.replays_clean()


def test_switched_off_in_the_file_and_on_again_by_sighup(tmp_path: Path) -> None:
    with control_node() as control, daemon(NodeFolder.make(tmp_path, control.url)) as node:
        node.wait_for("READY")
        node.folder.write(runtime={"automation": {"enabled": False}})
        node.wait_for("DISABLED")
        assert node.ask()["reason"] == "automation.enabled is false in runtime.yaml"
        stamp = os.stat(tmp_path / "runtime.yaml")
        # the same size, place and times as before: nothing but SIGHUP tells that the content changed
        text = (tmp_path / "runtime.yaml").read_text().replace("enabled: false", "enabled: true ")
        with (tmp_path / "runtime.yaml").open("r+") as file:
            file.write(text)
        os.utime(tmp_path / "runtime.yaml", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        node.process.send_signal(signal.SIGHUP)
        node.wait_for("READY")


def test_a_sandbox_that_works_now_is_found_by_sighup(tmp_path: Path) -> None:
    if not (real := shutil.which("bwrap")):
        pytest.skip("no bubblewrap here")
    (tmp_path / "bin").mkdir()
    bwrap = tmp_path / "bin" / "bwrap"
    bwrap.write_text("#!/bin/sh\necho 'bwrap: not today' >&2\nexit 1\n")
    bwrap.chmod(0o755)
    folder = NodeFolder.make(tmp_path / "node")
    with daemon(folder, env={"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}) as node:

        def said() -> list[str]:
            return [note for note in node.look().get("notes", []) if note.startswith("tasks of type ")]

        until(said, "the note")
        why = "this node does not run as the installed service; bubblewrap does not work here (not today)"
        assert said()[0].startswith(f"tasks of type echo, sleep, fail run without a sandbox: {why}: ")
        bwrap.unlink()
        bwrap.symlink_to(real)
        node.process.send_signal(signal.SIGHUP)
        until(lambda: node.look() and not said(), lambda: str(said()))


def test_without_inotify_a_change_is_seen_at_the_next_look(tmp_path: Path) -> None:
    """A user has some hundred of them; another program may hold them all."""
    spent = "echo 0 >/proc/sys/user/max_inotify_instances"
    none_left = ["unshare", "--user", "--map-root-user", "sh", "-c", f'{spent}; exec "$@"', "-"]
    if subprocess.run([*none_left, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespace can be made here")
    with control_node() as control, daemon(NodeFolder.make(tmp_path, control.url), argv=(*none_left, *RAE_NODE, "run")) as node:
        node.wait_for("READY")
        node.folder.write(node={"tasks": {"more": {"argv": ["/bin/cat"]}}})
        assert control.settled(control.add("more", {"n": 2}), 60)["result"] == {"n": 2}
        node.stop()


def test_a_broken_start_is_exit_2_and_the_lines(tmp_path: Path) -> None:
    folder = NodeFolder.make(tmp_path, runtime={"safety": {"max_gpu_percent": 140}}, node={"gpu": {"presence": "maybe"}})
    done = folder.cli("run")
    assert done.returncode == 2
    assert done.stdout == ""
    first, second = done.stderr.splitlines()
    assert first.startswith("runtime.yaml:")
    assert first.endswith("safety.max_gpu_percent: found 140, allowed: a number > 0 and ≤ 100")
    assert second.startswith("node.yaml:")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("argv", [(*RAE_NODE, "run", "--unattended"), SERVICE], ids=["run", "service"])
@pytest.mark.parametrize("broken", ["runtime.yaml", "node.yaml"])
def test_unattended_a_broken_start_is_disabled_until_mended(tmp_path: Path, broken: str, argv: tuple[str, ...]) -> None:
    with control_node() as control:
        folder = NodeFolder.make(tmp_path, control.url)
        paths = yaml.safe_dump({"paths": folder.node["paths"]})
        folder.put(broken, "automation: maybe\n" if broken == "runtime.yaml" else paths + "gpu: {presence: maybe}\n")
        with daemon(folder, argv=argv) as node:
            node.wait_for("DISABLED")
            status = json.loads(folder.cli("status", "--json").stdout)
            assert status["reason"].startswith(f"{broken}:")
            assert folder.cli("why").returncode == 0
            assert folder.cli("config", "check").returncode == 2
            folder.write(runtime={}, node={})
            assert control.settled(control.add("echo"))["status"] == "COMPLETED"
            assert node.stop() == 0
        assert "Traceback" not in node.said
        folder.replays_clean()


def test_a_key_that_cannot_be_had_keeps_it_off_until_it_can(tmp_path: Path) -> None:
    with control_node() as control:
        folder = NodeFolder.make(tmp_path, control.url, node={"control": {"token": {"file": "key"}}})
        with daemon(folder) as node:
            node.wait_for("DISABLED")
            until(lambda: "key" in node.look().get("reason", ""), "a reason that names the key")
            (tmp_path / "key").write_text("sesame\n")
            (tmp_path / "key").chmod(0o600)
            node.process.send_signal(signal.SIGHUP)
            assert control.settled(control.add("echo"))["status"] == "COMPLETED"
            assert "sesame" not in node.said + "".join(path.read_text() for path in (tmp_path / "logs").iterdir())


def test_config_check_and_run_agree_on_an_unknown_folder(tmp_path: Path) -> None:
    for command in ("run", "config check"):
        argv = [*RAE_NODE, *command.split(), "--config", str(tmp_path / "none")]
        done = subprocess.run(argv, capture_output=True, text=True, cwd="/", check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert len(done.stderr.splitlines()) == 1
        assert str(tmp_path / "none") in done.stderr
