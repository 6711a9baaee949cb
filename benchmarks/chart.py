"""The chart of README.md: small bars, drawn by hand, readable on a light and on a dark page."""

from __future__ import annotations

from math import log10
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from .contestants import CONTESTANTS
from .goals import COMPILED

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .store import Kept, Table

_WIDTH, _ROW, _LABEL, _BAR, _TOP = 760, 20, 272, 330, 46
_STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #1f2328 }
  .head { font-weight: 600; font-size: 13px } .dim { fill: #59636e } .num { font-variant-numeric: tabular-nums }
  .ours { fill: #1a7f37 } .peer { fill: #8c959f } .floor { fill: #d0d7de } .unfair { fill: #bf8700 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .dim { fill: #9198a1 }
    .ours { fill: #3fb950 } .peer { fill: #656c76 } .floor { fill: #3d444d } .unfair { fill: #d29922 }
  }"""


def draw(run: Table) -> str:
    """Two panels: what a get and release costs, and what many tasks on few connections get, with the fairness."""
    kept = run.kept
    parts: list[str] = []
    y = _panel(
        parts,
        4,
        "get + release while connections are idle",
        "CPU microseconds, log scale; shorter is better",
        [
            (row["contestant"], row["median"] * 1e6, f"{row['median'] * 1e6:.2f} us", _kind(row))
            for row in _rows(run, "warm")
        ],
    )
    contended = [row for row in _rows(run, "contended") if row["contestant"] != "L0q"]
    y = _panel(
        parts,
        y + 16,
        "1000 tasks on 10 connections",
        "CPU microseconds an operation, log scale; amber: a dozen tasks got nearly everything",
        [
            (
                row["contestant"],
                row["median"] * 1e6,
                f"{row['median'] * 1e6:.1f} us, Jain {row['extra']['jain']:.2f}, p99 {row['extra']['p99'] * 1e3:.0f} ms",
                "unfair" if row["extra"]["jain"] < 0.5 and _kind(row) == "peer" else _kind(row),
            )
            for row in contended
        ],
    )
    origin = f"CPython {kept['python']}, {kept['machine']}, {kept['date']}. L0, L3: floors, see benchmarks/README.md"
    parts.append(f'<text class="dim" x="4" y="{y + 22}" font-size="11">{escape(origin)}</text>')
    height = y + 32
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'role="img" aria-label="pool-core beside its peers">\n<style>{_STYLE}\n</style>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _rows(run: Table, workload: str) -> list[Kept]:
    hidden = {"ours-lean", "L0q"}
    return [row for row in run.workload(workload) if row.get("median") and row["contestant"] not in hidden]


def _kind(row: Kept) -> str:
    return CONTESTANTS[row["contestant"]].kind


def _panel(parts: list[str], y: int, head: str, about: str, bars: Iterable[tuple[str, float, str, str]]) -> int:
    bars = sorted(bars, key=lambda bar: bar[1])
    parts.append(f'<text class="head" x="4" y="{y + 14}">{escape(head)}</text>')
    parts.append(f'<text class="dim" x="4" y="{y + 31}">{escape(about)}</text>')
    least, most = bars[0][1] / 2, bars[-1][1]
    y += _TOP
    for name, value, text, kind in bars:
        width = max(2.0, _BAR * log10(value / least) / log10(most / least) * 0.62)
        label = "pool-core" if kind == "ours" else f"{name} (compiled)" if name in COMPILED else name
        weight = ' font-weight="600"' if kind == "ours" else ""
        parts.append(f'<text x="{_LABEL - 8}" y="{y + 11}" text-anchor="end"{weight}>{escape(label)}</text>')
        parts.append(f'<rect class="{kind}" x="{_LABEL}" y="{y}" width="{width:.1f}" height="14" rx="2"/>')
        parts.append(f'<text class="dim num" x="{_LABEL + width + 6:.1f}" y="{y + 11}">{escape(text)}</text>')
        y += _ROW
    return y
