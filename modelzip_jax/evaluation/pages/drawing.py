"""Figures of matplotlib as SVG that stands in a page: in its colours, light or dark, and as wide as its column."""

from __future__ import annotations

import contextlib
import html
import io
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from modelzip_jax.errors import MissingExtraError
from modelzip_jax.evaluation.pages.markup import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["AFTER", "BEFORE", "GRID", "INK", "canvas", "check_installed", "plain_axes", "svg"]

# Colours that nobody would choose, which become the page's own.
INK, BEFORE, AFTER, GRID = "#010203", "#010204", "#010205", "#010206"
_OF_PAGE = {
    INK: "currentColor",
    BEFORE: "var(--before)",
    AFTER: "var(--after)",
    GRID: "var(--grid)",
}
_STYLE = {
    "font.size": 9,
    "svg.fonttype": "none",
    "axes.edgecolor": INK, "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6,
    "axes.spines.top": False, "axes.spines.right": False,
    "text.parse_math": False, "axes.formatter.use_mathtext": False,
    "axes.facecolor": "none", "figure.facecolor": "none", "legend.frameon": False,
}  # fmt: skip
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def check_installed() -> None:
    """Raises `MissingExtraError` if matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("a report needs matplotlib: pip install 'modelzip_jax[report]'") from error


@contextlib.contextmanager
def canvas(width: float, height: float, salt: str) -> Iterator[Figure]:
    """A figure of so many inches to draw on, in the page's style; `salt` tells its inner names from other figures'.

    Raises:
      MissingExtraError: matplotlib is not installed.
    """
    check_installed()
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {**_STYLE, "svg.hashsalt": salt}
    with matplotlib.rc_context(style):
        yield Figure(figsize=(width, height), layout="constrained")


def plain_axes(figure: Figure, width: float, height: float) -> Any:
    """Axes without frame or room around them, in which a unit is an inch."""
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, width), ylim=(height, 0))
    return axes


def svg(figure: Figure, label: str, told: Mapping[str, str] | None = None, class_: str = "") -> Markup:
    """The figure as an element of HTML; within `canvas`.

    Args:
      label: what it shows, for those who do not see it.
      told: what is told of an artist while the mouse is on it, by its gid.
      class_: a class more.
    """
    held = io.StringIO()
    figure.savefig(held, format="svg", metadata=_NO_METADATA)
    text = held.getvalue()
    text = re.sub(r"<style.*?</style>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # The first tag alone says how large it is: the page does.
    head, rest = text.split(">", 1)
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', head)
    assert box is not None
    names = " ".join(("figure", class_)).strip()
    # What is drawn for a width of screen fills it; of others, letters grow no larger than the page's.
    width = "" if class_ else f' style="max-width:{float(box[1]) * 4 / 3:.0f}px"'
    start = f'<svg class="{names}" role="img" aria-label="{html.escape(label)}" {box[0]}{width}'
    for gid, words in (told or {}).items():
        rest = rest.replace(f'<g id="{gid}">', f"<g><title>{html.escape(words)}</title>", 1)
    used = set(re.findall(r"#([\w-]+)", rest))
    rest = re.sub(r' id="([\w-]+)"', lambda found: found[0] if found[1] in used else "", rest)
    for colour, own in _OF_PAGE.items():
        rest = rest.replace(colour, own)
    rest = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", rest)
    rest = re.sub(r"(\d\.\d)\d+", r"\1", rest)
    rest = re.sub(r"[ \t]*\n[ \t]*", "\n", rest.replace("xlink:href", "href").replace(' target="_blank"', ""))
    return Markup(f"{start}>{rest.strip()}")
