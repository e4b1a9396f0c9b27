"""The NVML stand-in: fake_nvml.c compiled, and the text file that says what it shows."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from support import shared
from support.libraries import compiled

GIB = 2**30
LIBRARY = "libnvidia-ml.so.1"


def build(folder: Path) -> Path:
    """Compile libnvidia-ml.so.1 into `folder`.

    Raises:
        FileNotFoundError: there is no C compiler.
    """
    return compiled("fake_nvml.c", LIBRARY, folder)


class StandIn:
    """A place where the library is, or will be, and what it shows.

    Args:
        library: the compiled stand-in.
        folder: an empty folder of this test's own.
        installed: False: `install` brings the library later.
    """

    def __init__(self, library: Path, folder: Path, installed: bool = True) -> None:
        self._library, self._folder = library, folder
        (folder / "lib").mkdir()
        self._file = folder / "nvml.txt"
        self.shows()
        if installed:
            self.install()

    @property
    def env(self) -> dict[str, str]:
        """What a process needs in its environment to meet the stand-in."""
        return {"LD_LIBRARY_PATH": str(self._folder / "lib"), "FAKE_NVML_FILE": str(self._file)}

    def install(self) -> None:
        """Put the library where the loader finds it."""
        shutil.copy(self._library, self._folder / "lib" / "new")
        os.replace(self._folder / "lib" / "new", self._folder / "lib" / self._library.name)

    def uninstall(self) -> None:
        """Take the library away."""
        (self._folder / "lib" / self._library.name).unlink()

    def shows(self, *lines: str) -> None:
        """What NVML shows from now on, in the stand-in's own words (fake_nvml.c); one quiet GPU if nothing is said."""
        new = self._file.with_suffix(".new")
        new.write_text("\n".join(lines) + "\n")
        os.replace(new, self._file)


@pytest.fixture(scope="session")
def nvml_library() -> Path:
    """The compiled stand-in."""
    try:
        return shared.once("nvml", build) / LIBRARY
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture
def standin(nvml_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """A stand-in that every process started by this test meets."""
    folder = tmp_path / "standin"
    folder.mkdir()
    there = StandIn(nvml_library, folder)
    for name, value in there.env.items():
        monkeypatch.setenv(name, value)
    return there
