"""What one run of the tests makes once, however many workers it has."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

_root: list[Path] = []


def begin(factory: pytest.TempPathFactory) -> None:
    """From now on `once` keeps its folders where all workers of this run find them."""
    base = factory.getbasetemp()
    _root[:] = [base.parent if "PYTEST_XDIST_WORKER" in os.environ else base]


def once(name: str, make: Callable[[Path], object]) -> Path:
    """The folder `name`, which the first worker that needs it fills by `make(folder)`. The others wait for it."""
    if not _root:  # a script, not a test
        _root.append(Path(tempfile.mkdtemp(prefix="rae-shared-")))
    folder = _root[0] / name
    with folder.with_name(f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            draft = folder.with_name(f"{name}.draft")
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            make(draft)
            draft.rename(folder)
    return folder
