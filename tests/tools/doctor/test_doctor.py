"""The doctor's judgement over what systemd says, and its probes where they can be tried without an installation."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.running import RUNTIME, NodeFolder

from states.observation import Automation, Cpu, Gpu, Host, Observation, Reading
from supervisor.config.load import load
from supervisor.sensors.base import Quality
from supervisor.sensors.observer import SourceReading
from supervisor.tools.doctor import doctor, external, in_service
from supervisor.tools.doctor.account import roots_equal
from supervisor.tools.doctor.doctor import REQUIRED
from supervisor.tools.doctor.report import Check

CPU_80 = {"safety": {"max_cpu_percent": 80}}
UNIT_TEXT = "[Service]\nWatchdogSec=30\nProtectHome=yes\n"


def properties(tmp_path: Path, **change: str) -> dict[str, str]:
    """The unit as it ships, in systemd's words."""
    path = tmp_path / "rae-node.service"
    path.write_text(UNIT_TEXT)
    argv = "{ path=/usr/bin/python3 ; argv[]=/usr/bin/python3 /opt/rae-node/agent/auto_runner.py ; ignore_errors=no ; }"
    return {
        **{name: want for name, (want, _) in REQUIRED.items()}, "LoadState": "loaded", "FragmentPath": str(path),
        "DropInPaths": "", "NeedDaemonReload": "no", "UnitFileState": "enabled", "ActiveState": "inactive", "SubState": "dead",
        "NRestarts": "0", "MainPID": "0", "User": "anna", "ExecStart": argv, "NotifyAccess": "main", **change,
    }


def failures(checks: list[Check]) -> list[str]:
    return [check.failure for check in checks if check.ok is False]


def test_the_unit_that_ships_is_sound(tmp_path: Path) -> None:
    assert failures(list(doctor.unit(properties(tmp_path)))) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"Type": "simple"}, "Type is simple, not notify"),
        ({"Restart": "on-failure"}, "Restart is on-failure"),
        ({"RestartUSec": "1min"}, "RestartUSec is 1min"),
        ({"StartLimitIntervalUSec": "10s"}, "StartLimitIntervalUSec is 10s"),
        ({"KillMode": "process"}, "KillMode is process"),
        ({"LimitCORE": "infinity"}, "LimitCORE is infinity"),
        ({"NotifyAccess": "all"}, "NotifyAccess is all"),
        ({"ExecStart": "{ argv[]=/usr/bin/python3 /tmp/auto_runner.py ; }"}, "ExecStart is not"),
        ({"NeedDaemonReload": "yes"}, "systemctl daemon-reload"),
        ({"ActiveState": "failed"}, "failed (dead)"),
        ({"LoadState": "not-found", "LoadError": 'x.NoSuchUnit "Unit rae-node.service not found."'}, "not found"),
        ({"LoadState": "masked"}, "masked"),
        ({"trouble": "System has not been booted with systemd"}, "systemd cannot be asked"),
        ({"FragmentPath": "/nowhere"}, "WatchdogSec is off"),
    ],
)
def test_every_difference_is_named(tmp_path: Path, change: Mapping[str, str], said: str) -> None:
    (failure,) = failures(list(doctor.unit(properties(tmp_path, **change))))
    assert said in failure


@pytest.mark.parametrize(
    ("says", "ok", "said"),
    [
        ({"User": ""}, False, "the service runs as root (no User=)"),
        ({"User": "root"}, False, "the service runs as root (User=root)"),
        ({"User": "0"}, False, "the service runs as root (User=0)"),
        ({"User": "nobody"}, True, "nobody, not root's equal"),
        ({"User": "nobody", "SupplementaryGroups": "video kvm render"}, True, "nobody, not root's equal"),
        ({"User": "nobody", "SupplementaryGroups": "video docker"}, True, "nobody is in the group docker, which starts"),
        ({"User": "nobody", "SupplementaryGroups": "disk"}, True, "take it out of SupplementaryGroups="),
        ({"LoadState": "not-found"}, None, "no service is installed"),
    ],
)
def test_root_fails_and_its_equals_are_warned_of(tmp_path: Path, says: Mapping[str, str], ok: bool | None, said: str) -> None:
    check = doctor.account(properties(tmp_path, **says))
    assert check.ok is ok
    assert said in check.reason
    assert check.warning is ("as good as root" in check.reason)


