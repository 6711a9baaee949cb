"""The result files: one run each, with the machine and the date, so that a quoted figure says where it comes from."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .servers import SERVER_CONTESTANTS
from .suite import WORKLOADS

if TYPE_CHECKING:
    from .measure import Result

HERE = Path(__file__).parent
RESULTS = HERE / "results"

Kept = dict[str, Any]


def pack(
    results: list[Result], *, loop: str, quick: bool, versions: dict[str, str], servers: list[str], seconds: float
) -> Kept:
    """Everything of a run, as it goes to the file."""
    by_name = {(result.workload, result.contestant): result for result in results}
    limits = {one.name: one.limit for one in SERVER_CONTESTANTS}
    records = []
    for result in results:
        workload = WORKLOADS.get(result.workload)
        base = workload.base if workload else limits.get(result.contestant)
        records.append(result.summary(by_name.get((result.workload, base)) if base else None))
    return {
        "python": platform.python_version(),
        "loop": loop,
        "quick": quick,
        "date": dt.date.today().isoformat(),  # noqa: DTZ011 (the day where the machine stands)
        "machine": machine(),
        "versions": versions,
        "servers": servers,
        "seconds": round(seconds),
        "results": records,
    }


def machine() -> str:
    """Processor, how many may be used, and the system; nothing that names this machine."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (found := re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)):
        model = found[1].strip()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores of {model}, {platform.system()} {platform.release().split('-')[0]}"


def tag(kept: Kept) -> str:
    """The column of a run: 3.11, or 3.11 uvloop."""
    minor = ".".join(kept["python"].split(".")[:2])
    return minor if kept["loop"] == "asyncio" else f"{minor} {kept['loop']}"


def keep(kept: Kept) -> None:
    """Replace the kept run of this Python and loop."""
    RESULTS.mkdir(exist_ok=True)
    write(kept, RESULTS / f"{tag(kept).replace(' ', '-')}.json")


def write(kept: Kept, path: str | Path) -> None:
    Path(path).write_text(json.dumps(kept, indent=1) + "\n")


def kept_runs() -> dict[str, Kept]:
    """All kept runs, by column: plain asyncio first, in the order of the Pythons."""
    runs = [json.loads(path.read_text()) for path in RESULTS.glob("*.json")]
    ordered = sorted(runs, key=lambda run: (run["loop"] != "asyncio", [int(part) for part in run["python"].split(".")]))
    return {tag(run): run for run in ordered}


class Table:
    """A run's records, by workload and contestant."""

    def __init__(self, kept: Kept) -> None:
        self.kept = kept
        self._records = {(record["workload"], record["contestant"]): record for record in kept["results"]}

    def workload(self, name: str) -> list[Kept]:
        """Its records: those with figures by their size, then the others."""
        rows = [record for (workload, _), record in self._records.items() if workload == name]
        return sorted(rows, key=_size)

    def workloads(self) -> list[str]:
        return list(dict.fromkeys(workload for workload, _ in self._records))

    def get(self, workload: str, contestant: str) -> Kept | None:
        """The record, if it has figures."""
        record = self._records.get((workload, contestant))
        return record if record and record.get("median") is not None else None


def _size(record: Kept) -> tuple[bool, float, float]:
    """Those without figures last; where one was measured at several sizes, by what it was at a middling one."""
    figures = record.get("extra", {})
    middling = figures.get("1000", record.get("median") or 0)
    return record.get("median") is None, record.get("ratio") or 0, middling
