"""SVG → PNG. Without a font the renderer leaves all text out and reports nothing, so look for a font first."""

from __future__ import annotations

from typing import Final

# The renderer leaves out text that names only a generic family.
FONT: Final = "DejaVu Sans, Liberation Sans, Noto Sans, Verdana, Arial, sans-serif"


class PictureError(Exception):
    """The picture cannot be drawn; the text says why and what to do."""


def rasterise(svg: str, zoom: float) -> bytes:
    """The picture, `zoom` pixels to one.

    Raises:
        PictureError: no font is installed.
    """
    import resvg_py

    def draw(text: str) -> bytes:
        frame = f'<svg xmlns="http://www.w3.org/2000/svg" width="60" height="20" font-family="{FONT}">{text}</svg>'
        return bytes(resvg_py.svg_to_bytes(svg_string=frame))

    if draw("") == draw('<text x="2" y="15" font-size="13">RUNNING</text>'):
        raise PictureError("no font is installed, so the PNG would have no text; install fonts-dejavu-core, or ask for svg")
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, zoom=zoom))
