"""The goals, judged from one run: met, or the distance and its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .contestants import CONTESTANTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .store import Kept, Table

COMPILED = {"asyncmy.Pool"}
# Why a goal is missed, by the beginning of its text: printed under the table while it is missed somewhere.
REASONS = {
    "warm get + release": "what stands above L0 is semantics, each with its price in the budget below. The dearest: that the "
    "task and thread are the pool's own, and who holds what; then has_broken, which is asked at both ends.",
    "warm: at least 3.3": "the nearest peer has a size and a test for closed connections, and nothing else; see the row above.",
    "warm, lifetime": "the options change nothing on the path: it has one shape, whatever is switched off.",
    "1000 tasks on 10: at least 1.4": "on 3.13 ours with its two ways stripped of each check, clock and counter was measured "
    "at 1.48 x, on 3.11 at 1.72 x: there is less of L3 to save on the newer Pythons.",
    "hand-off: at most 0.75": "L0q, a bare future in a deque without a timeout, which loses connections when a get is "
    "cancelled, is at 0.58 on 3.11. Ours with its two ways stripped of each check, clock and counter was measured at 0.70: what "
    "stands between are the thread, the task, two looks at the clock, has_broken, and who waits for what.",
    "import": "an import does not know the loop: what a single run shows above the others is the machine.",
    "PostgreSQL: at least 1.5": "asyncpg.Pool without its reset reaches 0.65 of ten raw connections, so 1.54 x would be all of "
    "it; ours reaches 0.9 of it.",
    "PostgreSQL: at least 1.0": "the server is the limit. Our reset is eight statements (role, session authorization, temporary "
    "tables and sequences too), asyncpg's four: 56 and 50 us each, measured alone over ten connections.",
    "MariaDB": "both keep one processor busy with aiomysql itself: 0.76 and 0.78 of ten raw connections.",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One goal in one run."""

    text: str
    measured: str
    met: bool | None  # None: it could not be measured

    @property
    def verdict(self) -> str:
        return {True: "met", False: "MISSED", None: "not measured"}[self.met]


def judge(run: Table) -> list[Row]:
    """All goals whose workloads the run has."""
    present = {name.split(",")[0] for name in run.workloads()}
    rows: list[Row] = []
    for needs, judging in (
        ("warm", _warm),
        ("contended", _contended),
        ("handoff", _hand_off),
        ("idle growth", _growth),
        ("memory idle", _memory),
        ("import", _import),
        ("postgres", _postgres),
        ("redis GET", _redis),
        ("mariadb", _mariadb),
    ):
        if needs in present:
            rows += judging(run)
    return rows


def growth(record: Kept) -> float:
    """How much dearer one operation is at the largest size than at 1000, or than at the smallest if that is all."""
    sizes = sorted(int(key) for key in record["extra"] if key.isdigit())
    least = 1000 if 1000 in sizes and sizes[-1] > 1000 and record["workload"] != "idle growth" else sizes[0]
    return float(record["extra"][str(sizes[-1])] / record["extra"][str(least)])


def _row(text: str, value: float | None, met: bool, form: str = "{:.2f} x") -> Row:
    return Row(text, "-", None) if value is None else Row(text, form.format(value), met)


def _warm(run: Table) -> Iterator[Row]:
    old = run.kept["python"].startswith("3.11.")
    most = 1.8 if old else 1.5
    ours, lean = run.get("warm", "ours"), run.get("warm", "ours-lean")
    ratio = ours["ratio"] if ours else None
    yield _row("warm get + release: at most 1.8 x L0 on 3.11, 1.5 x later", ratio, ratio is not None and ratio <= most)
    pure = [row for row in run.workload("warm") if _is_peer(row) and row["contestant"] not in COMPILED]
    if ours and pure:
        nearest = min(pure, key=lambda row: row["ratio"])
        ahead = nearest["ratio"] / ours["ratio"]
        yield Row(
            "warm: at least 3.3 x ahead of every pool in pure Python",
            f"{ahead:.1f} x ({nearest['contestant']})",
            ahead >= 3.3,
        )
    ratio = lean["ratio"] if lean else None
    yield _row("warm, lifetime and deadlock detection off: at most 1.4 x L0", ratio, ratio is not None and ratio <= 1.4)


def _contended(run: Table) -> Iterator[Row]:
    ours, floor = run.get("contended", "ours"), run.get("contended", "L3")
    if not ours or not floor:
        return
    ahead = 1 / ours["ratio"]
    yield Row("1000 tasks on 10: at least 1.4 x L3's rate", f"{ahead:.2f} x", ahead >= 1.4)
    jain = ours["extra"]["jain"]
    yield Row("1000 tasks on 10: Jain's index at least 0.999", f"{jain:.4f}", jain >= 0.999)
    p99 = ours["extra"]["p99"] / floor["extra"]["p99"]
    yield Row("1000 tasks on 10: p99 wait at most 0.9 x L3's", f"{p99:.2f} x", p99 <= 0.9)
    if fair := _fair(run):
        nearest = min((row for row in run.workload("contended") if row["contestant"] in fair), key=_ratio)
        ahead = nearest["ratio"] / ours["ratio"]
        yield Row(
            "1000 tasks on 10: at least 2 x ahead of every fair peer",
            f"{ahead:.1f} x ({nearest['contestant']})",
            ahead >= 2,
        )


