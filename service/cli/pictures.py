"""SVG to PNG, by resvg where it is installed (the extra `png`). Knows no server."""

from __future__ import annotations

from service.api.frontier_svg import FONT
from service.cli.failures import CommandFailed, ExitCode

_ZOOM = 2.0  # sharp on screens with twice the pixels
_PROBE = '<svg xmlns="http://www.w3.org/2000/svg" width="40" height="20">{}</svg>'


def png(svg: str) -> bytes:
    """The picture in pixels. Raises CommandFailed without resvg, and where no font is installed to write with."""
    try:
        import resvg_py
    except ImportError:
        raise CommandFailed(
            "not_installed",
            "A PNG needs resvg, which is not installed.",
            remedy="pip install 'quantry[png]', or name a file that ends in .svg",
            exit_code=ExitCode.USAGE,
        ) from None
    text = f'<text y="15" font-family="{FONT}">Q4</text>'
    if resvg_py.svg_to_bytes(_PROBE.format(text)) == resvg_py.svg_to_bytes(_PROBE.format("")):
        raise CommandFailed(
            "no_fonts",
            "A PNG needs a font, and none of those it could be written in is installed.",
            remedy="install one (fonts-dejavu-core, on Debian), or name a file that ends in .svg",
        )
    return resvg_py.svg_to_bytes(svg, zoom=_ZOOM)
