"""The installer without a system: its steps in words, a staging folder, and what it refuses."""

from __future__ import annotations

import grp
import os
import subprocess
from pathlib import Path

import pytest
from support.running import ROOT

INSTALL = str(ROOT / "deploy/install")


def install(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([INSTALL, *options], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("options", [[], ["--uninstall"], ["--uninstall", "--purge"]])
def test_a_dry_run_numbers_its_steps(options: list[str]) -> None:
    done = install("--user", "root", "--dry-run", *options)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split("]")[0] for line in lines] == [f"[{n}/{len(lines)}" for n in range(1, len(lines) + 1)]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--purge"], "--purge goes with --uninstall"),
        (["--keep-config"], "--keep-config goes with --uninstall"),
        (["--wheels", "/nowhere", "--dry-run"], "/nowhere holds no rae_node-*.whl; make it with `make wheels`"),
        (["--user", "no-such-user", "--dry-run"], "there is no user no-such-user here; name one with --user"),
        (["--frobnicate"], "unrecognized arguments"),
    ],
)
def test_wrong_usage_is_a_line_and_exit_2(options: list[str], says: str) -> None:
    done = install(*options)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_staged_it_writes_there_and_nowhere_else_and_takes_it_back(tmp_path: Path, wheels: Path) -> None:
    root, here_too = tmp_path / "root", Path("/opt/rae-node/agent/auto_runner.py")
    before = here_too.exists()  # on a machine that has a node
    done = install("--root", str(root), "--user", "somebody-else", "--wheels", str(wheels))
    assert (done.returncode, done.stderr) == (0, "")
    home = root / "opt/rae-node"
    assert {path.name for path in (home / "agent").iterdir()} == {
        "auto_runner.py", "check_user_idle.py", "check_gpu_load.py", "runtime.yaml", "node.yaml",
    }
    unit = (root / "etc/systemd/system/rae-node.service").read_text()
    assert "User=somebody-else\n" in unit
    here = {group.gr_name for group in grp.getgrall()}
    groups = " ".join(name for name in ("video", "render", "input") if name in here)  # GPU nodes and input devices
    assert (f"\nSupplementaryGroups={groups}\n" in unit) if groups else ("SupplementaryGroups=" not in unit)
    assert "@" not in (root / "etc/polkit-1/rules.d/50-rae-node.rules").read_text()
    assert (root / "etc/systemd/system/multi-user.target.wants/rae-node.service").is_symlink()
    assert os.readlink(home / "venv").startswith("versions/venv-")
    entries = {path.name for path in (root / "usr/local/share/applications").iterdir()}
    assert entries == {"rae-node-pause.desktop", "rae-node-resume.desktop"}
    script = (home / "venv/bin/rae-node").read_text()
    assert str(tmp_path) not in script, "it runs where it will be, not where it was staged"
    assert here_too.exists() is before
    assert install("--root", str(root), "--uninstall", "--purge").returncode == 0
    assert [path for path in root.rglob("*") if not path.is_dir()] == []
