"""Draw the dashboard from a real run: `python -m dashboards.picture` makes docs/pictures/dashboard.svg anew.

Grafana itself is not needed: each panel of grafana.json is asked of a real Prometheus, and drawn where it stands.
"""

from __future__ import annotations

import json
import math
import tempfile
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dashboards.recording import BEGAN, MINUTES, STEP, Prometheus, prometheus

if TYPE_CHECKING:
    from collections.abc import Iterable

HERE = Path(__file__).parent
PICTURE = HERE.parent / "docs" / "pictures" / "dashboard.svg"
COLUMN, LINE, GAP = 46, 26, 8
COLORS = ("#2f6fb3", "#d3922a", "#2f8657", "#bd3b34", "#7568b8", "#4f9da6", "#9a9c98")
FIXED = {
    "in_use": "#2f6fb3", "idle": "#8fb4d9", "max_size": "#626b74", "direct": "#2f6fb3", "waited": "#d3922a",
    "overloaded": "#7568b8", "timed_out": "#bd3b34", "queue": "#d3922a", "connect": "#bd3b34", "validate": "#7568b8",
    "opened": "#2f8657", "lifetime": "#9a9c98", "broken": "#bd3b34", "failed connects": "#bd3b34",
}  # fmt: skip
VARIABLES = {"$pool": ".*", "$instance": ".*", "$__rate_interval": "1m"}
POINTS = (MINUTES * 60 - STEP - 60) // STEP + 1

Series = tuple[str, list[float]]


def number(value: float, unit: str) -> str:
    """Write a number as Grafana does, or nearly."""
    if unit == "percentunit":
        return f"{100 * value:.0f} %"
    if unit == "s":
        return f"{value:.3g} s" if value >= 1 or value == 0 else f"{1000 * value:.3g} ms"
    return f"{value:.3g}"


def ask(server: Prometheus, panel: dict[str, Any]) -> list[Series]:
    """Return what a panel shows, by legend; where there is nothing: NaN."""
    found: list[Series] = []
    for target in panel["targets"]:
        query = target["expr"]
        for name, value in VARIABLES.items():
            query = query.replace(name, value)
        for series in server.ask(query):
            legend = target["legendFormat"]
            for name, value in series["metric"].items():
                legend = legend.replace(f"{{{{{name}}}}}", value)
            values = [math.nan] * POINTS
            for at, value in series["values"]:
                values[round((at - BEGAN - 60) / STEP)] = float(value)
            if any(value > 0 for value in values):
                found.append((legend, values))
    order = list(FIXED)
    return sorted(found, key=lambda series: order.index(series[0]) if series[0] in order else 0)


def text(x: float, y: float, words: str, size: float, *, color: str = "#1e252b", extra: str = "") -> str:
    """Write words."""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{color}" {extra}>{escape(words)}</text>'


def path(points: Iterable[tuple[float, float]]) -> str:
    """Join points; a gap begins anew."""
    parts, pen = [], "M"
    for x, y in points:
        if math.isnan(y):
            pen = "M"
        else:
            parts.append(f"{pen}{x:.1f} {y:.1f}")
            pen = "L"
    return "".join(parts)


