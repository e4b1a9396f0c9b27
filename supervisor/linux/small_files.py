"""Opens files: those of the kernel, and those that somebody else may have made. It imports little, because helper processes
use it.

A file in a folder that others may write can be anything: a pipe that never ends, a device, a link to a secret. So what is not
a plain file is never opened, and nothing is read without a limit.
"""

import contextlib
import errno
import os
import stat
from typing import Final

MAX_BYTES: Final = 1 << 16
KINDS: Final = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

Path = str | os.PathLike[str]


def read_small(path: str) -> str:
    """A file of /proc or sysfs, stripped, which one read returns whole; empty if it cannot be read. Path and open() take three
    times as long."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, MAX_BYTES).decode(errors="replace").strip()
    except OSError:
        return ""
    finally:
        os.close(fd)


class NotPlain(OSError):
    """There is something else than a plain file. `kind`: what, as "a pipe"."""

    def __init__(self, kind: str, path: Path) -> None:
        super().__init__(errno.EINVAL, f"it is {kind}, not a plain file", os.fspath(path))
        self.kind = kind


class TooLarge(OSError):
    """The file is larger than allowed."""

    def __init__(self, max_bytes: int, path: Path) -> None:
        super().__init__(errno.EFBIG, f"it is larger than {max_bytes >> 10} KiB", os.fspath(path))


def check_plain(fd: int, path: Path) -> os.stat_result:
    """What is open is a plain file; returns its status. Raises NotPlain."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise NotPlain(KINDS.get(stat.S_IFMT(status.st_mode), "something else"), path)
    return status


def open_plain(path: Path, *, follow: bool = False) -> int:
    """A descriptor of a plain file, to read. Never waits, and never opens anything else: opening can already do something.

    Args:
        follow: also through a symbolic link, as for a file that a person has named.

    Raises:
        OSError: there is none (FileNotFoundError), it is none (NotPlain), or it cannot be read.
    """
    handle = os.open(path, os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    try:
        check_plain(handle, path)
        # The same file, whatever has its name by now. O_NONBLOCK: a lease of another program is not waited for.
        return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        error.filename = os.fspath(path)
        raise
    finally:
        os.close(handle)


def read_plain(path: Path, max_bytes: int = MAX_BYTES, *, follow: bool = False) -> bytes:
    """All of a plain file. Raises OSError as `open_plain`, or TooLarge."""
    with os.fdopen(open_plain(path, follow=follow), "rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise TooLarge(max_bytes, path)
    return content


def replace_plain(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write a whole file or nothing, whatever is there. The draft stands beside it for a moment, as `.NAME.new`.

    Raises:
        OSError: it cannot be written; a folder of that name is not removed.
    """
    folder, name = os.path.split(path)
    draft = os.path.join(folder, f".{name}.new")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(draft)
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.write(content)
        os.replace(draft, path)
    except OSError:
        os.unlink(draft)
        raise