@pytest.mark.parametrize(
    ("may", "said"),
    [
        ("    (ALL : ALL) ALL", ""),
        ("    (ALL : ALL) NOPASSWD: ALL", "sudo asks nobody for no password: as good as root"),
        ("    (root) NOPASSWD: /usr/bin/apt", "sudo asks nobody for no password: as good as root"),
        (None, ""),
    ],
)
def test_sudo_without_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, may: str | None, said: str) -> None:
    if may is not None:
        (tmp_path / "sudo").write_text(f"#!/bin/sh\necho '{may}'\n")
        (tmp_path / "sudo").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [line.partition(";")[0] for line in roots_equal("nobody")] == [said] * bool(said)


@pytest.mark.parametrize(
    ("auto_start", "state", "ok"),
    [(True, "enabled", True), (True, "disabled", False), (True, "", False), (False, "enabled", False)],
)
def test_on_at_boot_by_the_unit_and_by_the_file(tmp_path: Path, auto_start: bool, state: str, ok: bool) -> None:
    automation = {**RUNTIME["automation"], "auto_start": auto_start}
    folder = NodeFolder.make(tmp_path / "n", runtime={"automation": automation})
    assert doctor.boot(load(folder.path), properties(tmp_path, UnitFileState=state)).ok is ok


def test_a_broken_file_is_every_error_and_no_report(tmp_path: Path) -> None:
    folder = NodeFolder.make(tmp_path / "n", runtime={"safety": {"max_gpu_percent": 140, "max_cpu_percent": 0}})
    done = folder.cli("report")
    assert done.returncode == 1
    assert "Automation enabled: NO\n" in done.stdout
    assert "safety.max_gpu_percent: found 140, allowed: a number > 0 and ≤ 100; fix the file" in done.stdout
    assert "safety.max_cpu_percent" in done.stdout
    assert done.stdout.endswith("\nNOT READY\n")
    assert done.stderr == ""


@pytest.mark.parametrize("command", ["report", "verify", "doctor"])
def test_json_is_one_document_and_agrees_with_the_exit(tmp_path: Path, command: str) -> None:
    folder = NodeFolder.make(tmp_path / "n")
    done = folder.cli(command, "--json")
    json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (1, ""), "nothing is installed here"


def of(checks: list[Check], name: str) -> Check:
    (found,) = [check for check in checks if check.name == name]
    return found


def test_folders_are_judged_without_a_trace(tmp_path: Path) -> None:
    folder = NodeFolder.make(tmp_path / "n")
    config = load(folder.path)
    checks = list(in_service.folders(config))
    assert [check.ok for check in checks] == [False] * 4
    for name in ("logs", "work", "run", "state"):
        (folder.path / name).mkdir(mode=0o700)
    before = sorted(folder.path.rglob("*"))
    assert [check.ok for check in in_service.folders(config)] == [True] * 4
    (folder.path / "logs").rmdir()
    (folder.path / "logs").symlink_to("work")
    assert "is no folder" in of(list(in_service.folders(config)), "folder: logs").reason
    if os.geteuid() == 0:
        os.chown(folder.path / "work", 12345, 12345)
        assert "belongs to uid 12345" in of(list(in_service.folders(config)), "folder: workdir").reason
    assert sorted(folder.path.rglob("*")) == before


def test_rotation_is_exercised(tmp_path: Path) -> None:
    folder = NodeFolder.make(tmp_path / "n", node={"logs": {"keep_days": 3}})
    check = in_service.rotation(load(folder.path))
    assert (check.ok, check.reason) == (True, "a file a day, 3 are kept")
    assert not (folder.path / "logs").exists()