def chart(series: list[Series], unit: str, box: tuple[float, float, float, float], *, stacked: bool) -> list[str]:
    """Draw lines, or areas one on the other; ``max_size`` is always a line of its own."""
    left, top, width, height = box
    base = [0.0] * POINTS
    bands: list[tuple[str, list[float], list[float]]] = []
    for legend, values in series:
        if stacked and legend != "max_size":
            upper = [low + (0 if math.isnan(value) else value) for low, value in zip(base, values, strict=True)]
            bands.append((legend, base, upper))
            base = upper
        else:
            bands.append((legend, [0.0] * POINTS, values))
    most = max([value for _, _, values in bands for value in values if not math.isnan(value)], default=1.0) or 1.0
    magnitude: float = 10 ** math.floor(math.log10(most))
    high = next(step * magnitude for step in (1, 2, 5, 10) if step * magnitude >= most * 0.999)
    places = [left + width * at / (POINTS - 1) for at in range(POINTS)]

    def y(value: float) -> float:
        return top + height * (1 - value / high)

    drawn = []
    for share in (0, 0.5, 1):
        drawn.append(f'<path d="M{left} {y(share * high):.1f}h{width}" stroke="#e8e8e3"/>')
        drawn.append(
            text(
                left - 5,
                y(share * high) + 3,
                number(share * high, unit),
                8.5,
                color="#626b74",
                extra='text-anchor="end"',
            )
        )
    for minute in range(5, MINUTES, 5):
        x = left + width * (minute * 60 - 60) / (MINUTES * 60 - 60)
        drawn.append(text(x, top + height + 12, f"12:{minute:02}", 8.5, color="#626b74", extra='text-anchor="middle"'))
    x = left
    for at, (legend, lower, upper) in enumerate(bands):
        color = FIXED.get(legend, COLORS[at % len(COLORS)])
        line = path(zip(places, map(y, upper), strict=True))
        if stacked and legend != "max_size":
            back = "L".join(
                f"{place:.1f} {y(value):.1f}" for place, value in reversed(list(zip(places, lower, strict=True)))
            )
            drawn.append(f'<path d="{line}L{back}Z" fill="{color}" fill-opacity=".3"/>')
        dash = ' stroke-dasharray="4 3"' if legend == "max_size" else ""
        drawn.append(f'<path d="{line}" fill="none" stroke="{color}" stroke-width="1.2"{dash}/>')
        drawn.append(f'<rect x="{x:.1f}" y="{top + height + 19:.1f}" width="9" height="3" rx="1" fill="{color}"/>')
        drawn.append(text(x + 13, top + height + 24, legend, 9, color="#626b74"))
        x += 24 + 5.1 * len(legend)
    return drawn


def draw(dashboard: dict[str, Any], server: Prometheus) -> str:
    """Draw all panels."""
    drawn = []
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        x, y = at["x"] * COLUMN + GAP, at["y"] * LINE + GAP
        width, height = at["w"] * COLUMN - GAP, at["h"] * LINE - GAP
        if panel["type"] == "row":
            drawn.append(text(x + 2, y + 13, panel["title"], 12, extra='font-weight="600"'))
            continue
        drawn.append(f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="#fff" stroke="#e3e3dd"/>')
        drawn.append(text(x + 10, y + 18, panel["title"], 10.5, extra='font-weight="600"'))
        unit = panel["fieldConfig"]["defaults"]["unit"]
        series = ask(server, panel)
        if panel["type"] == "stat":
            values = series[0][1] if series else [0.0] * POINTS
            high = max([value for value in values if not math.isnan(value)], default=0.0) or 1.0
            places = (x + 1 + (width - 2) * point / (POINTS - 1) for point in range(POINTS))
            line = path(zip(places, (y + height - 1 - 32 * value / high for value in values), strict=True))
            drawn.append(f'<path d="{line}" fill="none" stroke="#2f6fb3" stroke-opacity=".5"/>')
            drawn.append(
                text(
                    x + 10,
                    y + 46,
                    number(0.0 if math.isnan(values[-1]) else values[-1], unit),
                    22,
                    extra='font-weight="600"',
                )
            )
        else:
            stacked = panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] == "normal"
            drawn += chart(series, unit, (x + 44, y + 32, width - 58, height - 66), stacked=stacked)
    width = 24 * COLUMN + GAP
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"]) * LINE + GAP
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="system-ui, DejaVu Sans, sans-serif">'
    label = f"<title>{escape(dashboard['title'])}: load, a rush, an outage and a leak in half an hour</title>"
    return "\n".join([head, label, f'<rect width="{width}" height="{height}" fill="#f6f6f3"/>', *drawn, "</svg>", ""])


def main() -> None:
    """Make the picture."""
    with tempfile.TemporaryDirectory() as place, prometheus(Path(place)) as server:
        PICTURE.write_text(draw(json.loads((HERE / "grafana.json").read_text()), server))
    print(PICTURE)


if __name__ == "__main__":
    main()
