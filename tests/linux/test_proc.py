"""What /proc tells of a process: its age, and whether it draws a desktop (R10)."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from supervisor.linux import proc

SESSION = "/user.slice/user-1000.slice/user@1000.service"


@pytest.mark.parametrize(
    ("cgroup", "draws"),
    [
        (f"{SESSION}/session.slice/org.gnome.Shell@wayland.service", True),
        (f"{SESSION}/session.slice/plasma-plasmashell.service", True),
        (f"{SESSION}/background.slice/plasma-kglobalacceld.service", True),
        (f"{SESSION}/app.slice/app-gnome-firefox-4711.scope", False),
        ("/user.slice/user-1000.slice/session-2.scope", False),
        ("/user.slice/user-0.slice/session-2.scope", False),
        ("/user.slice/user-118.slice/session-c1.scope", True),
        ("/user.slice/user-60578.slice/user@60578.service/session.slice/org.gnome.Shell@wayland.service", True),
        ("/user.slice/user-70000.slice/session-2.scope", False),
        ("/system.slice/sddm.service", True),
        ("/system.slice/game.service", False),
        ("/session.slice/made-up.service", False),
        ("/system.slice/docker-0123.scope", False),
        ("/", False),
        ("", False),
    ],
)
def test_what_draws_a_desktop(cgroup: str, draws: bool) -> None:
    """The session's own parts and login screens; not what somebody has started."""
    assert proc.draws_desktop(cgroup, "sddm.service") is draws
    assert not proc.draws_desktop("/system.slice/sddm.service")


def test_the_display_manager_is_what_systemd_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tmp_path / "display-manager.service"
    monkeypatch.setattr(proc, "_DISPLAY_MANAGER", str(link))
    assert proc.display_manager() == ""
    (tmp_path / "gdm3.service").touch()
    link.symlink_to(tmp_path / "gdm3.service")
    assert proc.display_manager() == "gdm3.service"


def test_a_process_has_an_age(tmp_path: Path) -> None:
    """What cannot be read is new: it proves nothing."""
    began_s = time.monotonic()
    with subprocess.Popen(["sleep", "60"]) as process:
        assert 0 <= proc.age_s(Path("/proc"), process.pid) <= time.monotonic() - began_s + 1
        process.kill()
    assert proc.age_s(Path("/proc"), 1) > 0
    assert proc.age_s(tmp_path, 1) == 0.0
    (tmp_path / "1").mkdir()
    (tmp_path / "1/stat").write_text("1 (a) b) S 1")
    assert proc.age_s(tmp_path, 1) == 0.0
