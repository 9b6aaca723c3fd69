"""Pictures: drawn once, as SVG that follows the reader's light or dark theme and as PNG on white."""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

INK = "#1f2a35"
"""Colour of text and axes; in the SVG it is the theme's."""

PAPER = "#fefefe"
"""Colour of what is hollow; in the SVG it is the theme's background."""

LIGHT, DARK = "#ffffff", "#14191f"
"""Backgrounds of the two themes."""

_INK_ON_DARK = "#dde4ea"
COLOURS = ("#2f7fd1", "#cc6a14", "#2a9461", "#9d62cf", "#d1485c", "#1f9099", "#96800a", "#7c8894")
"""One after the other for methods; each stands out from both backgrounds."""

_MARKERS = "osD^vPX*"
_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))
WIDTH = 4.6
"""Inches: about as many pixels as a phone's screen has in width, so that text stays readable there."""

NAME = 25
"""Characters of a name in a picture: two fit beside each other."""

_STYLE = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "svg.fonttype": "path",
    "svg.hashsalt": "lori_pl",
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    "axes.titlecolor": INK,
    "grid.color": INK,
    "grid.alpha": 0.18,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
}


@dataclass(frozen=True)
class Picture:
    """A drawn picture.

    Args:
        name: Its file's name without suffix.
        title: What stands over it.
        alt: What it shows, for those who do not see it.
        note: What stands below it.
        png: The PNG file's content.
        svg: The SVG file's content; ``None`` where there is only the PNG.
        width: Pixels of the page that the PNG is meant for, where it is shown as it is.
    """

    name: str
    title: str
    alt: str
    note: str
    png: bytes
    svg: bytes | None = None
    width: int | None = None

    @property
    def pixels(self) -> np.ndarray:
        """The picture on white, uint8, shape (height, width, 3)."""
        with Image.open(io.BytesIO(self.png), formats=["PNG"]) as file:
            image = file.convert("RGBA")
            return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))

    @property
    def uri(self) -> str:
        """The picture inside an address, as the page shows it."""
        kind, content = ("png", self.png) if self.svg is None else ("svg+xml", self.svg)
        return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


@contextmanager
def drawing() -> Iterator[None]:
    """Draws in the report's style, whatever the user's settings are."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        # a name in a script that the font lacks is drawn with boxes
        warnings.filterwarnings("ignore", message=".*Glyph .* missing from.*")
        yield


def picture(name: str, title: str, alt: str, draw: Callable[[], Figure], note: str = "") -> Picture:
    """Draws a picture in both forms.

    Args:
        name: Its file's name without suffix.
        title: What stands over it.
        alt: What it shows, in words.
        draw: Makes the figure.
        note: What stands below it.
    """
    with drawing():
        figure = draw()
        png, svg = io.BytesIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        figure.set_layout_engine("none")  # everything has its place now
        figure.savefig(png, format="png", dpi=170, facecolor="white")
    return Picture(name, title, alt, note, png.getvalue(), themed(svg.getvalue()))


def themed(svg: bytes) -> bytes:
    """An SVG whose ink is that of the reader's theme, without what would lead outside of it."""
    text = svg.decode("utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = text.replace(INK, "currentColor").replace(PAPER, "var(--paper)")
    light, dark = f"color:{INK};--paper:{LIGHT}", f"color:{_INK_ON_DARK};--paper:{DARK}"
    style = f"svg{{{light}}}@media (prefers-color-scheme: dark){{svg{{{dark}}}}}"
    end = text.index(">") + 1
    return f"{text[:end]}<style>{style}</style>{text[end:]}".encode()


def plain(text: str, limit: int = NAME) -> str:
    """A name as matplotlib shall draw it: as it stands, no mathematics, in one line; its middle gives way to length."""
    line = " ".join(text.split())
    if len(line) > limit:
        line = f"{line[: limit // 2]}…{line[len(line) - (limit - limit // 2 - 1) :]}"
    # a label that begins with an underscore would be left out
    return (" " + line if line.startswith("_") else line).replace("$", r"\$")


def shortened(names: Sequence[str], limit: int = NAME) -> list[str]:
    """Names as matplotlib shall draw them, told apart by a number where they are alike once they are short."""
    short = [plain(name, limit) for name in names]
    return [
        f"{name} #{short[: place + 1].count(name)}" if short.count(name) > 1 else name
        for place, name in enumerate(short)
    ]


def look(place: int) -> dict[str, Any]:
    """Colour, marker and dashes of the method at a place; no two of the first hundreds are alike."""
    turn = place // len(COLOURS)
    return {
        "color": COLOURS[place % len(COLOURS)],
        "marker": _MARKERS[turn % len(_MARKERS)],
        "linestyle": _DASHES[turn % len(_DASHES)],
    }


def panels(count: int, names: Sequence[str], height: float = 2.9, rows: int | None = None) -> tuple[Figure, list[Axes]]:
    """A figure with panels below each other and room for a legend of names, or of so many rows, below them."""
    if rows is None:
        rows = -(-len(names) // columns(names)) if len(names) > 1 else 0
    figure = Figure(figsize=(WIDTH, count * height + 0.19 * rows + 0.1), layout="constrained")
    return figure, list(figure.subplots(count, 1, squeeze=False)[:, 0])


def legend(figure: Figure, handles: Sequence[Any], names: Sequence[str]) -> None:
    """The legend below the panels; none for one name."""
    if len(names) > 1:
        figure.legend(handles, shortened(names), loc="outside lower center", ncols=columns(names))


def columns(names: Sequence[str]) -> int:
    """How many columns of a legend fit into the width."""
    longest = max((min(len(name), NAME) for name in names), default=1)
    return max(1, min(3, len(names), int(64 / (longest + 6))))
