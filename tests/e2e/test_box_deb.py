"""The Debian package: built here, installed offline by apt in a box; the same layout and guarantees as the installer's."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.installed import NVML, USER, Installed, boot
from support.nvml_standin import nvml_library
from support.sysbox import REPO

from supervisor.tools.doctor.task_units import FILES

__all__ = ["nvml_library"]
pytestmark = [pytest.mark.slow, pytest.mark.box]
QUIET = {"DEBIAN_FRONTEND": "noninteractive"}


@pytest.fixture(scope="module")
def package(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, built from this checkout."""
    if not shutil.which("dh"):
        pytest.skip("a package needs debhelper (deploy/setup test installs it)")
    # From a copy, so that nothing appears in the checkout.
    copy = tmp_path_factory.mktemp("deb")
    for name in ("deploy", "config", "supervisor"):
        shutil.copytree(REPO / name, copy / name)
    env = {**os.environ, "RAE_NODE_WHEELS": str(wheels)}
    done = subprocess.run([str(copy / "deploy/debian/build")], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return copy / done.stdout.strip()


@pytest.fixture(scope="module")
def node(
    package: Path, wheels: Path, nvml_library: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installed]:
    with boot(tmp_path_factory.mktemp("deb-box")) as box:
        shutil.copy(package, box.share)
        yield Installed(box, wheels, nvml_library)


def apt(node: Installed, *words: str, env: dict[str, str] | None = None) -> str:
    """apt-get in the box."""
    done = node.box.run("apt-get", "-y", "-qq", "-o", "Dpkg::Use-Pty=0", *words, env={**QUIET, **(env or {})}, timeout_s=240)
    return done.stdout + done.stderr


def places(node: Installed) -> set[str]:
    """What was made where a node may be, but for what the package manager keeps."""
    roots = ("/opt", "/usr/share/rae-node", "/usr/local", "/etc/systemd", "/etc/polkit-1", "/var/lib/rae-node")
    return {path for path in node.box.changes(*roots) if "__pycache__" not in path}


def test_installed_offline_it_starts_nothing_and_is_ready(node: Installed, package: Path, site: Path) -> None:
    before = places(node)
    said = apt(node, "install", f"/mnt/share/{package.name}", env={"SUDO_USER": USER})
    assert "nothing was started" in said
    assert node.show("ActiveState", "UnitFileState", "User") == {
        "ActiveState": "inactive", "UnitFileState": "enabled", "User": USER,
    }
    node.drop_in("nvml", f"[Service]\nEnvironment=FAKE_NVML_FILE={NVML}\n")
    node.make_ready()
    report = node.cli("report")
    assert report.returncode == 0, report.stdout
    node.box.run("rae-node", "disable", env={"PATH": "/usr/local/bin:/usr/bin:/bin"})
    node.put("/opt/rae-node/agent/node.yaml", "logs: {keep_days: 3}\n")
    with node.without_pip(site):
        apt(node, "install", "--reinstall", f"/mnt/share/{package.name}")
    assert node.box.sh("cat /opt/rae-node/agent/node.yaml") == "logs: {keep_days: 3}\n"
    assert node.show("ActiveState", "UnitFileState", "User") == {
        "ActiveState": "inactive", "UnitFileState": "disabled", "User": USER,
    }
    made = {f"/etc/systemd/system/{name}" for name in FILES}
    assert made <= places(node)
    icons = node.box.root / "usr/local/share/icons/hicolor/scalable/apps"
    assert {path.stem for path in icons.glob("rae-node*.svg")} >= {"rae-node-lent", "rae-node-yours", "rae-node-paused"}
    apt(node, "remove", "rae-node")
    assert not made & places(node)
    assert not list(icons.glob("rae-node*"))
    assert "/opt/rae-node/agent/node.yaml" in places(node), "configuration stays until it is purged"
    assert node.show("LoadState")["LoadState"] == "not-found"
    apt(node, "purge", "rae-node")
    node.box.run("rm", "-rf", "/etc/systemd/system/rae-node.service.d")
    assert places(node) == before


def test_without_anybody_to_name_it_gets_an_account_of_its_own(node: Installed, package: Path, site: Path) -> None:
    with node.without_pip(site):
        said = apt(node, "install", f"/mnt/share/{package.name}")
    assert "no person called sudo: the service gets the account rae-node" in said
    assert node.show("User") == {"User": "rae-node"}
    assert node.box.sh("getent passwd rae-node").strip().endswith(":/usr/sbin/nologin")
    assert node.box.sh("stat -c %U /opt/rae-node/workdir") == "rae-node\n"
    node.drop_in("nvml", f"[Service]\nEnvironment=FAKE_NVML_FILE={NVML}\n")
    node.make_ready()
    report = node.cli("report")
    assert report.returncode == 0, report.stdout
    apt(node, "purge", "rae-node")
    assert node.box.run("getent", "passwd", "rae-node", check=False).stdout == ""
