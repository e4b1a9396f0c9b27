"""Stands in for pip in a box: copies installed packages instead of installing wheels. Run as `pip.__main__`, from a wheel.

ensurepip runs it to install itself. Then `pip install --find-links DIR …` copies DIR/site, or the site of the stub.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
import zipfile
from pathlib import Path

STUB = Path("/mnt/share/stub")


def main(given: list[str]) -> None:
    """Do what this command line asks for."""
    site = Path(sysconfig.get_path("purelib"))
    if "pip" in given:
        with zipfile.ZipFile(Path(__file__).parents[1]) as wheel:
            wheel.extractall(site)
    else:
        own = Path(given[given.index("--find-links") + 1]) / "site"
        shutil.copytree(own if own.is_dir() else STUB / "site", site, dirs_exist_ok=True)


if __name__ == "__main__":
    main(sys.argv[1:])
