"""The ratios along the graph as a picture: one bar a tensor, the limit as a line, the first under it in red."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeopt.diff.difference import Difference

_BAR, _HEIGHT, _LEFT, _TOP, _BELOW = 14, 300, 50, 30, 160
_TOP_DB = 60.0


def svg(found: Difference) -> str:
    """Return the picture; bars end at 60 dB, and each has a title with its figures."""
    width = _LEFT + _BAR * len(found.tensors) + 20
    wrong = None if found.finding is None else found.finding.tensor.name
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{_TOP + _HEIGHT + _BELOW}" '
        'font-family="sans-serif" font-size="10">',
        f'<text x="{_LEFT}" y="16" font-size="13">{escape(found.second)} against {escape(found.first)}, dB</text>',
    ]
    for decibels in range(0, int(_TOP_DB) + 1, 10):
        y = _y(decibels)
        parts.append(f'<line x1="{_LEFT}" x2="{width}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{decibels}</text>')
    for index, tensor in enumerate(found.tensors):
        x, shown = _LEFT + _BAR * index, 0.0 if math.isnan(tensor.sqnr_db) else tensor.sqnr_db
        y, colour = _y(shown), "#c33" if tensor.name == wrong else "#47a"
        title = escape(f"{tensor.operator} {tensor.name}: {tensor.sqnr_db:.1f} dB")
        parts.append(
            f'<rect x="{x}" y="{y}" width="{_BAR - 3}" height="{max(_y(0) - y, 1)}" fill="{colour}">'
            f"<title>{title}</title></rect>"
        )
        parts.append(f'<text transform="translate({x + 8},{_y(0) + 6}) rotate(90)">{escape(tensor.name[-26:])}</text>')
    limit = _y(found.limit_db)
    parts.append(f'<line x1="{_LEFT}" x2="{width}" y1="{limit}" y2="{limit}" stroke="#c33" stroke-dasharray="4"/>')
    return "\n".join([*parts, "</svg>", ""])


def _y(decibels: float) -> float:
    """Return the height of a ratio in the picture."""
    share = min(max(decibels, 0.0), _TOP_DB) / _TOP_DB
    return round(_TOP + _HEIGHT * (1 - share), 1)
