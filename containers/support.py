"""What the test matrix has found: kept in docs/support.json, shown in docs/support.md and in the README.

Each part of `nox -s matrix` replaces its own rows; all texts are made from the rows.
"""

import datetime as dt
import json
import re
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "support.json"
PAGE = ROOT / "docs" / "support.md"
README = ROOT / "README.md"
ADAPTERS = ROOT / "docs" / "adapters" / "index.md"
MARKS = ("<!-- made from docs/support.json -->", "<!-- end -->")

# What bb8's README of June 2026 and diesel list, and what there is here: an adapter, and the one of its servers that is meant
# if it has several kinds; or what there is instead of an adapter.
BACKENDS = (
    ("tokio-postgres (bb8-postgres), PostgreSQL (diesel)", "postgres", ""),
    ("MySQL (diesel)", "mysql", ""),
    ("SQLite (diesel)", "sqlite", ""),
    ("redis (bb8-redis), redis_cluster_async (bb8-redis-cluster), rsmq", "redis", ""),
    ("bolt-client (bb8-bolt)", "neo4j", ""),
    ("tiberius (bb8-tiberius)", "odbc", "SQL Server"),
    ("memcache-async (bb8-memcached)", "memcached", ""),
    ("lapin (bb8-lapin)", "rabbitmq", ""),
    ("arangors (bb8-arangodb)", "arangodb", ""),
    ("nebula-client (bb8-nebula)", "", "[a recipe](nebula.md)"),
    ("tonic (bb8-tonic)", "", "none: a gRPC channel multiplexes by itself"),
    ("beside them: MongoDB", "mongo", ""),
)

Row = dict[str, Any]  # adapter, choice, python; then version, servers, passed, failed, skipped, date, or missing


def row(adapter: str, choice: str, python: str, result: Row) -> Row:
    """One pair's row, from what the plugin has left in POOL_TEST_RESULTS."""
    today = dt.datetime.now(dt.UTC).date().isoformat()
    counts = {word: result[word] for word in ("passed", "failed", "skipped")}
    named = [result["versions"][kind.partition(":")[0]] for kind in choice.split()]
    servers = ", ".join(dict.fromkeys(re.split(r" \(| before ", name)[0] for name in named))
    return {"adapter": adapter, "choice": choice, "python": python, "version": result["python"]} | {
        "servers": servers or "none needed",
        **counts,
        "date": today,
    }


def missing(adapter: str, choice: str, python: str, reason: str) -> Row:
    """The row of a pair that could not be tried."""
    return {"adapter": adapter, "choice": choice, "python": python, "missing": reason}


def merge(rows: Iterable[Row]) -> None:
    """Replace the rows of the same pairs, and write what is made from them."""
    known = {_pair(known): known for known in load()}
    known |= {_pair(new): new for new in rows}
    ordered = sorted(known.values(), key=lambda row: (row["adapter"], _natural(row["choice"]), _natural(row["python"])))
    RESULTS.write_text("[\n" + ",\n".join(f" {json.dumps(row)}" for row in ordered) + "\n]\n")
    PAGE.write_text(page(ordered))
    README.write_text(readme(README.read_text(), ordered))
    ADAPTERS.write_text(adapters(ADAPTERS.read_text(), ordered))


def load() -> list[Row]:
    """All rows."""
    rows: list[Row] = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    return rows


def page(rows: Sequence[Row]) -> str:
    """The text of docs/support.md."""
    lines = [
        "# Supported versions",
        "",
        "Each row is one run of an adapter's whole test suite. `nox -s matrix` makes this page, in parts: `nox -s",
        '"matrix(mysql)"`, or `nox -s "matrix(mysql)" -- 3.14` for one Python. Do not edit it. Servers are named as they',
        "name themselves; where one stands in for another, the row says so.",
        "",
        "| adapter | server | Python | passed | failed | skipped | date |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "missing" in row:
            cells = [f"pool-{row['adapter']}", row["choice"], row["python"], f"not run: {row['missing']}", "", "", ""]
        else:
            names = ("servers", "version", "passed", "failed", "skipped", "date")
            cells = [f"pool-{row['adapter']}", *(str(row[name]) for name in names)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def adapters(text: str, rows: Sequence[Row]) -> str:
    """The text of docs/adapters/index.md with its table of backends made anew."""
    lines = ["| backend | here | driver | all tests pass on |", "|---|---|---|---|"]
    for backend, adapter, note in BACKENDS:
        project = ROOT / "packages" / f"pool-{adapter}" / "pyproject.toml"
        if not adapter or not project.exists():
            lines.append(f"| {backend} | {note or 'not yet'} | | |")
            continue
        needs = tomllib.loads(project.read_text())["project"]["dependencies"]
        drivers = ", ".join(f"`{need}`" for need in needs if not need.startswith("pool-core"))
        good = [row for row in rows if row["adapter"] == adapter and row.get("failed") == 0]
        seen = "; ".join(dict.fromkeys(row["servers"] for row in good)) or "not in the matrix yet"
        servers = seen if note in seen else f"not seen on {note}; {seen}"
        lines.append(f"| {backend} | [pool-{adapter}]({adapter}.md) | {drivers} | {servers} |")
    return _between_marks(text, lines)


def _between_marks(text: str, lines: Sequence[str]) -> str:
    before, begin, rest = text.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    assert begin, f"bug: the text lacks the line {MARKS[0]}"
    assert end, f"bug: the text lacks the line {MARKS[1]}"
    return f"{before}{begin}\n\n" + "\n".join(lines) + f"\n\n{end}{after}"


def readme(text: str, rows: Sequence[Row]) -> str:
    """The README with its table of versions made anew."""
    lines = ["| adapter | all tests pass on | on Python |", "|---|---|---|"]
    for adapter in dict.fromkeys(row["adapter"] for row in rows):
        good = [row for row in rows if row["adapter"] == adapter and row.get("failed") == 0]
        servers = list(dict.fromkeys(row["servers"] for row in good))
        pythons = sorted({row["python"] for row in good}, key=_natural)
        lines.append(f"| pool-{adapter} | {'; '.join(servers)} | {', '.join(pythons)} |")
    return _between_marks(text, lines)


def _pair(row: Row) -> tuple[str, str, str]:
    return row["adapter"], row["choice"], row["python"]


def _natural(text: str) -> list[tuple[int, str]]:
    """A key that sorts 3.9 before 3.15."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]
