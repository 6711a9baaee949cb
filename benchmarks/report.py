"""The tables: on the terminal, and in README.md between its markers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from . import chart, goals
from .contestants import CONTESTANTS
from .store import HERE, Kept, Table, kept_runs
from .suite import WORKLOADS

if TYPE_CHECKING:
    from collections.abc import Iterable

README = HERE / "README.md"
SERVER_TITLES = {"postgres": "PostgreSQL, SELECT 1", "redis GET": "Redis, GET", "redis PING": "Redis, PING"}


def title(workload: str) -> str:
    if workload in WORKLOADS:
        return WORKLOADS[workload].title
    if workload.startswith("memory"):
        return "bytes " + {"memory idle": "an idle connection", "memory waiter": "a waiter"}[workload]
    server, _, tasks = workload.partition(", ")
    many = " on 10 connections" if tasks != "1 task" else ""
    return f"{SERVER_TITLES.get(server, 'MariaDB, SELECT 1')}, {tasks}{many}"


def table(workload: str, rows: list[Kept]) -> tuple[list[str], list[list[str]]]:
    """Header and cells; ratios first."""
    if workload.startswith("memory"):
        header = ["", "B"] + (["B without the task"] if "waiter" in workload else [])
        cells = [[_size(row["median"])] + [_size(value) for value in row["extra"].values()] for row in _good(rows)]
    elif workload == "import":
        header = ["", "ms", "modules"]
        cells = [[f"{row['best'] * 1e3:.1f}", f"{row['extra']['modules']:.0f}"] for row in _good(rows)]
    elif any(key.isdigit() for row in rows for key in row.get("extra", {})):
        sizes = sorted({int(key) for row in rows for key in row.get("extra", {}) if key.isdigit()})
        header = ["us", *(f"{size:,}" for size in sizes), "growth"]
        cells = []
        for row in _good(rows):
            found = [row["extra"].get(str(size)) for size in sizes]
            cells.append([_us(cost) if cost else "-" for cost in found] + [f"{goals.growth(row):.1f} x"])
    elif workload in WORKLOADS:
        base = WORKLOADS[workload].base
        header = ["", f"x {base}", "us", "best us", "spread"]
        keys = list(dict.fromkeys(key for row in rows for key in row.get("extra", {})))
        header += (
            {"jain": ["Jain", "ops/s"], "p99": ["p99 ms"], "costs": ["timeout, us"], "turns": ["hand-offs"]}.get(
                keys[0], []
            )
            if keys
            else []
        )
        header += ["p99 ms"] if "p99" in keys else []
        cells = []
        for row in _good(rows):
            ratio = f"{row['ratio']:.2f}" if row.get("ratio") else "-"
            line = [ratio, _us(row["median"]), _us(row["best"]), f"{row['spread']:.0%}"]
            if "jain" in keys:
                line += [f"{row['extra']['jain']:.3f}", f"{1 / row['median']:,.0f}", f"{row['extra']['p99'] * 1e3:.1f}"]
            if "turns" in keys:
                line += [f"{row['extra']['turns']:.0%}"]
            if "costs" in keys:
                line += [f"{row['extra']['costs'] * 1e6:+.2f}"]
            cells.append(line)
    else:
        header = [
            "",
            "of the limit",
            "uses/s",
            "p99 ms",
            "Jain",
            "CPU us",
            "ours: x its rate",
            "x its p99",
            "x its CPU",
        ]
        cells = []
        for row in _good(rows):
            extra = row["extra"]
            ours = [extra.get(f"ours, x its {figure}") for figure in ("rate", "p99", "cpu")]
            cells.append(
                [
                    f"{1 / row['ratio']:.2f}" if row.get("ratio") else "1",
                    f"{extra['rate']:,.0f}",
                    f"{extra['p99'] * 1e3:.2f}",
                    f"{extra['jain']:.3f}",
                    f"{extra['cpu'] * 1e6:.0f}",
                    *(f"{figure:.2f}" if figure else "-" for figure in ours),
                ]
            )
    lines = [[_name(row), *line] for row, line in zip(_good(rows), cells, strict=True)]
    for row in rows:
        if row.get("median") is None:
            lines.append([_name(row), f"NOT MEASURED: {_one_line(row['note'])}"])
        elif row["note"]:
            lines[[line[0] for line in lines].index(_name(row))].append(_one_line(row["note"]))
    return header, lines


def show(kept: Kept) -> None:
    """The tables of a run on the terminal, and how far the goals are met."""
    run = Table(kept)
    for workload in run.workloads():
        header, lines = table(workload, run.workload(workload))
        print(f"\n{title(workload)}")
        _print(header, lines)
    rows = [[row.text, row.measured, row.verdict] for row in goals.judge(run)]
    if rows:
        print("\ngoals")
        _print(["", "measured", ""], rows)
    quick = ", a quick look: not to be quoted" if kept["quick"] else ""
    print(f"\nPython {kept['python']}, {kept['loop']}, {kept['machine']}, {kept['date']}{quick}")
    print(", ".join([f"{name} {version}" for name, version in kept["versions"].items()] + kept["servers"]))


def _print(header: list[str], lines: list[list[str]]) -> None:
    full = [line for line in lines if len(line) >= len(header)]
    widths = [max(len(line[i]) for line in [header, *full]) for i in range(len(header))]
    widths[0] = max(widths[0], *(len(line[0]) for line in lines), 0)
    for line in [header, *lines]:
        if len(line) < len(header):
            print(f"  {line[0]:<{widths[0]}}  {' '.join(line[1:])}")
            continue
        cells = [f"{cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=False)]
        print(f"  {line[0]:<{widths[0]}}  {'  '.join(cells)}  {' '.join(line[len(header) :])}".rstrip())


def renew() -> None:
    """Write README.md's tables, and the chart, from the kept results."""
    runs = kept_runs()
    if not runs:
        print("no result is kept yet: python -m benchmarks --write")
        return
    tables = {tag: Table(run) for tag, run in runs.items()}
    first = next(iter(tables.values()))
    text = README.read_text()
    text = _between(text, "goals", goals.markdown(tables))
    text = _between(text, "runs", "\n".join(_origin(tag, run) for tag, run in runs.items()))
    text = _between(text, "tables", "\n\n".join(_markdown(first)))
    README.write_text(text)
    (HERE / "chart.svg").write_text(chart.draw(first))


