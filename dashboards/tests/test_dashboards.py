"""The dashboard and the alerts name what the exporter really exports, and a real Prometheus answers each query."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pool_core import Pool
from pool_core._metrics import OBSERVED
from pool_core.prometheus import instrument
from pool_core.testing import FakeManager, run
from prometheus_client import CollectorRegistry

from dashboards.recording import Prometheus, prometheus

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parents[1]
DASHBOARD: dict[str, Any] = json.loads((HERE / "grafana.json").read_text())
ALERTS = (HERE / "alerts.yml").read_text()
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
VARIABLES = {"$pool": ".*", "$instance": ".*", "$__rate_interval": "1m"}


def filled(query: str) -> str:
    """Put in what Grafana puts in."""
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    return query


def alert_rules() -> list[tuple[str, str]]:
    """The name and the expression of each rule; no package for YAML is needed for so little."""
    found = re.findall(r"- alert: (\w+)\n        expr: (>-\n(?: {10,}.*\n)+|.*\n)", ALERTS)
    return [(name, " ".join(text.removeprefix(">-").split())) for name, text in found]


@pytest.fixture(scope="module")
def exported() -> dict[str, dict[str, set[str]]]:
    """What a pool really exports: by name of a metric, its labels and their values."""
    registry = CollectorRegistry()
    families: list[Any] = []

    async def main() -> None:
        async with Pool(FakeManager(), name="orders", min_idle=1) as pool:
            instrument(pool, registry=registry)
            async with pool.get():
                pass
            families.extend(registry.collect())

    run(main)
    found: dict[str, dict[str, set[str]]] = {}
    for family in families:
        for sample in family.samples:
            labels = found.setdefault(sample.name, {"job": set(), "instance": set()})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    return found


WORDS = {"sum", "max", "by", "on", "and", "rate", "increase", "histogram_quantile", "le", "label_values"}


def check(query: str, exported: dict[str, dict[str, set[str]]]) -> set[str]:
    """Every metric of a query is exported, every label is one of the metric's, and every value that is asked for too."""
    bare = re.sub(r'"[^"]*"', '""', re.sub(r"\{[^}]*\}", "", re.sub(r"\[[^]]*\]", "", query)))
    labels = {label for group in re.findall(r"(?:by|on) \(([^)]*)\)", bare) for label in re.split(r",\s*", group)}
    bare = re.sub(r"(?:by|on) \([^)]*\)", "", bare)
    names = {name for name in re.findall(r"[a-zA-Z_:][\w:]*", bare) if name not in WORDS}
    assert names, query
    for name in names:
        assert name in exported, f"{name} is not exported: {query}"
        assert labels <= set(exported[name]), f"{name} has no label {labels - set(exported[name])}"
    for name, inside in re.findall(r"([a-z_]+)\{([^}]*)\}", query):
        for label, operator, value in re.findall(r'(\w+)(=~|=)"([^"]*)"', inside):
            assert label in exported[name], f"{name} has no label {label}"
            if "$" in value:
                continue
            values = value.split("|") if operator == "=~" else [value]
            assert set(values) <= exported[name][label], f"{name} has never {label}={value}"
    return names


@pytest.mark.parametrize(("panel", "query"), QUERIES, ids=[f"{title}-{at}" for at, (title, _) in enumerate(QUERIES)])
def test_each_query_of_the_dashboard_names_what_is_exported(panel: str, query: str, exported: Any) -> None:
    """Metrics, labels and their values."""
    check(query, exported)


@pytest.mark.parametrize(("name", "query"), alert_rules(), ids=[name for name, _ in alert_rules()])
def test_each_alert_names_what_is_exported(name: str, query: str, exported: Any) -> None:
    """The same."""
    check(query, exported)


def test_the_check_itself_finds_what_is_wrong(exported: Any) -> None:
    """A test that cannot fail proves nothing."""
    for wrong in (
        "sum(pool_core_nothing_total)",
        "sum by (pool_core_reason) (pool_core_waits_total)",
        'pool_core_gets_total{pool_core_outcome="lost"}',
        'pool_core_gets_total{reason="x"}',
    ):
        with pytest.raises(AssertionError):
            check(wrong, exported)


def test_everything_that_is_exported_is_on_the_dashboard_or_in_an_alert(exported: Any) -> None:
    """Except for limits that say little by themselves."""
    asked = set().union(*(check(query, exported) for _, query in [*QUERIES, *alert_rules()]))
    families = {name for name in exported if not name.endswith(("_sum", "_count", "_created"))} | {
        "db_client_connection_count"
    }
    assert families - asked == {
        "db_client_connection_idle_max",
        "db_client_connection_idle_min",
        "pool_core_waited_seconds_total",
    }
    assert len(OBSERVED) + 3 == len(families)


def test_the_alerts_are_all_here_and_each_has_its_own_test() -> None:
    """A rule that never fires in a test may never fire."""
    tests = (HERE / "tests" / "alerts_test.yml").read_text()
    names = [name for name, _ in alert_rules()]
    assert len(names) == ALERTS.count("- alert:") == 11
    for name in names:
        assert f"alertname: {name}\n" in tests, name


def test_panels_do_not_overlap_and_have_what_a_person_needs() -> None:
    """A title, a sentence, a place of its own, and an id."""
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        mine = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not mine & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= mine
        assert panel["title"]
        assert panel["type"] == "row" or panel["description"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


# -- with Prometheus itself


def need(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        warnings.warn(
            f"{program} IS MISSING, so this was not tried: apt-get install prometheus", UserWarning, stacklevel=1
        )
        pytest.skip(f"no {program}: apt-get install prometheus")
    return found


def promtool(*arguments: str) -> None:
    done = subprocess.run([need("promtool"), *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.filterwarnings("default:.*IS MISSING")
def test_promtool_takes_the_rules_and_their_tests_pass() -> None:
    """Each alert fires when it should, and not when it should not."""
    promtool("check", "rules", str(HERE / "alerts.yml"))
    promtool("test", "rules", str(HERE / "tests" / "alerts_test.yml"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    need("prometheus")
    need("promtool")
    with prometheus(tmp_path_factory.mktemp("prometheus")) as found:
        yield found


@pytest.mark.filterwarnings("default:.*IS MISSING")
def test_a_real_prometheus_has_an_answer_to_each_query(server: Prometheus) -> None:
    """Half an hour of load, a rush, an outage and a leak: no panel stays empty."""
    for title, query in QUERIES:
        found = server.ask(filled(query))
        assert found, f"{title}: {query}"
        numbers = [float(value) for series in found for _, value in series["values"]]
        assert any(number >= 0 for number in numbers), title


@pytest.mark.filterwarnings("default:.*IS MISSING")
def test_the_alerts_would_have_fired_in_that_half_hour(server: Prometheus) -> None:
    """What happened is what is said."""
    fired = {name for name, query in alert_rules() if server.ask(filled(query))}
    assert fired >= {
        "PoolGetsTimeOut", "PoolConnectingFails", "PoolQueueStands", "PoolIsFull", "PoolRefusesOverload", "PoolLeaks",
    }  # fmt: skip
    assert not fired & {"PoolDeadlocks", "PoolHooksFail", "PoolConnectionsAbandoned"}
