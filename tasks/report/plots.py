"""Curves as SVG that takes its colours from the page around it, so that they suit light and dark."""

import io
import math
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

SVG = "http://www.w3.org/2000/svg"
# What matplotlib is told to draw with, and what stands in its place in the page
INK, GRID, SERIES = "#010101", "#020202", ("#030303", "#040404", "#050505", "#060606")
VARIABLES = {INK: "var(--muted)", GRID: "var(--line)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, 1)
}
WIDTH_IN, HEIGHT_IN = 3.3, 1.75
FEW_POINTS = 25  # up to here each one is marked
STYLE = {
    "svg.fonttype": "none",
    "font.size": 7.5,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-3, 5),
}


@dataclass(frozen=True)
class Line:
    """Points of one quantity; `low` and `high` are an interval around each, if given."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True)
class Chart:
    """What one picture shows."""

    title: str
    lines: Sequence[Line]
    x_label: str = "step"
    events: Sequence[float] = ()  # where on x something happened: a dashed line each
    level: float | None = None  # a value of y to compare with
    stars: Mapping[float, float] = field(default_factory=dict)  # x and y of points that stand out
    crosses: Mapping[float, float] = field(default_factory=dict)  # and of points that were refused
    span: tuple[float, float] | None = None  # the ends of the x axis; None = those of the lines


def svg(chart: Chart) -> str:
    """The chart as an <svg> element with a text alternative, without a size of its own."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**STYLE, "svg.hashsalt": chart.title}):
        figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN))
        axes = figure.add_axes((0.15, 0.2, 0.83, 0.75))
        _draw(axes, chart)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
    return _for_the_page(buffer.getvalue(), describe(chart))


def describe(chart: Chart) -> str:
    """The chart in words, for those who do not see it: where each line starts, ends and lies."""
    parts = []
    for line in chart.lines:
        values = [value for value in line.y if math.isfinite(value)]
        if values:
            span = f"from {values[0]:.4g} to {values[-1]:.4g}, between {min(values):.4g} and {max(values):.4g}"
            parts.append(f"{line.label} {span}, {len(values)} points")
    return f"Plot of {chart.title} over {chart.x_label}: {'; '.join(parts) or 'no finite value'}."


def _draw(axes, chart: Chart) -> None:  # type: ignore[no-untyped-def]
    for line, colour in zip(chart.lines, SERIES, strict=False):
        marker = "o" if len(line.x) <= FEW_POINTS else ""
        axes.plot(line.x, line.y, color=colour, linewidth=1.3, marker=marker, markersize=3)
        if line.low is not None and line.high is not None:
            axes.vlines(line.x, line.low, line.high, color=colour, linewidth=1.0, alpha=0.6)
    for at in chart.events:
        axes.axvline(at, color=INK, linewidth=0.8, linestyle="--")
    if chart.level is not None:
        axes.axhline(chart.level, color=INK, linewidth=0.8, linestyle=":")
    for points, marker, size in ((chart.stars, "*", 60), (chart.crosses, "x", 28)):
        if points:
            axes.scatter(list(points), list(points.values()), marker=marker, s=size, color=SERIES[0], zorder=3)
    if chart.span is not None:
        axes.set_xlim(*chart.span)
    axes.set_xlabel(chart.x_label, labelpad=1)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)
    axes.yaxis.get_major_locator().set_params(nbins=5)


def _for_the_page(text: str, alternative: str) -> str:
    """matplotlib's SVG as part of an HTML page: no size, no ids that nothing refers to, the page's colours."""
    ET.register_namespace("", SVG)
    ET.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ET.fromstring(text)
    for name in ("width", "height"):
        root.attrib.pop(name)
    root.attrib |= {"role": "img", "aria-label": alternative, "class": "plot"}
    for element in [element for element in root if element.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}defs")]:
        root.remove(element)  # the definitions at the top are a style for the whole document
    for element in root.iter():
        if f"#{element.attrib.get('id')}" not in text:
            element.attrib.pop("id", None)
    page = ET.tostring(root, encoding="unicode")
    for colour, variable in VARIABLES.items():
        page = page.replace(colour, variable)
    return page
