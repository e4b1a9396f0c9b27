"""The folder that tasks work in: private, new for each task, and wiped whatever a task has left there.

Nothing here follows a symbolic link or uses a name made by a task as a path: every step is one component relative to an open
folder. Standard library only, and little of it, because a task's shim imports it too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PREFIX = "task-"
_ROUNDS = 10
_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Workdir:
    """The folder `paths.workdir`. Removes only what `fresh` made, so a wrong setting costs nobody a file.

    A folder that was removed, moved or closed while the node ran is made again or opened; `on_repair` gets a sentence then,
    in the thread that found it.
    """

    def __init__(self, root: Path, on_repair: Callable[[str], None] = lambda _: None) -> None:
        self.root = root
        self._on_repair = on_repair
        self._known = False  # it was there before

    def fresh(self, task_id: str) -> Path:
        """Make an empty folder, 0700, with a random name: task ids come from outside, so they are no part of a path.
        Raises OSError: it cannot be made, or the root is not safely ours; the text says why."""
        self._make()
        fd = self._open()
        try:
            name = PREFIX + os.urandom(12).hex()
            os.mkdir(name, 0o700, dir_fd=fd)
        except OSError as error:
            raise OSError(error.errno, f"no work folder for task {task_id}: {error.strerror}", str(self.root)) from None
        finally:
            os.close(fd)
        return self.root / name

    def wipe(self, path: Path) -> None:
        """Remove one task's folder with all that is in it. Raises ValueError if `path` is no task's folder in this root, and
        OSError if something could not be removed: how much and why, without names that the task chose."""
        if path.parent != self.root or not path.name.startswith(PREFIX):
            raise ValueError(f"{path} is not a task's folder in {self.root}")
        self._wipe([path.name])

    def wipe_all(self, except_: Collection[Path] = ()) -> int:
        """Remove every task's folder except these; returns how many there were. Raises OSError as `wipe`, after the
        others are removed."""
        kept = {path.name for path in except_}
        if not os.path.lexists(self.root):
            if not self._known:
                return 0
            self._make()
        fd = self._open()
        try:
            names = [name for name in os.listdir(fd) if name.startswith(PREFIX) and name not in kept]
        finally:
            os.close(fd)
        self._wipe(names)
        return len(names)

    def _make(self) -> None:
        self.root.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.root, 0o700)
            if self._known:
                lost = "what tasks have left in it is where it was moved to"
                self._on_repair(f"the work folder {self.root} was gone and is made again; if it was moved, {lost}")

    def _wipe(self, names: list[str]) -> None:
        if not names or not os.path.lexists(self.root):
            return
        fd = self._open()
        try:
            errors = [error for name in names for error in _remove(fd, name)]
        finally:
            os.close(fd)
        if errors:
            first = errors[0]
            hint = " (an immutable file?)" if isinstance(first, PermissionError) else ""
            raise OSError(first.errno, f"{len(errors)} entries could not be removed: {first.strerror}{hint}", str(self.root))

    def _open(self) -> int:
        """Open the root, after a check that it is no link, is ours, and that we alone can use it."""
        try:
            handle = os.open(self.root, os.O_PATH | _FOLDER)
        except OSError as error:
            if not self.root.is_symlink():
                raise
            why = "paths.workdir is a symbolic link; name the folder itself"
            raise OSError(error.errno, why, str(self.root)) from None
        try:
            info = os.fstat(handle)
            if info.st_uid != os.geteuid():
                owner = f"paths.workdir belongs to uid {info.st_uid}, the node runs as uid {os.geteuid()}"
                raise OSError(errno.EPERM, owner, str(self.root))
            if (mode := stat.S_IMODE(info.st_mode)) & 0o777 != 0o700:
                os.chmod(f"/proc/self/fd/{handle}", 0o700)
                if mode & 0o700 != 0o700:
                    self._on_repair(f"the work folder {self.root} had mode {mode:04o}; it has 0700 again")
            self._known = True
            return os.open(".", os.O_RDONLY | _FOLDER, dir_fd=handle)
        finally:
            os.close(handle)


def _enter(parent: int, name: str) -> int:
    """Open the folder `name` to empty it, whatever mode the task gave it. Raises NotADirectoryError also for a link to one."""
    handle = os.open(name, os.O_PATH | _FOLDER, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{handle}", 0o700)  # through the open folder: no other way follows no link
        return os.open(".", os.O_RDONLY | _FOLDER, dir_fd=handle)
    finally:
        os.close(handle)


def _remove(root: int, name: str) -> list[OSError]:
    """Remove the entry `name` of the open folder `root`, whatever it is; returns the errors in order.

    The daemon and a task's shim may do this at once. What the other has removed is no error; what the other has moved after
    our listing is removed in the next round.
    """
    for _ in range(_ROUNDS):
        errors = _remove_once(root, name)
        if all(error.errno != errno.ENOTEMPTY for error in errors):
            break
    return errors


def _remove_once(root: int, name: str) -> list[OSError]:
    """One round of `_remove`. Each folder is moved up to the top one and emptied there, so neither depth, path length nor the
    number of open files can stop it."""
    errors: list[OSError] = []
    with _collect(errors):
        try:
            top = _enter(root, name)
        except NotADirectoryError:
            os.unlink(name, dir_fd=root)
            return errors
        try:
            todo = _empty(top, top, errors)
            while todo:
                below = todo.pop()
                with _collect(errors):
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
def _collect(errors: list[OSError]) -> Iterator[None]:
    """Note an error and go on; a missing file is none."""
    try:
        yield
    except FileNotFoundError:
        pass
    except OSError as error:
        errors.append(error)


def _empty(top: int, folder: int, errors: list[OSError]) -> list[str]:
    """Unlink the files in the open `folder`, and move its folders up into `top`; returns their names there."""
    moved: list[str] = []
    for entry in os.listdir(folder):
        with _collect(errors):
            try:
                os.unlink(entry, dir_fd=folder)
            except (IsADirectoryError, PermissionError):  # for a folder one or the other, by file system
                if not stat.S_ISDIR(os.stat(entry, dir_fd=folder, follow_symlinks=False).st_mode):
                    raise
                name = entry
                if folder != top:
                    os.close(_enter(folder, entry))  # moving a folder means writing in it
                    name = os.urandom(12).hex()
                    os.rename(entry, name, src_dir_fd=folder, dst_dir_fd=top)
                moved.append(name)
    return moved