def test_rotation_that_keeps_too_much_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = NodeFolder.make(tmp_path / "n")
    monkeypatch.setattr("supervisor.journal.daily_file.DayFile._forget_old", lambda self, wall_s: None)
    assert in_service.rotation(load(folder.path)).ok is False


def test_programs_and_keys(tmp_path: Path) -> None:
    tasks = {"gone": {"argv": ["/nowhere/at/all"]}, "box": {"argv": ["sh", "-c", "docker run image"]}}
    node = {"tasks": tasks, "control": {"token": {"file": str(tmp_path / "key")}}}
    config = load(NodeFolder.make(tmp_path / "n", node=node).path)
    checks = asyncio.run(in_service.programs(config))
    assert of(checks, "task program: gone").ok is False
    assert of(checks, "task program: box").ok is False
    assert "docker is only a client: the container runs outside of the task" in of(checks, "task program: box").reason
    assert of(checks, "task program: echo").ok is True
    assert in_service.key(config).ok is False
    (tmp_path / "key").write_text("s3cret\n")
    (tmp_path / "key").chmod(0o600)
    assert in_service.key(config).ok is True
    assert "s3cret" not in in_service.key(config).reason


def test_what_blocks_now_is_no_fault_and_what_is_not_there_is_not_sound(tmp_path: Path) -> None:
    """Each line says no more than what was seen."""
    config = load(NodeFolder.make(tmp_path / "n", runtime=CPU_80, node={"gpu": {"presence": "none"}}).path)

    def reading(value: Any) -> Reading[Any]:
        return Reading(value, "", "a test", 0.0)

    host = reading(Host(False, "hot"))
    seen = Observation(0.0, Automation(True), gpu=reading(Gpu(present=False)), cpu=reading(Cpu(99)), host=host)
    said = {check.name: (check.result, check.reason) for check in in_service.readings(seen, config)}
    assert said["CPU guard"][0] == said["host guard"][0] == said["GPU guard"][0] == "passed"
    assert said["CPU guard"][1].startswith("works; it would block now: CPU of others at 99 %, limit ")
    assert "works; it would block now: " in said["host guard"][1]
    assert "would block" not in said["GPU guard"][1]
    sources = [
        SourceReading("input", "no source: no device can be read", False, None, 0.0, Quality.UNKNOWN),
        SourceReading("logind", "no system bus", None, None, 0.0, Quality.UNKNOWN),
        SourceReading("terminals", "no sign of the person", False, 9.0, 0.0, Quality.POLLED),
        SourceReading("gpu processes", "unknown", None, None, 0.0, Quality.UNKNOWN),
    ]
    results = {check.name: check.result for check in in_service.presence(sources, config)}
    expected = ["not applicable", "failed", "passed", "not applicable"]
    assert [results[f"presence: {source.source}"] for source in sources] == expected


def test_shell_commands_and_sandboxes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell = {"executor": "shell_command", "allow_any_command": True}
    open_ = {"argv": ["true"]}
    tasks = {"any": shell, "boxed": {**shell, "sandbox": "bubblewrap"}, "open": open_}
    tasks["llm_inference"] = {"executor": "ollama_api"}
    config = load(NodeFolder.make(tmp_path / "n", node={"tasks": tasks}).path)
    monkeypatch.setenv("PATH", str(tmp_path))
    checks = asyncio.run(in_service.programs(config))
    said = of(checks, "shell commands: any")
    assert (said.ok, said.warning, said.reason) == (True, True, "runs ANY command that the control node sends")
    for name, start in (("any", "shell_command needs a sandbox ("), ("boxed", "sandbox: bubblewrap is not here: ")):
        check = of(checks, f"sandbox: {name}")
        assert check.ok is False
        assert check.reason.startswith(start)
        assert "apt-get install bubblewrap" in check.reason
    said = of(checks, "sandbox: open")
    assert (said.warning, said.reason.startswith("NONE: its tasks can do what ")) == (True, True)
    assert not [check for check in checks if "llm_inference" in check.name]  # it has no program


