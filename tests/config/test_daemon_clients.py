"""Clients of other daemons in argv: named where they are plain to see, and nothing else is taken for one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.running import NodeFolder

from supervisor.config.daemon_clients import daemon_client

CLIENTS = [
    # the client, and an argv that starts it
    *((name, [name]) for name in ("docker", "podman", "nerdctl", "ctr", "systemd-run", "at", "batch", "crontab", "run0")),
    *((name, [name]) for name in ("screen", "tmux", "kubectl", "lxc", "machinectl", "flatpak-spawn", "incus", "virsh")),
    ("docker", ["/opt/somewhere/docker", "run", "--rm", "--gpus", "all", "image"]),
    ("podman", ["sudo", "podman", "run", "image"]),
    ("docker", ["sudo", "-n", "-u", "worker", "--", "docker", "run", "image"]),
    ("docker", ["sudo", "A=1", "docker"]),
    ("docker", ["sudo", "--user=worker", "docker"]),
    ("podman", ["env", "-i", "-u", "HOME", "A=1", "B=2", "podman", "run"]),
    ("docker", ["/usr/bin/env", "docker"]),
    ("docker", ["nice", "docker"]),
    ("docker", ["nice", "-n", "19", "docker"]),
    ("docker", ["nice", "-19", "docker"]),
    ("docker", ["ionice", "-c3", "nice", "docker"]),
    ("tmux", ["nohup", "setsid", "-w", "tmux", "new", "-d"]),
    ("systemd-run", ["timeout", "--signal", "KILL", "-k", "5", "60", "systemd-run", "--user", "x"]),
    ("docker", ["taskset", "-c", "0-3", "chrt", "-i", "0", "docker"]),
    ("docker", ["flock", "-w", "9", "/tmp/lock", "docker", "run"]),
    ("docker", ["flock", "/tmp/lock", "-c", "docker run x"]),
    ("docker", ["systemd-inhibit", "--what=sleep", "--who", "me", "docker"]),
    ("docker", ["tini", "-s", "--", "docker"]),
    ("crontab", ["busybox", "crontab", "-"]),
    ("docker", ["runuser", "-u", "worker", "--", "docker"]),
    ("docker", ["su", "worker", "-c", "docker run x"]),
    ("docker", ["script", "-qec", "docker run x", "/dev/null"]),
    ("docker", ["sh", "-c", "docker run x"]),
    ("docker", ["bash", "-lc", "cd /data && exec docker run x"]),
    ("docker", ["bash", "-eo", "pipefail", "-c", "prepare | docker run -i x"]),
    ("at", ["sh", "-c", "echo work | at now"]),
    ("docker", ["sh", "-c", "A=1 nice docker run x; true"]),
    ("docker", ["sh", "-c", "if ready\nthen docker run x\nfi"]),
    ("docker", ["sh", "-c", "id=$(docker run -d x)"]),
    ("docker", ["sh", "-c", "id=`docker run -d x`"]),
    ("docker", ["sh", "-c", "( while ! docker run x; do sleep 1; done ) &"]),
    ("docker", ["sudo", "env", "A=1", "bash", "-c", "sh -c 'docker run x'"]),
    ("docker", ["sh", "-c", "'' ; docker run ''"]),
    ("docker", ["sh", "-c", "docker run x; echo 'never closed"]),
]  # fmt: skip
OTHERS = [
    [], [""], ["env"], ["sudo", "-u"], ["sh"], ["sh", "-c"], ["sh", "-c", "'"], ["sh", "-c", "''"], ["nice", "-n"], ["A=1"],
    ["python3", "docker.py"], ["/opt/docker/bin/train"], ["apptainer", "run", "docker://image"], ["cat", "docker"],
    ["sh", "/opt/docker"], ["sh", "-c", "echo docker run"], ["sh", "-c", "echo 'a; docker run'"], ["sh", "-c", "x > docker"],
    ["sh", "-c", "test -S /run/docker.sock && python3 train.py"], ["env", "-u", "docker", "python3"], ["timeout", "at"],
    ["sudo", "-u", "docker", "python3"], ["bwrap", "--ro-bind", "/", "/", "python3"],
    ["docker-entrypoint.sh"], ["python3", "-c", "docker"], ["bash", "run.sh", "-c", "docker"],
    ["sh", "--", "run.sh", "-c", "at"],
]  # fmt: skip


@pytest.mark.parametrize(("name", "argv"), CLIENTS, ids=lambda value: value if isinstance(value, str) else " ".join(value)[:60])
def test_a_client_is_named_with_what_outlives_the_task(name: str, argv: list[str]) -> None:
    why = daemon_client(argv)
    assert why.startswith(f"{name} is only a client: the ")
    assert "outlives it; refused." in why
    assert "\n" not in why


@pytest.mark.parametrize("argv", OTHERS, ids=lambda argv: " ".join(argv)[:60])
def test_nothing_else_is_taken_for_one(argv: list[str]) -> None:
    assert daemon_client(argv) == ""


def test_a_long_shell_text_is_no_work() -> None:
    assert "docker" in daemon_client(["sh", "-c", "docker run x; " + "'" * 10_000_001])


def test_config_check_says_so_and_fails(tmp_path: Path) -> None:
    tasks = {"box": {"argv": ["/opt/bin/docker", "run", "image"]}, "fine": {"argv": ["true"]}}
    folder = NodeFolder.make(tmp_path / "n", node={"tasks": tasks})
    done = folder.cli("config", "check")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"node.yaml: tasks.box.argv: {daemon_client(['docker'])}\n"
    done = folder.cli("config", "check", "--json")
    assert (done.returncode, json.loads(done.stdout)["sound"]) == (2, False)
    assert json.loads(done.stdout)["reasons"] == [f"node.yaml: tasks.box.argv: {daemon_client(['docker'])}"]
