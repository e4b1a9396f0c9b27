"""The readings of loginctl and nvidia-smi beside the node's own: the same, other ones, none, never."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.login1 import session

from supervisor.sensors.presence.session_policy import Session
from supervisor.tools.doctor import second_opinion
from supervisor.tools.doctor.report import Check
from supervisor.tools.doctor.second_opinion import gpus_differ, loginctl, nvidia_smi, sessions_differ

SEEN = Session.read("/p", session(LockedHint=True), 5000.0, 0.0)
SAID = """\
Id=3
Name=anna
Type=wayland
Class=user
State=active
Active=yes
Remote=no
IdleHint=no
LockedHint=yes
"""
ROW = {
    "uuid": "GPU-1", "driver": "590.48", "percent": 3, "used_gb": 1.0, "temperature_c": 40,
    "processes": [{"pid": 7, "kind": "c"}],
}  # fmt: skip
GPUS = "GPU-1, 5, 1100, 41\n"

Tool = Callable[..., None]


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    """A program in the PATH that answers by its arguments: `case` patterns of the shell, and what is done then."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")

    def make(name: str, **answers: str) -> None:
        for pattern, answer in answers.items():
            (folder / f"{name}.{pattern}").write_text(answer)
        lines = [f'*{p.replace("_", "-")}*) cat "$0.{p}";;' for p in answers]
        (folder / name).write_text("#!/bin/sh\ncase \"$*\" in\n" + "\n".join(lines) + "\n*) exit 3;;\nesac\n")
        (folder / name).chmod(0o755)

    def script(name: str, body: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)

    make.script = script  # type: ignore[attr-defined]
    return make


def ask_loginctl(*known: Session, error: str = "") -> Check:
    return asyncio.run(loginctl(lambda: known, lambda: error))


def ask_nvidia_smi(*rows: dict[str, Any]) -> Check:
    async def look() -> list[dict[str, Any]]:
        return list(rows)

    return asyncio.run(nvidia_smi(look))


def test_loginctl_sees_the_same(tool: Any) -> None:
    tool("loginctl", list_sessions="     3 1000 anna seat0 tty2\n", show_session=SAID)
    check = ask_loginctl(SEEN)
    assert (check.ok, check.reason) == (True, "sees 1 session, the same as the node")


@pytest.mark.parametrize(
    ("said", "known", "reason"),
    [
        (SAID.replace("IdleHint=no", "IdleHint=yes"), [SEEN], "session 3: IdleHint is yes by loginctl, no by the node"),
        (SAID.replace("Class=user", "Class=greeter"), [SEEN], "Class is greeter by loginctl, user by the node"),
        (SAID, [], "session 3: loginctl sees it, the node does not"),
        (SAID.replace("Id=3", "Id=9"), [SEEN], "session 3: the node sees it, loginctl does not"),
        (SAID + "\n" + SAID.replace("Id=3", "Id=c1"), [SEEN], "session c1: loginctl sees it"),
    ],
)
def test_a_difference_to_loginctl_fails_and_is_named(
    tool: Any, monkeypatch: pytest.MonkeyPatch, said: str, known: list[Session], reason: str
) -> None:
    monkeypatch.setattr(second_opinion, "AGAIN_S", 0.0)
    tool("loginctl", list_sessions="3\n", show_session=said)
    check = ask_loginctl(*known)
    assert check.ok is False
    assert reason in check.reason
    assert "systemd-logind" in check.fix


def test_a_session_that_came_between_two_looks_is_no_difference(tool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second_opinion, "AGAIN_S", 0.0)
    tool("loginctl", list_sessions="3\n", show_session=SAID)
    looks = iter([(), (SEEN,)])
    assert asyncio.run(loginctl(lambda: next(looks), lambda: "")).ok is True


def test_a_node_that_is_blind_where_loginctl_sees(tool: Any) -> None:
    tool("loginctl", list_sessions="3\n", show_session=SAID)
    check = ask_loginctl(error="no system bus")
    assert (check.ok, check.reason) == (False, "it sees 1 session, the node sees none: no system bus")


