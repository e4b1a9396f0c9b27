"""How commands write pictures: by the name's end, or exit 2 with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from supervisor.cli.common import Exit, exit_with


def write_picture(out: Path, draw: Callable[[bool], str], zoom: float = 2.0) -> None:
    """An SVG, or a PNG of its light colours; `draw` gets whether dark colours go along."""
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
    """The file, or exit 2."""
    try:
        out.write_bytes(content)
    except OSError as error:
        exit_with(Exit.WRONG, f"{out}: cannot be written: {error.strerror}")
