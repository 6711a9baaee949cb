"""The page of supported versions and the README's table say what the test matrix has found, and nothing else."""

from containers import support

MADE = {"adapter": "mysql", "choice": "mysql:9", "python": "3.14", "version": "3.14.10", "servers": "MySQL 9.7.4"}
COUNTS = {"passed": 1, "failed": 0, "skipped": 0, "date": "2026-11-29"}


def test_the_page_and_the_readme_are_those_made_from_the_results() -> None:
    """A number typed by hand would outlive the run that it claims."""
    rows = support.load()
    assert support.page(rows) == support.PAGE.read_text()
    assert support.readme(support.README.read_text(), rows) == support.README.read_text()
    assert support.adapters(support.ADAPTERS.read_text(), rows) == support.ADAPTERS.read_text()


def test_a_pair_with_a_failure_is_on_the_page_and_not_in_the_readme() -> None:
    """The README promises what passed; the page says what happened."""
    good, bad = MADE | COUNTS, MADE | COUNTS | {"servers": "MySQL 10.0.0", "python": "3.15", "failed": 1}
    text = support.readme("\n".join(support.MARKS), [good, bad])
    assert "| pool-mysql | MySQL 9.7.4 | 3.14 |" in text
    assert "10.0.0" not in text
    assert "| pool-mysql | MySQL 10.0.0 | 3.14.10 | 1 | 1 | 0 | 2026-11-29 |" in support.page([good, bad])


def test_a_pair_that_could_not_be_run_is_on_the_page_with_the_reason() -> None:
    """A missing Python must not look like one that nobody thought of."""
    row = support.missing("core", "", "3.14t", "no such Python was found")
    assert "| pool-core |  | 3.14t | not run: no such Python was found |" in support.page([row])


def test_a_row_names_the_servers_as_they_name_themselves() -> None:
    """A stand-in must not pass for the original."""
    versions = {
        "postgres": "PostgreSQL 18.6 (Debian 18.6-3)",
        "pgbouncer": "PgBouncer 1.26.1 before PostgreSQL 18.6 (Debian 18.6-3)",
        "mongo": "SecantusDB 0.7.0b3 standing in for MongoDB 8.2.11",
    }
    result = {"passed": 1, "failed": 0, "skipped": 0, "python": "3.14.10", "versions": versions}
    row = support.row("postgres", "postgres:18 pgbouncer:1.26", "3.14", result)
    assert row["servers"] == "PostgreSQL 18.6, PgBouncer 1.26.1"
    row = support.row("mongo", "mongo:7", "3.14", result)
    assert row["servers"] == "SecantusDB 0.7.0b3 standing in for MongoDB 8.2.11"


def test_the_table_of_backends_names_each_ones_adapter_driver_and_servers() -> None:
    """Made from the results: nobody writes there by hand what was not seen."""
    text = support.adapters("\n".join(support.MARKS), [MADE | COUNTS | {"servers": "MySQL 10.0.0"}])
    assert "| MySQL (diesel) | [pool-mysql](mysql.md) | `aiomysql" in text
    assert "| MySQL 10.0.0 |" in text
    assert "| tiberius (bb8-tiberius) | [pool-odbc](odbc.md) | `aioodbc" in text
    assert "| not seen on SQL Server; not in the matrix yet |" in text
    assert "| nebula-client (bb8-nebula) | [a recipe](nebula.md) | | |" in text
