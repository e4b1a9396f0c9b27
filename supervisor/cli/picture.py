"""How commands write pictures: SVG or PNG by the file's name; exit 2 with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from supervisor.cli.common import Exit, exit_with


def check_name(out: Path | None, *endings: str) -> None:
    """Exit 2 unless the name has one of these endings."""
    if out is not None and out.suffix.lower() not in endings:
        *first, last = endings
        allowed = f"{', '.join(first)} or {last}"
        exit_with(Exit.WRONG, f"--out: found {out}, allowed: a name that ends in {allowed}")


def write_picture(out: Path, draw: Callable[[bool], str], zoom: float = 2.0) -> None:
    """An SVG, or a PNG in light colours. The argument of `draw`: whether to include dark colours."""
    if out.suffix.lower() != ".png":
        write_file(out, draw(True).encode())
        return
    from supervisor.tools.history.svg_to_png import PictureError, rasterise

    try:
        content = rasterise(draw(False), zoom)
    except PictureError as error:
        exit_with(Exit.WRONG, str(error))
    write_file(out, content)


def write_file(out: Path, content: bytes) -> None:
    """Write the file, or exit 2."""
    try:
        out.write_bytes(content)
    except OSError as error:
        exit_with(Exit.WRONG, f"{out}: cannot be written: {error.strerror}")
