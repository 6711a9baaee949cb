"""Each server comes up, says who it is, and survives what tests do to servers."""

import pytest

from containers.kinds import KINDS
from containers.servers import ServerFactory

NAMES = {
    "postgres": {"PostgreSQL"},
    "pgbouncer": {"PgBouncer"},
    "redis": {"Redis"},
    "valkey": {"Valkey"},
    "mysql": {"MySQL"},
    "mariadb": {"MariaDB"},
    "mongo": {"MongoDB", "SecantusDB"},
    "memcached": {"memcached"},
    "rabbitmq": {"RabbitMQ"},
    "neo4j": {"Neo4j", "FalkorDB"},
    "arangodb": {"ArangoDB", "Protocol double"},
    "nebula": {"NebulaGraph", "Protocol double"},
}
# SQL Server is nowhere to be had but as the official image, and nothing but test_sqlserver.py asks for it.
THERE = [kind for kind in KINDS if kind != "sqlserver" and not KINDS[kind].driver_is_missing()]
VERSIONS = [(kind, version) for kind in THERE for version in KINDS[kind].versions()]


@pytest.mark.parametrize(("kind", "version"), VERSIONS)
def test_a_server_says_its_true_name_and_version(server: ServerFactory, kind: str, version: str) -> None:
    """A report that takes a stand-in for the original would mislead its reader."""
    shared = server(kind, version=version)
    assert shared.name in NAMES[kind]
    assert any(sign.isdigit() for sign in shared.version)
    if kind != "mongo" and shared.name not in {"FalkorDB", "Protocol double"}:
        assert shared.version.startswith(version)
    assert shared.url.startswith(f"{KINDS[kind].scheme}://")
    assert str(shared.port) in shared.url
    assert shared.answers()


@pytest.mark.parametrize("kind", THERE)
def test_a_shared_server_is_started_once(server: ServerFactory, kind: str) -> None:
    """Starting one costs seconds, and there are hundreds of tests."""
    assert server(kind) is server(kind)
    for version in list(KINDS[kind].versions())[:1]:
        assert server(kind, version=version) is server(kind)


@pytest.mark.parametrize("kind", THERE)
def test_a_killed_server_comes_back_at_the_same_port(server: ServerFactory, kind: str) -> None:
    """A pool reconnects to the address that it knows."""
    with server(kind, fresh=True) as mine:
        port = mine.port
        mine.kill()
        assert not mine.answers()
        mine.start()
        assert mine.answers()
        mine.stop()
        assert not mine.answers()
        mine.start()
        assert mine.port == port
        assert mine.answers()


@pytest.mark.parametrize("kind", ["postgres", "redis"])
def test_a_paused_server_hangs_until_it_goes_on(server: ServerFactory, kind: str) -> None:
    """A hung server is the fault that drivers handle worst."""
    with server(kind, fresh=True) as mine:
        mine.pause()
        assert not mine.answers()
        mine.unpause()
        assert mine.answers()
        mine.pause()
        mine.stop()
        mine.start()
        assert mine.answers()
        mine.pause()  # and goes away like this


def test_a_shared_server_left_paused_is_started_for_the_next_test(server: ServerFactory) -> None:
    """A test that fails in the middle of a fault must not fail those after it."""
    shared = server("redis")
    shared.pause()
    assert server("redis").answers()


def test_arguments_and_a_password_reach_a_server_of_ones_own(server: ServerFactory) -> None:
    """Fault tests need servers that are soon full, or that refuse a login."""
    import redis

    with (
        server("redis", fresh=True, args=["--maxclients", "10"], password="a b/c@d") as mine,
        redis.Redis.from_url(mine.url, decode_responses=True) as client,
        redis.Redis(port=mine.port) as stranger,
    ):
        assert client.config_get("maxclients") == {"maxclients": "10"}
        with pytest.raises(redis.AuthenticationError):
            stranger.ping()
        assert "a b/c@d" not in repr(mine)


@pytest.mark.parametrize("kind", [kind for kind in THERE if kind not in {"redis", "valkey", "pgbouncer", "memcached"}])
def test_a_password_of_ones_own_is_the_one_that_lets_in(server: ServerFactory, kind: str) -> None:
    """Rotation and wrong passwords are tested with it."""
    with server(kind, fresh=True, password="it's a \\ secret") as mine:
        assert mine.password == "it's a \\ secret"
        assert mine.answers()


def test_what_is_no_server_is_refused_with_the_names_of_those_there_are(server: ServerFactory) -> None:
    """A typing error must not look like a missing server, which would be skipped."""
    with pytest.raises(ValueError, match="no server 'postgre': choose one of postgres, "):
        server("postgre")


def test_a_shared_server_takes_no_arguments(server: ServerFactory) -> None:
    """They would reach only the first test that asks."""
    with pytest.raises(ValueError, match="fresh=True"):
        server("redis", args=["--maxclients", "10"])


def test_a_version_that_there_is_not_is_refused_with_those_there_are(server: ServerFactory) -> None:
    """As with names: it must not look like a missing server."""
    with pytest.raises(ValueError, match="no postgres of version 14: choose one of 18, 15"):
        server("postgres", version=14)
