"""The CUDA stand-in: fake_cuda.c compiled, and the folder in which it is played."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support import shared
from support.libraries import compiled

LIBRARY = "libcuda.so.1"
STATES = ("running", "locked", "checkpointed", "failed")


def build(folder: Path) -> Path:
    """Compile libcuda.so.1 into `folder`.

    Raises:
        FileNotFoundError: there is no C compiler.
    """
    return compiled("fake_cuda.c", LIBRARY, folder)


class CudaStandIn:
    """The library and its folder, and roots of a machine's /proc and /sys with an NVIDIA driver loaded.

    Args:
        library: the compiled stand-in.
        folder: an empty folder of this test's own.
    """

    def __init__(self, library: Path, folder: Path) -> None:
        self._library, self._folder = library, folder
        self.proc, self.sys, self._played = folder / "proc", folder / "sys", folder / "cuda"
        for path in (self.proc, self.sys / "module/nvidia", self._played):
            path.mkdir(parents=True)
        self.driver("580.65.06")
        self.memory(64.0)

    @property
    def env(self) -> dict[str, str]:
        """What a process needs in its environment to meet the stand-in."""
        return {"LD_LIBRARY_PATH": str(self._library.parent), "FAKE_CUDA_DIR": str(self._played)}

    def driver(self, version: str) -> None:
        """The version that the kernel tells; empty: no driver is loaded."""
        path = self.sys / "module/nvidia/version"
        self._put(path, f"{version}\n") if version else path.unlink(missing_ok=True)

    def memory(self, free_gb: float) -> None:
        """What /proc/meminfo tells, GiB."""
        self._put(self.proc / "meminfo", f"MemTotal: 99999999 kB\nMemAvailable: {int(free_gb * (1 << 20))} kB\n")

    def plays(self, *lines: str) -> None:
        """What goes otherwise from now on, in the stand-in's own words (fake_cuda.c)."""
        self._put(self._played / "plays", "\n".join(lines) + "\n")

    def uses_cuda(self, pid: int, state: str = "running") -> None:
        """From now on this process has CUDA."""
        self._put(self._played / f"{pid}.state", f"{STATES.index(state)}\n")

    def state(self, pid: int) -> str:
        """The state that it is in."""
        return STATES[int((self._played / f"{pid}.state").read_text())]

    def calls(self) -> list[tuple[str, ...]]:
        """Every call that was begun, in order: name, pid, limit in ms, and what /proc said of the process."""
        return [tuple(line.split()) for line in self._lines("calls")]

    def order(self) -> list[str]:
        """Those calls that change something, in order: `lock 123`."""
        return [" ".join(call[:2]) for call in self.calls() if call[0] not in ("init", "state")]

    @staticmethod
    def _put(path: Path, text: str) -> None:
        """A file, whole or not at all: the library reads it at any time."""
        draft = path.with_name(f"{path.name}.draft")
        draft.write_text(text)
        os.replace(draft, path)

    def _lines(self, name: str) -> list[str]:
        path = self._played / name
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture(scope="session")
def cuda_library() -> Path:
    """The compiled stand-in."""
    pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed")
    try:
        return shared.once("cuda", build) / LIBRARY
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture
def cuda(cuda_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CudaStandIn:
    """A stand-in that every process started by this test meets."""
    there = CudaStandIn(cuda_library, tmp_path / "machine")
    for name, value in there.env.items():
        monkeypatch.setenv(name, value)
    return there
