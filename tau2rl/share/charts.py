"""Charts as inline SVG: bars with intervals, lines over steps or over k. No script, no style attribute, no text unescaped.

Colors are classes (`s0` to `s5`), which the page's style sheet fills for light and dark. A chart has a `title` for whoever cannot
see it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from tau2rl.report.tables import printable

SERIES = 6  # colors; a seventh line has the first again
POINTS = 400  # of a line; more are thinned out, as no screen has more columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar: `Bar(label="grpo", value=0.705, low=0.613, high=0.783, floor=0.0)`."""

    label: str
    value: float  # 0 to 1
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    published: bool = False  # somebody else's number: drawn paler


def bar_chart(rows: Sequence[Bar]) -> Markup:
    """Shares from 0 to 1, a row each: the name and the number as text, which a phone can read, and between them the bar.

    The interval is a whisker, the floor a tick.
    """
    return Markup("").join(_bar(row) for row in rows)


def _bar(bar: Bar) -> Markup:
    plot = [Markup('<rect class="track" x="0" y="0" width="100" height="16"/>')]
    color = "published" if bar.published else "s0"
    plot.append(Markup('<rect class="{}" x="0" y="2" width="{}" height="12"/>').format(color, _f(100 * bar.value)))
    if bar.floor:
        plot.append(Markup('<path class="floor" d="M{0} 0V16"/>').format(_f(100 * bar.floor)))
    told = f"{bar.value:.1%}"
    if bar.low is not None and bar.high is not None:
        ends = Markup('<path class="whisker" d="M{0} 8H{1}M{0} 5V11M{1} 5V11"/>')
        plot.append(ends.format(_f(100 * bar.low), _f(100 * bar.high)))
        told += f" [{100 * bar.low:.1f}, {100 * bar.high:.1f}]"
    return Markup(
        '<div class="bar"><span>{}</span>'
        '<svg viewBox="0 0 100 16" preserveAspectRatio="none" role="img"><title>{}</title>{}</svg><span>{}</span></div>'
    ).format(_label(bar.label, 60), told, Markup("").join(plot), told)


def line_chart(
    title: str, series: Mapping[str, Sequence[tuple[float, float]]], *, share: bool = False, integers: bool = False
) -> Markup:
    """One small chart: name -> points (x, y), drawn over one another. `share`: y from 0 to 1."""
    width, height, left, bottom, top = 320, 190, 48, 24, 10
    drawn = {name: _thinned([p for p in points if all(map(math.isfinite, p))]) for name, points in series.items()}
    every = [point for points in drawn.values() for point in points]
    if not every:
        return Markup("")
    low_x, high_x = _range([x for x, _ in every])
    low_y, high_y = (0.0, 1.0) if share else _range([y for _, y in every])

    def at(x: float, y: float) -> tuple[str, str]:
        across = left + (x - low_x) / (high_x - low_x) * (width - left - 10)
        return _f(across), _f(height - bottom - (y - low_y) / (high_y - low_y) * (height - bottom - top))

    parts = [_open(title, width, height)]
    for part in (0.0, 0.5, 1.0):
        y = low_y + part * (high_y - low_y)
        parts.append(Markup('<line class="grid" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>').format(left, width - 10, at(low_x, y)[1]))
        parts.append(
            Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>').format(
                left - 5, at(low_x, y)[1], _tick(y, share)
            )
        )
    marks = sorted({x for x, _ in every}) if integers and len({x for x, _ in every}) <= 9 else [low_x, high_x]
    below = Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>')
    parts += [below.format(at(x, low_y)[0], height - 8, f"{x:g}") for x in marks]
    for number, points in enumerate(drawn.values()):
        if not points:
            continue  # its color stays its own
        path = "M" + "L".join(" ".join(at(x, y)) for x, y in points)
        parts.append(Markup('<path class="line l{}" d="{}"/>').format(number % SERIES, path))
        if len(points) <= 12:
            parts += [Markup('<circle class="s{}" cx="{}" cy="{}" r="3"/>').format(number % SERIES, *at(x, y)) for x, y in points]
    return Markup("").join([*parts, Markup("</svg>")])


def legend(names: Iterable[str]) -> Markup:
    """The names of a chart's lines beside their colors."""
    return Markup("").join(
        Markup('<span class="key"><svg viewBox="0 0 10 10"><circle class="s{}" cx="5" cy="5" r="5"/></svg>{}</span>').format(
            number % SERIES, _label(name, 60)
        )
        for number, name in enumerate(names)
    )


def _open(title: str, width: int, height: int) -> Markup:
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img"><title>{}</title>').format(width, height, printable(title))


def _label(text: str, longest: int) -> Markup:
    plain = printable(text)
    return escape(plain if len(plain) <= longest else f"{plain[: longest - 1]}…")


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    step = max(1, math.ceil(len(points) / POINTS))
    return [*points[:-1:step], *points[-1:]]


def _tick(value: float, share: bool) -> str:
    """A number of at most six letters, as far as that goes.

    >>> _tick(0.25, True), _tick(21300.0, False), _tick(1.5e6, False), _tick(0.000991, False), _tick(0.546, False)
    ('25%', '21.3k', '1.5M', '9.9e-4', '0.546')
    """
    if share:
        return f"{value:.0%}"
    size = abs(value)
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.1e}".replace("e-0", "e-") if 0 < size < 0.001 else f"{value:.3g}"


def _f(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")