def test_nvidia_smi_sees_the_same(tool: Any) -> None:
    tool("nvidia-smi", utilization=GPUS, compute_apps="GPU-1, 7\n")
    check = ask_nvidia_smi(ROW)
    assert (check.ok, check.reason) == (True, "sees 1 GPU with load and processes, the same as the node")


@pytest.mark.parametrize(
    ("gpus", "processes", "rows", "reason"),
    [
        (GPUS, "GPU-1, 7\nGPU-1, 8\n", [ROW], "GPU-1: nvidia-smi sees process 8, the node does not"),
        ("GPU-1, 5, 9000, 41\n", "", [ROW], "GPU-1: 8.8 GiB by nvidia-smi, 1.0 GiB by the node"),
        ("GPU-1, 99, 1100, 41\n", "", [ROW], "99.0 % by nvidia-smi, 3.0 % by the node"),
        ("GPU-1, 5, 1100, 80\n", "", [ROW], "80.0 °C by nvidia-smi"),
        (GPUS + GPUS.replace("GPU-1", "GPU-2"), "", [ROW], "GPU-2: nvidia-smi sees it, the node does not"),
        ("", "", [ROW], "GPU-1: the node sees it, nvidia-smi does not"),
    ],
)
def test_a_difference_to_nvidia_smi_fails_and_is_named(
    tool: Any, gpus: str, processes: str, rows: list[dict[str, Any]], reason: str
) -> None:
    tool("nvidia-smi", utilization=gpus, compute_apps=processes)
    check = ask_nvidia_smi(*rows)
    assert check.ok is False
    assert reason in check.reason


def test_a_value_that_nvidia_smi_lacks_is_no_difference(tool: Any) -> None:
    tool("nvidia-smi", utilization="GPU-1, [N/A], [Not Supported], 41\n", compute_apps="")
    assert ask_nvidia_smi(ROW).ok is True


def test_a_gpu_that_sleeps_is_not_woken_to_be_compared(tool: Any, tmp_path: Path) -> None:
    """T13: nvidia-smi would wake it."""
    tool.script("nvidia-smi", f"touch {tmp_path}/asked")
    check = ask_nvidia_smi({"pci": "0000:01:00.0", "power": "suspended"})
    assert (check.ok, check.reason) == (None, "0000:01:00.0 is asleep, and asking would wake it")
    assert not (tmp_path / "asked").exists()


def test_missing_tools_do_not_apply(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (ask_loginctl(SEEN).ok, ask_nvidia_smi(ROW).ok) == (None, None)


def test_tools_that_fail_or_hang_are_an_answer_in_time(tool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tool.script("loginctl", "echo 'System has not been booted with systemd' >&2; exit 1")
    tool.script("nvidia-smi", "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    assert ask_loginctl(SEEN).reason == "loginctl gives no answer: System has not been booted with systemd"
    check = ask_nvidia_smi(ROW)
    assert (check.ok, "version mismatch" in check.reason) == (False, True)
    assert ask_nvidia_smi().ok is None  # neither sees one
    monkeypatch.setattr(second_opinion, "LOGINCTL_S", 0.2)
    monkeypatch.setattr(second_opinion, "NVIDIA_SMI_S", 0.2)
    for name in ("loginctl", "nvidia-smi"):
        tool.script(name, "exec sleep 60")
    assert "did not end within 0.2 s" in ask_loginctl(SEEN).reason
    assert "did not end within 0.2 s" in ask_nvidia_smi(ROW).reason


@given(st.dictionaries(st.sampled_from("abc"), st.fixed_dictionaries({"percent": st.floats(0, 100) | st.none()})))
def test_equal_readings_never_differ(gpus: dict[str, dict[str, Any]]) -> None:
    rows = [{"uuid": uuid, "percent": gpu["percent"], "processes": []} for uuid, gpu in gpus.items()]
    assert gpus_differ(gpus, rows) == []
    assert len(gpus_differ(gpus, [])) == len(gpus)
    assert sessions_differ({}, []) == []
