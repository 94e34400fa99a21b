"""How the scripts of this folder save their pictures."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image


def save(figure: Figure, target: Path, dpi: int) -> None:
    """Write ``figure`` to the PNG ``target`` with 256 colours, a third of the size, dithered where these do not do."""
    drawn = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(drawn, dpi=dpi)
    image = Image.open(drawn).convert("RGB")
    # Maximum coverage keeps rare colours, which the mass of black and white would crowd out.
    palette = image.quantize(256, method=Image.Quantize.MAXCOVERAGE)
    image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(target, optimize=True)
