"""Curves of a run: in the terminal as braille dots, and as PNG or CSV files."""

import csv
import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from umbel.core.errors import Unavailable

if TYPE_CHECKING:
    from umbel.registry.records import MetricPoint

_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Bit of each dot of a braille cell, by column and row: a cell is 2 dots wide and 4 high."""

Curve = Sequence[tuple[float, float]]
"""(step, value), steps rising, values finite."""


def curves(points: "Iterable[MetricPoint]") -> dict[str, list[tuple[float, float]]]:
    """Points by metric; those that were NaN or infinite leave a gap."""
    found: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        if point.value is not None:
            found.setdefault(point.key, []).append((float(point.step), point.value))
    return found


def plot(curve: Curve, *, width: int, height: int = 6) -> list[str]:
    """Lines of text, ``width`` columns wide and ``height`` + 1 high: values on the left, steps below."""
    (left, right), (low, high) = _range(step for step, _ in curve), _range(value for _, value in curve)
    labels = [f"{high:.4g}", *[""] * (height - 2), f"{low:.4g}"]
    if low == high:
        labels = [f"{low:.4g}" if row == height // 2 else "" for row in range(height)]  # where the line runs
    margin = max(map(len, labels))
    columns = max(width - margin - 2, 8)
    scaled = [(_scale(x, left, right, 2 * columns), _scale(y, high, low, 4 * height)) for x, y in curve]
    rows = _cells(scaled, columns, height)
    axis = f"{left:.0f}".ljust(columns - len(f"{right:.0f}")) + f"{right:.0f}"
    return [
        *(f"{label:>{margin}} {'┤' if label else '│'}{row}" for label, row in zip(labels, rows, strict=True)),
        f"{'':>{margin}}  {axis}",
    ]


def write_csv(points: "Iterable[MetricPoint]", file: Path) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("metric", "step", "value"))
        writer.writerows((point.key, point.step, point.value) for point in points)


def write_png(found: dict[str, list[tuple[float, float]]], title: str, file: Path, *, xlabel: str = "step") -> None:
    """One small plot per metric; raises Unavailable (``missing_extra``) without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise Unavailable(
            "a PNG needs matplotlib.", code="missing_extra", hint="pip install 'umbel[train]', or --csv FILE"
        ) from error
    columns = min(len(found), 3)
    rows = math.ceil(len(found) / columns)
    figure = Figure(figsize=(4.5 * columns, 3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for index, (key, curve) in enumerate(found.items(), start=1):
        axes = figure.add_subplot(rows, columns, index, title=key, xlabel=xlabel)
        axes.plot(*zip(*curve, strict=True), marker="o" if len(curve) == 1 else None)
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120, format="png")


def _cells(dots: Sequence[tuple[int, int]], columns: int, height: int) -> list[str]:
    bits = [[0] * columns for _ in range(height)]
    for x, y in _joined(dots):
        bits[y // 4][x // 2] |= _DOTS[x % 2][y % 4]
    return ["".join(chr(0x2800 + cell) for cell in row) for row in bits]


def _joined(dots: Sequence[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    """The dots and those on the straight lines between them."""
    yield from dots[:1]
    for (x0, y0), (x1, y1) in pairwise(dots):
        steps = max(abs(x1 - x0), abs(y1 - y0), 1)
        for step in range(1, steps + 1):
            yield round(x0 + (x1 - x0) * step / steps), round(y0 + (y1 - y0) * step / steps)


def _range(values: Iterable[float]) -> tuple[float, float]:
    found = list(values)
    return min(found), max(found)


def _scale(value: float, first: float, last: float, dots: int) -> int:
    """0 at ``first``, ``dots`` - 1 at ``last``; a flat line runs through the middle."""
    if first == last:
        return dots // 2
    return round((value - first) / (last - first) * (dots - 1))
