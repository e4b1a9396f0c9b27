"""A configuration folder's files: missing ones, other kinds of files, and the choice of the folder (R7, interface §2)."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from support.config_folder import errors, write

from supervisor.config.load import find_folder, fingerprint


def test_a_missing_runtime_file_says_what_to_do(tmp_path: Path) -> None:
    """One line; a missing node.yaml is no error."""
    (line,) = errors(tmp_path)
    assert line.startswith(f"runtime.yaml: not found in {tmp_path}; copy the shipped config/runtime.yaml there")
    (line,) = errors(tmp_path / "nowhere")
    assert line == (
        f"runtime.yaml: not found in {tmp_path}/nowhere; there is no such folder; "
        "name the one that holds runtime.yaml with --config"
    )
    write(tmp_path)
    for line in errors(tmp_path / "runtime.yaml"):
        assert line.endswith(f"cannot be read in {tmp_path}/runtime.yaml; name a folder, not a file, with --config")


def test_what_is_no_plain_file_is_refused_without_waiting(tmp_path: Path) -> None:
    """A FIFO without a writer would hang an open; a device never ends."""
    write(tmp_path)
    os.mkfifo(tmp_path / "node.yaml")
    assert errors(tmp_path) == [f"node.yaml: is a pipe in {tmp_path}; put a plain file there"]
    (tmp_path / "node.yaml").unlink()
    (tmp_path / "node.yaml").symlink_to("/dev/zero")
    assert errors(tmp_path) == [f"node.yaml: is a device in {tmp_path}; put a plain file there"]
    (tmp_path / "node.yaml").unlink()
    (tmp_path / "node.yaml").mkdir()
    assert errors(tmp_path) == [f"node.yaml: is a folder in {tmp_path}; put a plain file there"]
    (tmp_path / "node.yaml").rmdir()
    (tmp_path / "node.yaml").symlink_to("node.yaml")
    assert errors(tmp_path) == [
        f"node.yaml: cannot be read (Too many levels of symbolic links) in {tmp_path}; put a plain file there"
    ]
    with socket.socket(socket.AF_UNIX) as unix:
        (tmp_path / "node.yaml").unlink()
        unix.bind(os.path.relpath(tmp_path / "node.yaml"))
        assert errors(tmp_path) == [f"node.yaml: is a socket in {tmp_path}; put a plain file there"]


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    """A bound on size keeps a sparse file of a terabyte out of memory."""
    write(tmp_path)
    with open(tmp_path / "node.yaml", "wb") as file:
        file.truncate(2**40)
    assert errors(tmp_path) == [f"node.yaml: is larger than 256 KiB in {tmp_path}; shorten it"]


def test_a_file_without_the_right_to_read_it(tmp_path: Path) -> None:
    """As any user but root, for whom everything is readable."""
    write(tmp_path)
    os.chmod(tmp_path / "runtime.yaml", 0)
    if os.geteuid() != 0:
        lines = errors(tmp_path)
    else:  # pytest's own folders are for their owner alone
        for folder in (tmp_path, *(path for path in tmp_path.parents if "pytest" in path.name or "popen" in path.name)):
            os.chmod(folder, 0o755)
        lines = _as_nobody(tmp_path).splitlines()
    assert lines == [
        f"runtime.yaml: cannot be read (Permission denied) in {tmp_path}; give the service's user the right to read it"
    ]


def _as_nobody(folder: Path) -> str:
    """The error that uid 65534 gets. The modules are loaded first, because it may not read them."""
    program = (
        "import os, sys, pathlib; from supervisor.config.load import load, ConfigErrors\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: load(pathlib.Path(sys.argv[1]))\nexcept ConfigErrors as e: print(e)"
    )
    return subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, check=True).stdout


def test_hostile_folder_names_stay_on_one_line() -> None:
    """A line break or a NUL in a folder's name makes no second line and no traceback."""
    for name in ("/no\nwhere", "/no\0where", "/" + "x" * 5000):
        for line in errors(Path(name)):
            assert "\n" not in line


def test_the_fingerprint_moves_with_either_file(tmp_path: Path) -> None:
    """Written again, replaced, or gone: each is a change."""
    seen = [fingerprint(tmp_path)]
    assert seen == [(None, None)]
    write(tmp_path)
    seen.append(fingerprint(tmp_path))
    write(tmp_path, node="# x")
    seen.append(fingerprint(tmp_path))
    (tmp_path / "new").write_text("# y")
    os.replace(tmp_path / "new", tmp_path / "node.yaml")
    seen.append(fingerprint(tmp_path))
    assert fingerprint(tmp_path) == seen[-1]
    assert len(set(seen)) == 4


def test_which_folder_is_meant(tmp_path: Path) -> None:
    """--config, then the environment, then the installed folder or the checkout's."""
    assert find_folder("a", {"RAE_NODE_CONFIG": "b"}) == Path("a")
    assert find_folder(None, {"RAE_NODE_CONFIG": "b"}) == Path("b")
    assert find_folder(None, {}) in (Path("/opt/rae-node/agent"), Path("config"))
