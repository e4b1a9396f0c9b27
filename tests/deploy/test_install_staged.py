"""The installer without a system: its steps in words, a staging folder, and what it refuses."""

from __future__ import annotations

import grp
import os
import runpy
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from support.running import ROOT

INSTALL = str(ROOT / "deploy/install")


def install(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([INSTALL, *options], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("options", [[], ["--uninstall"], ["--uninstall", "--purge"]])
def test_a_dry_run_numbers_its_steps(options: list[str]) -> None:
    done = install("--user", "nobody", "--dry-run", *options)
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
        (["--user", "root", "--dry-run"], "--user root: the node and its tasks would be root; name a person"),
        (["--user", "0", "--root", "/nowhere", "--dry-run"], "--user 0: the node and its tasks would be root; name a person"),
        (["--frobnicate"], "unrecognized arguments"),
    ],
)
def test_wrong_usage_is_a_line_and_exit_2(options: list[str], says: str) -> None:
    done = install(*options)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def with_cuda(tmp_path: Path, wheels: Path) -> Path:
    """The wheels, and one that stands for cuda-bindings; its weight is not what is tried."""
    folder = tmp_path / "wheels"
    shutil.copytree(wheels, folder)
    info = "cuda_bindings-12.9.0.dist-info"
    said = {"METADATA": "Metadata-Version: 2.1\nName: cuda-bindings\nVersion: 12.9.0\n",
            "WHEEL": "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}  # fmt: skip
    with zipfile.ZipFile(folder / "cuda_bindings-12.9.0-py3-none-any.whl", "w") as wheel:
        for name, text in said.items():
            wheel.writestr(f"{info}/{name}", text)
        wheel.writestr(f"{info}/RECORD", "".join(f"{info}/{name},,\n" for name in (*said, "RECORD")))
    return folder


@pytest.mark.slow
def test_staged_it_writes_there_and_nowhere_else_and_takes_it_back(tmp_path: Path, with_cuda: Path) -> None:
    root, here_too = tmp_path / "root", Path("/opt/rae-node/agent/auto_runner.py")
    before = here_too.exists()  # on a machine that has a node
    done = install("--root", str(root), "--user", "somebody-else", "--wheels", str(with_cuda))
    assert (done.returncode, done.stderr) == (0, "")
    home = root / "opt/rae-node"
    assert not has_cuda(home), "the extra was not asked for"
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
    icons = {path.stem for path in (root / "usr/local/share/icons/hicolor/scalable/apps").iterdir()}
    assert icons == {"rae-node", "rae-node-lent", "rae-node-paused", "rae-node-yours"}
    script = (home / "venv/bin/rae-node").read_text()
    assert str(tmp_path) not in script, "it runs where it will be, not where it was staged"
    assert here_too.exists() is before
    assert install("--root", str(root), "--uninstall", "--purge").returncode == 0
    assert [path for path in root.rglob("*") if not path.is_dir()] == []


def fill(workdir: Path, outside: Path) -> None:
    """What a task can leave: a folder of 2,500 levels, names that are no text or options, links to the outside, a FIFO, a
    folder without rights."""
    (workdir / "task-1").mkdir(parents=True)
    outside.mkdir()
    (outside / "kept").touch()
    (workdir / "task-1/link").symlink_to(outside)
    (workdir / "-rf").touch()
    os.mkfifo(workdir / "task-1/pipe")
    os.mkdir(os.fsencode(workdir / "task-1") + b"/\x1b[2J\xff\n", 0o000 if os.geteuid() == 0 else 0o700)
    here = os.open(workdir / "task-1", os.O_RDONLY)
    for _ in range(2500):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def test_the_way_back_removes_what_a_task_can_leave(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    fill(root / "opt/rae-node/workdir", outside)
    done = install("--root", str(root), "--uninstall", "--purge")
    assert (done.returncode, done.stderr) == (0, "")
    assert not (root / "opt/rae-node").exists()
    assert (outside / "kept").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")
def test_a_folder_goes_to_another_account_with_what_a_task_can_leave_in_it(tmp_path: Path) -> None:
    fill(tmp_path / "workdir", tmp_path / "outside")
    host = runpy.run_path(INSTALL)["Host"]
    host.own(tmp_path / "workdir", (65534, 65534))
    there = subprocess.run(["find", tmp_path, "-uid", "65534", "-printf", "x"], capture_output=True, check=True).stdout
    assert len(there) == 2506, "all of it, and nothing outside"
    assert (tmp_path / "outside/kept").stat().st_uid == 0
    subprocess.run(["rm", "-rf", tmp_path / "workdir"], check=True)  # too deep for pytest


def has_cuda(home: Path) -> bool:
    return any((home / "venv").glob("lib/python*/site-packages/cuda_bindings-*.dist-info"))


@pytest.mark.slow
@pytest.mark.nightly  # two real installations, for one option of pip
def test_an_upgrade_keeps_the_extra_that_is_there_or_says_that_it_cannot(
    tmp_path: Path, wheels: Path, with_cuda: Path
) -> None:
    root = tmp_path / "root"
    home = root / "opt/rae-node"
    (home / "venv/lib/python3/site-packages/cuda_bindings-12.0.0.dist-info").mkdir(parents=True)  # a node that has it

    def run(found: Path) -> tuple[str, bool]:
        done = install("--root", str(root), "--user", "somebody-else", "--wheels", str(found))
        assert (done.returncode, done.stderr) == (0, "")
        steps = next(line for line in done.stdout.splitlines() if "virtual environment in" in line)
        return steps.partition("offline")[2], has_cuda(home)

    assert run(with_cuda) == (", with the extra cuda as before)", True)
    about = ", without the extra cuda: no cuda_bindings-*.whl is there (`deploy/wheels DIR cuda`))"
    assert run(wheels) == (about, False)