def _hand_off(run: Table) -> Iterator[Row]:
    ours = run.get("handoff", "ours")
    if not ours or not ours["ratio"]:
        return
    yield Row("hand-off: at most 0.75 x L3", f"{ours['ratio']:.2f} x", ours["ratio"] <= 0.75)
    fair = _fair(run)
    rows = [row for row in run.workload("handoff") if row["contestant"] in fair and row.get("ratio")]
    if rows:
        nearest = min(rows, key=_ratio)
        share = ours["ratio"] / nearest["ratio"]
        yield Row(
            "hand-off: at most 0.5 x the best fair peer", f"{share:.2f} x ({nearest['contestant']})", share <= 0.5
        )


def _growth(run: Table) -> Iterator[Row]:
    for workload, text in (
        ("idle growth", "flat from 10 to 10,000 idle connections"),
        ("waiters", "flat to 100,000 waiters"),
        ("cancel oldest", "flat: 100,000 cancelled at once, oldest first"),
        ("cancel newest", "flat: 100,000 cancelled at once, newest first"),
        ("timeout oldest", "flat: 100,000 timed out at once, oldest first"),
        ("timeout newest", "flat: 100,000 timed out at once, newest first"),
    ):
        ours, floor = run.get(workload, "ours"), run.get(workload, "L0q")
        if not ours or not floor:
            continue
        mine, bare = growth(ours), growth(floor)
        most = max(int(key) for key in ours["extra"] if key.isdigit())
        if f"{most:,}" not in text:
            yield Row(text, f"grows {mine:.2f} x to {most:,}", None)
            continue
        # So many tasks do not fit the processor's caches: the floor, which does nothing that grows, says by how much.
        yield Row(text, f"grows {mine:.2f} x (L0q {bare:.2f} x)", mine <= max(1.5, 1.5 * bare))


def _memory(run: Table) -> Iterator[Row]:
    for workload, text, most in (
        ("memory idle", "memory: at most 250 B an idle connection", 250),
        ("memory waiter", "memory: at most 900 B a waiter", 900),
    ):
        ours = run.get(workload, "ours")
        size = ours["median"] if ours else None
        if workload == "memory waiter" and ours:
            size = ours["extra"]["net"]
        yield _row(text, size, size is not None and size <= most, "{:.0f} B")


def _import(run: Table) -> Iterator[Row]:
    ours = run.get("import", "pool_core")
    if ours:
        seconds, modules = ours["best"], ours["extra"]["modules"]
        yield Row(
            "import: at most 10 ms and 15 modules on top of asyncio",
            f"{seconds * 1e3:.1f} ms, {modules:.0f}",
            seconds <= 0.010 and modules <= 15,
        )


def _against(run: Table, workload: str, peer: str, text: str, least: float) -> Row:
    row = run.get(workload, peer)
    if not row or "ours, x its rate" not in row["extra"]:
        return Row(text, "-", None)
    rate, p99 = row["extra"]["ours, x its rate"], row["extra"]["ours, x its p99"]
    return Row(text, f"{rate:.2f} x, p99 {p99:.2f} x", rate >= least and p99 <= 0.5)


def _postgres(run: Table) -> Iterator[Row]:
    workload = "postgres, 100 tasks"
    text = "PostgreSQL: at least {} x asyncpg.Pool's rate, p99 at most half, both {} reset"
    yield _against(run, workload, "asyncpg.Pool, no reset", text.format("1.5", "without"), 1.5)
    yield _against(run, workload, "asyncpg.Pool, reset", text.format("1.0", "with"), 1.0)


def _redis(run: Table) -> Iterator[Row]:
    text = "Redis: at least 1.0 x BlockingConnectionPool's rate, p99 at most half"
    yield _against(run, "redis GET, 100 tasks", "BlockingConnectionPool", text, 1.0)


def _mariadb(run: Table) -> Iterator[Row]:
    text = "MariaDB: at least 1.0 x aiomysql.Pool's rate, p99 at most half, both without reset"
    yield _against(run, "mariadb, 100 tasks", "aiomysql.Pool (never resets)", text, 1.0)


def markdown(runs: dict[str, Table]) -> str:
    """The table of goals, a column for each kept run, and the reasons of what is missed."""
    judged = {tag: {row.text: row for row in judge(run)} for tag, run in runs.items()}
    texts = list(dict.fromkeys(text for rows in judged.values() for text in rows))
    lines = [f"| goal | {' | '.join(judged)} |", f"|---|{'---|' * len(judged)}"]
    missed = []
    for text in texts:
        cells = []
        for rows in judged.values():
            row = rows.get(text)
            cells.append(f"{row.measured} {row.verdict}" if row and row.met is not None else "-")
        lines.append(f"| {text} | {' | '.join(cells)} |")
        if any(row.met is False for rows in judged.values() if (row := rows.get(text))):
            missed.append(text)
    if missed:
        lines.append("\nMissed, and why:\n")
        lines += [f"- *{text}*: {_reason(text)}" for text in missed]
    return "\n".join(lines)


def _reason(text: str) -> str:
    return next(
        (reason for start, reason in REASONS.items() if text.startswith(start)), "the reason has not been looked into."
    )


def _is_peer(row: Kept) -> bool:
    return CONTESTANTS[row["contestant"]].kind == "peer" and row.get("ratio") is not None


def _fair(run: Table) -> set[str]:
    """The peers whose tasks all got nearly the same."""
    return {row["contestant"] for row in run.workload("contended") if _is_peer(row) and row["extra"]["jain"] >= 0.98}


def _ratio(row: Kept) -> float:
    return float(row["ratio"])
