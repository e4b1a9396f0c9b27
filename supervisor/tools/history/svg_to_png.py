"""SVG → PNG. Without any font the renderer leaves texts out and says nothing, so that is looked for first."""

from __future__ import annotations

from typing import Final

# A generic family alone is silently left out by the renderer.
FONT: Final = "DejaVu Sans, Liberation Sans, Noto Sans, Verdana, Arial, sans-serif"


class PictureError(Exception):
    """The picture cannot be drawn; the text says why and what to do."""


def rasterise(svg: str, zoom: float) -> bytes:
    """The picture, `zoom` pixels to one.

    Raises:
        PictureError: no font is installed: its texts would silently be missing.
    """
    import resvg_py

    if not has_font():
        raise PictureError("no font is installed, so the PNG would have no text; install fonts-dejavu-core, or ask for svg")
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, zoom=zoom))


def has_font() -> bool:
    """A word leaves a mark."""
    import resvg_py

    frame = '<svg xmlns="http://www.w3.org/2000/svg" width="60" height="20" font-family="{}">{}</svg>'
    blank, word = (
        bytes(resvg_py.svg_to_bytes(svg_string=frame.format(FONT, content)))
        for content in ("", '<text x="2" y="15" font-size="13">RUNNING</text>')
    )
    return blank != word
