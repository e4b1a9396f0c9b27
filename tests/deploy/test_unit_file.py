"""The unit file: what R14 and the traps of systemd require, each with its reason, and nothing that systemd warns about."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support.running import ROOT

UNIT = ROOT / "deploy/rae-node.service"
LINES = UNIT.read_text().splitlines()
SETTINGS = [line for line in LINES if re.match(r"^[A-Za-z]+=", line)]
# Names that systemd knows only after 252, the oldest that the node runs on; they would be warned about there.
TOO_NEW = {"DelegateSubgroup", "PrivatePIDs", "MemoryZSwapMax", "RestartSteps", "RestartMaxDelaySec", "CoredumpReceive"}
# Names and values that newer ones warn about or ignore.
TOO_OLD = {"CPUShares", "MemoryLimit", "BlockIOWeight", "StartLimitInterval", "PermissionsStartOnly", "CPUAccounting"}


@pytest.mark.parametrize(
    "setting",
    [
        "ExecStart=/usr/bin/python3 /opt/rae-node/agent/auto_runner.py", "Type=notify", "NotifyAccess=main", "Restart=always",
        "RestartSec=15", "WatchdogSignal=SIGKILL", "LimitCORE=1", "KillMode=mixed",
        "StartLimitIntervalSec=0", "LimitNICE=+0", "OOMPolicy=continue",
        "RuntimeDirectory=rae-node", "StateDirectory=rae-node", "User=@USER@",
        "WantedBy=multi-user.target",
        # GPU nodes and input devices by the groups that own them; without these two lines it would see neither
        "SupplementaryGroups=@GROUPS@", "DeviceAllow=char-* rw",
    ],
)
def test_it_says(setting: str) -> None:
    assert setting in SETTINGS


def test_the_tasks_socket_starts_as_often_as_the_node() -> None:
    lines = (ROOT / "deploy/rae-task.socket").read_text().splitlines()
    assert {"PartOf=rae-node.service", "StartLimitIntervalSec=0"} <= set(lines)


def test_every_group_of_settings_has_its_reason() -> None:
    """Each block of the service's part begins with a comment, except where the name is plain."""
    plain = {"Restart", "NoNewPrivileges", "Description"}
    before = ""
    for line in LINES[LINES.index("[Service]") + 1 : LINES.index("[Install]")]:
        name = line.partition("=")[0]
        if before == "" and name and not line.startswith("#"):
            assert name in plain, f"{line} begins a block without a reason"
        before = line


def test_no_name_is_too_new_or_too_old() -> None:
    names = {line.partition("=")[0] for line in SETTINGS}
    assert not names & (TOO_NEW | TOO_OLD)


def installed(folder: Path, *names: str) -> list[Path]:
    """The units as they are installed, with a program that is there."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze here")
    (folder / "venv/bin").mkdir(parents=True)
    (folder / "venv/bin/python").symlink_to("/usr/bin/python3")
    marks = {"@USER@": "daemon", "@GROUP@": "1", "@GROUPS@": "video render input", "@HOME@": str(folder)}
    paths = [folder / name for name in names]
    for path in paths:
        text = (ROOT / "deploy" / path.name).read_text()
        for mark, value in marks.items():
            text = text.replace(mark, value)
        path.write_text(text)
    return paths


UNITS = ["rae-node.service", "rae-task.socket", "rae-task@.service", "rae.slice", "rae-wake.socket", "rae-wake@.service"]


def test_systemd_finds_no_fault(tmp_path: Path) -> None:
    paths = installed(tmp_path, *UNITS)
    done = subprocess.run(["systemd-analyze", "verify", *map(str, paths)], capture_output=True, text=True)
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize(("name", "most"), [("rae-node.service", 2.5), ("rae-task@.service", 2.0), ("rae-wake@.service", 1.5)])
def test_it_is_locked_up(tmp_path: Path, name: str, most: float) -> None:
    (path,) = installed(tmp_path, name)
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(path)], capture_output=True, text=True
    )
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found, done.stderr
    assert float(found[1]) <= most, done.stdout
