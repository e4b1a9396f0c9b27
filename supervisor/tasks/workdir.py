"""The folder that tasks work in: private, fresh for each task, and wiped whatever a task has left there (R6).

Nothing here follows a symbolic link, and no name made by a task is ever used as a path: every step is one component
relative to an open folder. Standard library only, and little of it: a task's shim imports it too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PREFIX = "task-"
_ROUNDS = 10
_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Workdir:
    """The folder `paths.workdir`. Only what `fresh` made is ever removed, so a wrong setting costs no one a file.

    Args:
        root: made with mode 0700 when it is missing.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def fresh(self, task_id: str) -> Path:
        """A new empty folder, 0700, of random name: task ids come from outside and name no path.

        Raises:
            OSError: it cannot be made, or the root is not safely ours; the text says why.
        """
        fd = self._open(make=True)
        try:
            name = PREFIX + os.urandom(12).hex()
            os.mkdir(name, 0o700, dir_fd=fd)
        except OSError as error:
            raise OSError(error.errno, f"no work folder for task {task_id}: {error.strerror}", str(self.root)) from None
        finally:
            os.close(fd)
        return self.root / name

    def wipe(self, path: Path) -> None:
        """Remove one task's folder with all that is in it; a folder that is gone is fine.

        Raises:
            ValueError: `path` is not a task's folder in this root.
            OSError: something would not go; how much and why, without the names that the task chose.
        """
        if path.parent != self.root or not path.name.startswith(PREFIX):
            raise ValueError(f"{path} is not a task's folder in {self.root}")
        self._wipe([path.name])

    def wipe_all(self, except_: Collection[Path] | None = None) -> int:
        """Remove every task's folder but those in `except_`, at start and on the way out; says how many there were.

        Raises:
            OSError: as `wipe`; the others are removed all the same.
        """
        kept = {path.name for path in except_ or ()}
        try:
            names = [name for name in os.listdir(self.root) if name.startswith(PREFIX) and name not in kept]
        except FileNotFoundError:
            return 0
        self._wipe(names)
        return len(names)

    def _wipe(self, names: list[str]) -> None:
        if not names:
            return
        try:
            fd = self._open(make=False)
        except FileNotFoundError:
            return
        try:
            errors = [error for name in names for error in _remove(fd, name)]
        finally:
            os.close(fd)
        if errors:
            first = errors[0]
            hint = " (an immutable file?)" if isinstance(first, PermissionError) else ""
            what = f"{len(errors)} entries could not be removed: {first.strerror}{hint}"
            raise OSError(first.errno, what, str(self.root))

    def _open(self, *, make: bool) -> int:
        """The root as an open folder, looked at: no link, ours, and nobody else's to write in."""
        if make:
            self.root.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.root, 0o700)
        try:
            fd = os.open(self.root, os.O_RDONLY | _FOLDER)
        except OSError as error:
            if not self.root.is_symlink():
                raise
            why = "paths.workdir is a symbolic link; name the folder itself"
            raise OSError(error.errno, why, str(self.root)) from None
        try:
            seen = os.fstat(fd)
            if seen.st_uid != os.geteuid():
                whose = f"paths.workdir belongs to uid {seen.st_uid}, the node runs as uid {os.geteuid()}"
                raise OSError(errno.EPERM, whose, str(self.root))
            if stat.S_IMODE(seen.st_mode) & 0o077:
                os.fchmod(fd, 0o700)
        except OSError:
            os.close(fd)
            raise
        return fd


def _enter(parent: int, name: str) -> int:
    """Open the folder `name` for emptying, whatever mode the task gave it.

    Raises:
        NotADirectoryError: it is no folder (a link to one is none).
        OSError: it cannot be opened.
    """
    handle = os.open(name, os.O_PATH | _FOLDER, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{handle}", 0o700)  # through the open folder: there is no other way that follows no link
        return os.open(".", os.O_RDONLY | _FOLDER, dir_fd=handle)
    finally:
        os.close(handle)


def _remove(root: int, name: str) -> list[OSError]:
    """Remove the entry `name` of the open folder `root`, whatever it is; returns what went wrong, in order.

    Two may do this at once, the daemon and a task's shim: what the other has taken is fine, what it has moved up after
    we had looked is met in the next round.
    """
    for _ in range(_ROUNDS):
        errors = _take_down(root, name)
        if all(error.errno != errno.ENOTEMPTY for error in errors):
            break
    return errors


def _take_down(root: int, name: str) -> list[OSError]:
    """One round of `_remove`.

    A tree is taken down flat: each folder met is moved up to the top one and emptied there, so that no depth, no path
    length and no number of open files can stop it.
    """
    errors: list[OSError] = []
    with _noting(errors):
        try:
            top = _enter(root, name)
        except NotADirectoryError:
            os.unlink(name, dir_fd=root)
            return errors
        try:
            todo = _empty(top, top, errors)
            while todo:
                below = todo.pop()
                with _noting(errors):
                    fd = _enter(top, below)
                    try:
                        todo += _empty(top, fd, errors)
                    finally:
                        os.close(fd)
                    if not errors:
                        os.rmdir(below, dir_fd=top)
            if not errors:
                os.rmdir(name, dir_fd=root)
        finally:
            os.close(top)
    return errors


@contextlib.contextmanager
def _noting(errors: list[OSError]) -> Iterator[None]:
    """Go on after an error, and note it; what is gone already is none."""
    try:
        yield
    except FileNotFoundError:
        pass
    except OSError as error:
        errors.append(error)


def _empty(top: int, folder: int, errors: list[OSError]) -> list[str]:
    """Unlink what is in the open `folder`, move its folders up into `top`; returns their names there."""
    moved: list[str] = []
    for entry in os.listdir(folder):
        with _noting(errors):
            try:
                os.unlink(entry, dir_fd=folder)
            except (IsADirectoryError, PermissionError):  # a folder is the one or the other, by file system
                if not stat.S_ISDIR(os.stat(entry, dir_fd=folder, follow_symlinks=False).st_mode):
                    raise
                name = entry
                if folder != top:
                    os.close(_enter(folder, entry))  # to move a folder is to write in it
                    name = os.urandom(12).hex()
                    os.rename(entry, name, src_dir_fd=folder, dst_dir_fd=top)
                moved.append(name)
    return moved
