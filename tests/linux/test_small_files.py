"""Only plain files are opened: what a file can be instead, and that no room opens files in another way."""

from __future__ import annotations

import ast
import fcntl
import os
import select
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.linux.small_files import NotPlain, TooLarge, open_plain, read_plain, replace_plain

ROOT = Path(__file__).parents[2]
UNLOCK, NUMBER = 0x40045431, 0x80045430  # TIOCSPTLCK and TIOCGPTN, which Python lacks

# Who opens files by itself, and why that is safe. A whole room or file.
OPENS = {
    "linux/small_files.py": "this is the one place",
    "linux/console.py": "/dev/null, a program's own descriptors",
    "linux/control_socket.py": "a folder, without reading it",
    "daemon/main.py": "the lock, /dev/null",
    "journal/daily_file.py": "to append; it checks what it has opened",
    "tasks": "/proc, cgroups, folders without reading them; a task's state is checked by the shim",
    "sensors/gpu": "/proc and sysfs",
    "sensors/host": "/proc and sysfs",
    "sensors/presence/evdev.py": "sysfs",
    "sensors/presence/input.py": "input devices",
    "sources/in_flight.py": "the record, which it checks, synced with its folder",
    "sources/nats/admin/credentials.py": "new keys, never over a file that is there",
    "config/generate.py": "writes this repository's own files",
    "cli/bugreport.py": "a new file where the person says, never over one that is there",
    "cli/diagram.py": "writes where the person says, a pipe too",
    "cli/picture.py": "writes where the person says, a pipe too",
    "cli/record.py": "writes where the person says, a pipe too",
    "cli/submit.py": "reads what the person says, a pipe too",
    "tools/demo/demo.py": "writes its own new folder",
    "tools/history/timeline/html.py": "parts of the page, which are installed with the code",
}
CALLS = {"read_text", "read_bytes", "write_text", "write_bytes"}


def openings(file: Path) -> Iterator[int]:
    """The lines that open a file."""
    for call in ast.walk(ast.parse(file.read_text())):
        if isinstance(call, ast.Call):
            match call.func:
                case ast.Name("open") | ast.Attribute(ast.Name("os" | "io"), "open"):
                    yield call.lineno
                case ast.Attribute(_, name) if name in CALLS or (name == "open" and call.args):
                    yield call.lineno


def test_no_room_opens_files_in_another_way() -> None:
    supervisor = ROOT / "supervisor"
    found = {str(file.relative_to(supervisor)) for file in supervisor.rglob("*.py") if any(openings(file))}
    known = {name: [place for place in OPENS if name == place or name.startswith(f"{place}/")] for name in found}
    assert sorted(name for name, places in known.items() if not places) == [], "use small_files, or say why not here"
    assert sorted(set(OPENS) - {place for places in known.values() for place in places}) == [], "opens nothing any more"


def other(kind: str, path: Path) -> None:
    """Make something that is no plain file."""
    match kind:
        case "a pipe":
            os.mkfifo(path)
        case "a folder":
            path.mkdir()
        case "a socket":
            with socket.socket(socket.AF_UNIX) as unix:
                unix.bind(os.path.relpath(path))
        case "a symbolic link":
            path.with_name("secret").write_text("secret")
            path.symlink_to("secret")
        case "a device":
            path.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a socket", "a symbolic link", "a device"])
def test_what_is_no_plain_file_is_refused_without_waiting(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    other(kind, path)
    with pytest.raises(NotPlain, match=f"it is {kind}, not a plain file.*{path}"):
        open_plain(path, follow=kind == "a device")


def test_a_link_is_followed_where_that_is_asked_for(tmp_path: Path) -> None:
    other("a symbolic link", tmp_path / "file")
    assert read_plain(tmp_path / "file", follow=True) == b"secret"


def test_a_device_is_not_even_opened(tmp_path: Path) -> None:
    """Opening a watchdog arms it. A terminal's other side hangs up as soon as the terminal was open once."""
    leader = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    fcntl.ioctl(leader, UNLOCK, struct.pack("i", 0))
    name = f"/dev/pts/{struct.unpack('i', fcntl.ioctl(leader, NUMBER, bytes(4)))[0]}"
    hung_up = select.poll()
    hung_up.register(leader, select.POLLHUP)
    with pytest.raises(NotPlain, match="a device"):
        open_plain(name, follow=True)
    assert hung_up.poll(0) == []
    os.close(os.open(name, os.O_RDONLY | os.O_NOCTTY))
    assert hung_up.poll(0) != [], "the test sees it when it happens"
    os.close(leader)


def test_no_more_is_read_than_allowed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 2048)
    assert len(read_plain(path, 2048)) == 2048
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(TooLarge, match="larger than 2 KiB"):
        read_plain(path, 2048)
    with pytest.raises(FileNotFoundError):
        read_plain(tmp_path / "none")


@pytest.mark.parametrize("kind", ["a pipe", "a socket", "a symbolic link", "a device", "a plain file", "nothing"])
@pytest.mark.parametrize("name", ["file", ".file.new"], ids=["the file", "its draft"])
def test_a_file_replaces_whatever_is_there(tmp_path: Path, kind: str, name: str) -> None:
    if kind == "a plain file":
        (tmp_path / name).write_text("x" * 100)
    elif kind != "nothing":
        other(kind, tmp_path / name)
    replace_plain(tmp_path / "file", b"new", 0o640)
    assert read_plain(tmp_path / "file") == b"new"
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "secret") == ["file"]
    if kind == "a symbolic link":
        assert (tmp_path / "secret").read_text() == "secret"


@pytest.mark.parametrize("name", ["file", ".file.new"])
def test_a_folder_is_not_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(OSError, match=name):
        replace_plain(tmp_path / "file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == [name]