def test_no_lock_is_wanted_where_none_is_configured(tmp_path: Path) -> None:
    config = load(NodeFolder.make(tmp_path / "n").path)
    check = asyncio.run(in_service.sleep_lock(config))
    assert check.ok is None
    assert "host.inhibitor is none" in check.reason


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [(["/nowhere"], 127, "No such file"), ([sys.executable, "-c", "import time; time.sleep(60)"], 124, "did not end within")],
)
def test_programs_that_are_missing_or_hang_are_an_answer(argv: list[str], code: int, says: str) -> None:
    exit_code, _, complaint = asyncio.run(external.run(*argv, timeout_s=0.2))
    assert exit_code == code
    assert says in complaint


def test_a_program_that_cannot_be_killed_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """nvidia-smi in a driver that hangs: the kernel lets nobody end it."""

    class Stuck:
        def kill(self) -> None:
            """It takes no notice."""

        async def wait(self) -> int:
            await asyncio.get_running_loop().create_future()
            raise AssertionError("unreachable")

        async def communicate(self) -> tuple[bytes, bytes]:
            await self.wait()
            raise AssertionError("unreachable")

    async def start(*_: object, **__: object) -> Stuck:
        return Stuck()

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    code, _, complaint = asyncio.run(asyncio.wait_for(doctor.run("nvidia-smi", timeout_s=0.05), 20))
    assert (code, complaint) == (124, "nvidia-smi did not end within 0.05 s")


def test_a_user_without_a_name_has_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that is given any number."""
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    (check,) = asyncio.run(doctor.inside(load(NodeFolder.make(tmp_path / "n").path), {"User": "anna"}))
    assert check.reason == "uid 54321 cannot check this"


def test_a_unit_in_another_encoding_is_read_all_the_same(tmp_path: Path) -> None:
    unit = properties(tmp_path)
    Path(unit["FragmentPath"]).write_bytes(b"# f\xfcr Anna\n" + UNIT_TEXT.encode())
    assert failures(list(doctor.unit(unit))) == []


def test_what_runs_on_ollama_cannot_be_frozen(tmp_path: Path) -> None:
    tasks = {kind: {"executor": "ollama_api"} for kind in ("quality_loop", "llm_inference")} | {"echo": {"argv": ["/bin/cat"]}}
    none = NodeFolder.make(tmp_path / "none", "http://127.0.0.1:9", node={"tasks": {"echo": tasks["echo"]}})
    assert list(doctor.ollama(load(none.path))) == []
    (check,) = doctor.ollama(load(NodeFolder.make(tmp_path / "two", "http://127.0.0.1:9", node={"tasks": tasks}).path))
    assert check.ok is None
    assert check.reason.startswith("llm_inference, quality_loop: cannot be frozen")


def test_a_gpu_that_no_sensor_reads_is_named(tmp_path: Path) -> None:
    """A virtual machine's, say: somebody may use it, and nobody would see that (R10)."""
    assert (in_service.other_gpus(tmp_path).ok, in_service.other_gpus(tmp_path).warning) == (True, False)
    for node, driver in (("renderD128", "virtio_gpu"), ("renderD129", "amdgpu"), ("renderD130", ""), ("card0", "ast")):
        device = tmp_path / "class/drm" / node / "device"
        device.mkdir(parents=True)
        if driver:
            (tmp_path / "drivers" / driver).mkdir(parents=True)
            (device / "driver").symlink_to(tmp_path / "drivers" / driver)
    found = in_service.other_gpus(tmp_path)
    assert found.warning
    assert found.reason.startswith("/dev/dri/renderD128 (virtio_gpu), /dev/dri/renderD130 (no driver): who uses it is unknown")