def replace_between(name: str, content: str) -> None:
    """Renew one part of README.md."""
    README.write_text(_between(README.read_text(), name, content))


def _origin(tag: str, run: Kept) -> str:
    others = ", ".join([f"{name} {version}" for name, version in run["versions"].items()] + run["servers"])
    return f"- **{tag}**: {run['date']}, CPython {run['python']}, {run['loop']}, {run['machine']}; {others}."


def _markdown(run: Table) -> Iterable[str]:
    for workload in run.workloads():
        header, lines = table(workload, run.workload(workload))
        text = [f"### {title(workload)}", "", f"| {' | '.join(header)} |", f"|---|{'--:|' * (len(header) - 1)}"]
        for line in lines:
            cells = line[: len(header)]
            if len(line) > len(header):
                cells[0] += f" ({' '.join(line[len(header) :])})"
            text.append(f"| {' | '.join([_bold(cells[0]), *cells[1:], *[''] * (len(header) - len(cells))])} |")
        yield "\n".join(text)


def _bold(name: str) -> str:
    return f"**{name}**" if name.startswith("ours") else name


def _between(text: str, name: str, content: str) -> str:
    pattern = re.compile(rf"<!-- {name}:begin -->\n.*?<!-- {name}:end -->", re.DOTALL)
    if not pattern.search(text):
        msg = f"README.md has no markers for {name!r}: <!-- {name}:begin --> ... <!-- {name}:end -->"
        raise ValueError(msg)
    begin, end = f"<!-- {name}:begin -->\n", f"\n<!-- {name}:end -->"
    return pattern.sub(lambda _: begin + content + end, text)


def _good(rows: list[Kept]) -> list[Kept]:
    return [row for row in rows if row.get("median") is not None]


def _name(row: Kept) -> str:
    one = CONTESTANTS.get(row["contestant"])
    return f"{row['contestant']} (floor)" if one and one.kind == "floor" else str(row["contestant"])


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:,.2f}" if seconds < 1e-4 else f"{seconds * 1e6:,.0f}"


def _size(size: float) -> str:
    return f"{size:,.0f}"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:160].replace("|", "/")
