"""Shared libraries of ours that stand in for a driver's, compiled where they are needed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


def compiled(source: str, name: str, folder: Path) -> Path:
    """Compile `source`, a file beside this one, into `folder` as the library `name`.

    Raises:
        FileNotFoundError: there is no C compiler.
    """
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise FileNotFoundError(f"no C compiler: the stand-in for {name} cannot be built")
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / name
    options = ["-O1", "-w", "-shared", "-fPIC", f"-Wl,-soname,{name}"]
    subprocess.run([compiler, *options, "-o", str(library), str(Path(__file__).with_name(source))], check=True)
    return library
