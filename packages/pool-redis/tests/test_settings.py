"""What a user says about the server: understood, or refused at once, before any I/O and without a secret."""

import asyncio
import pickle
import subprocess
import sys
import traceback
from typing import Any

import pytest
from pool_redis import (
    RedisClusterConnectionManager,
    RedisConnectionManager,
    RedisPool,
    RedisSentinelConnectionManager,
)
from redis.asyncio import SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import UsernamePasswordCredentialProvider

SECRET = "canary-Sesame"


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("redis://localhost", "localhost:6379"),
        ("redis://user:pw@10.0.0.1:7000/3?protocol=2&decode_responses=1", "10.0.0.1:7000"),
        ("valkey://localhost:7000/1", "localhost:7000"),
        ("rediss://localhost:7000", "localhost:7000"),
        ("valkeys://localhost:7000", "localhost:7000"),
        ("redis://[::1]:7000/", "::1:7000"),
        ("unix:///run/redis.sock?db=2", "/run/redis.sock"),
        ("unix://user:pw@/run/redis.sock", "/run/redis.sock"),
    ],
)
def test_every_scheme_is_understood(url: str, where: str) -> None:
    """The schemes are those of redis-py and of Valkey's client, so that a URL can be moved over as it is."""
    assert where in repr(RedisConnectionManager(url))


@pytest.mark.parametrize(
    "url",
    [
        f"redis://user:{SECRET}/part@localhost/0",
        f"redis://user:12/{SECRET}@localhost/0",
        f"redis://user:12#{SECRET}@localhost/0",
        f"redis://user:12?{SECRET}=x@localhost/0",
        f"redis://user:{SECRET}?@localhost",
        f"redis://user:{SECRET}@localhost:port",
        f"redis://localhost/{SECRET}",
        f"redis://[{SECRET}",
        f"redis://localhost?db={SECRET}",
        f"redis://localhost?protocol={SECRET}",
        f"http://user:{SECRET}@localhost",
        f"{SECRET}@localhost",
        f"unix://user:{SECRET}@",
        SECRET,
    ],
)
def test_a_url_that_cannot_be_read_is_refused_without_showing_it(url: str) -> None:
    """A password with a raw slash makes urllib and redis-py quote it as a port: nobody may quote the URL."""
    with pytest.raises(ValueError, match="URL|socket needs a path") as caught:
        RedisConnectionManager(url)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"pasword": SECRET}, TypeError, "pasword.*did you mean 'password'"),
        ({"db": -1}, ValueError, "db=-1.*from 0"),
        ({"db": "abc"}, ValueError, "db='abc'"),
        ({"port": 0}, ValueError, "port=0.*1 to 65535"),
        ({"port": 99999}, ValueError, "port=99999"),
        ({"protocol": 4}, ValueError, "protocol must be either 2 or 3"),
        ({"connection_class": int}, TypeError, "connection_class"),
        ({"max_connections": 5}, ValueError, "max_connections.*max_size"),
        ({"timeout": 5}, ValueError, "timeout.*connection_timeout"),
        ({"retry": Retry(NoBackoff(), 3)}, ValueError, "never reconnects"),
        ({"retry_on_timeout": True}, ValueError, "never reconnects"),
        ({"single_connection_client": True}, ValueError, "leave it out"),
        ({"path": ""}, ValueError, "needs a path"),
        ({"path": "/run/redis.sock\n"}, ValueError, "path ends with a line break"),
        ({"host": "localhost\n"}, ValueError, "host ends with a line break"),
        ({"host": "local host"}, ValueError, "host has white space"),
        ({"password": f"{SECRET}\n"}, ValueError, "password ends with a line break"),
        ({"ssl": False, "connection_class": SSLConnection}, ValueError, "contradicts"),
        ({"ssl": True, "ssl_cert_reqs": "perhaps"}, ValueError, "Invalid SSL Certificate Requirements"),
        (
            {"password": SECRET, "credential_provider": UsernamePasswordCredentialProvider("a", "b")},
            ValueError,
            "only one of",
        ),
    ],
)
def test_a_bad_option_is_refused_at_once_with_what_to_do(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    """What is wrong when the manager is made must not wait for the first connect, perhaps at night."""
    with pytest.raises(error, match=f"(?s){words}") as caught:
        RedisConnectionManager(**options)
    assert SECRET not in str(caught.value)


def test_a_url_that_is_no_text_is_a_type_error() -> None:
    """bytes would make urllib quote them."""
    with pytest.raises(TypeError, match="the URL is of type bytes: expected a str"):
        RedisConnectionManager(b"redis://localhost")  # type: ignore[arg-type]


def test_options_beat_the_url() -> None:
    """One URL for all environments, and an argument where one differs."""
    manager = RedisConnectionManager("redis://localhost:7000/1", port=7001)
    assert "7001" in repr(manager)


@pytest.mark.parametrize("make", [RedisConnectionManager, RedisPool])
def test_no_picture_of_a_manager_shows_a_password(make: Any) -> None:
    """Reprs end in logs and error trackers, and vars() in debuggers' reports."""
    thing = make(f"redis://user:{SECRET}@localhost")
    for shown in (repr(thing), str(thing), repr(vars(thing)), f"{thing!s}"):
        assert SECRET not in shown
    if make is RedisPool:
        assert SECRET not in repr(thing.connection_kwargs)


def test_a_manager_survives_pickling() -> None:
    """A process that is spawned gets it so; the copy connects as the original does."""
    copy = pickle.loads(pickle.dumps(RedisConnectionManager("rediss://localhost:7000", password=SECRET)))
    assert asyncio.run(copy._settings.resolved())["password"] == SECRET
    assert SECRET not in repr(copy) + repr(vars(copy))


def test_credentials_may_be_callables() -> None:
    """A rotated password is asked for at each connect."""
    words = iter(["one", "two"])

    async def password() -> str:
        return next(words)

    manager = RedisConnectionManager("redis://localhost", username=lambda: "me", password=password)

    async def main() -> None:
        for word in ("one", "two"):
            connection = await manager._settings.connection()
            assert (connection.username, connection.password) == ("me", word)

    asyncio.run(main())


@pytest.mark.parametrize("around", ["{}\n", "{} ", " {}", "{}\r\n", "{}\t", "\ufeff{}"])
@pytest.mark.parametrize(
    ("make", "url"),
    [
        (RedisConnectionManager, f"redis://:{SECRET}@localhost/0"),
        (RedisConnectionManager, "unix:///run/redis.sock"),
        (RedisSentinelConnectionManager, f"redis+sentinel://:{SECRET}@host/mymaster"),
        (RedisClusterConnectionManager, f"redis+cluster://:{SECRET}@host"),
        (RedisPool, f"redis://:{SECRET}@localhost/0"),
    ],
)
def test_white_space_around_a_url_is_refused(make: Any, url: str, around: str) -> None:
    """A secret that is mounted as a file often ends with a line break: not stripped, not another database."""
    with pytest.raises(ValueError, match="the URL (ends with a line break|has white space)") as caught:
        make(around.format(url))
    assert SECRET not in str(caught.value)


def test_decode_responses_in_a_url_can_be_off() -> None:
    """redis-py takes any text for True."""
    for value, meant in (("false", False), ("0", False), ("true", True), ("1", True)):
        manager = RedisConnectionManager(f"redis://localhost?decode_responses={value}")
        assert manager._settings.sample().encoder.decode_responses is meant
    with pytest.raises(ValueError, match="decode_responses='perhaps' in the URL: expected True or False"):
        RedisConnectionManager("redis://localhost?decode_responses=perhaps")


def test_sentinel_cluster_and_pool_are_imported_by_those_who_use_them() -> None:
    """Most programs need none of them."""
    code = """
import sys, pool_redis
pool_redis.RedisConnectionManager("redis://localhost")
assert not {"pool_redis._sentinel", "pool_redis._cluster", "pool_redis._pool"} & set(sys.modules)
assert set(pool_redis.__all__) <= set(dir(pool_redis))
from pool_redis import *
assert RedisPool and RedisSentinelConnectionManager and RedisClusterConnectionManager
try:
    pool_redis.RedisPol
except AttributeError as error:
    assert "RedisPol" in str(error)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_a_bad_update_changes_nothing() -> None:
    """A rotation with a typing error must not cut the pool off from its server."""
    manager = RedisConnectionManager("redis://localhost:7000")
    with pytest.raises(TypeError, match="did you mean 'port'"):
        manager.update(prt=7001)
    with pytest.raises(ValueError, match="a port of the URL"):
        manager.update("redis://localhost:port")
    assert "localhost:7000" in repr(manager)


def test_an_update_keeps_what_it_does_not_name() -> None:
    """Rotating the host of a TLS connection must not turn TLS off."""
    manager = RedisConnectionManager("rediss://old:7000/1", decode_responses=True)
    manager.update(host="new")
    settings = manager._settings
    connection = settings.sample()
    assert (settings.uses_tls, settings.place()) == (True, "new:7000")
    assert (connection.db, connection.encoder.decode_responses) == (1, True)


def test_an_update_can_move_between_tcp_and_a_unix_socket() -> None:
    """host and path exclude each other: naming one ends the other."""
    manager = RedisConnectionManager("redis://localhost:7000")
    manager.update(path="/run/redis.sock")
    assert "/run/redis.sock" in repr(manager)
    manager.update(host="localhost")
    assert "localhost:6379" in repr(manager)


def test_an_update_with_a_url_replaces_the_url() -> None:
    """What the former URL said is gone; keyword arguments that are not named stay, as in all adapters."""
    manager = RedisConnectionManager("redis://:old@localhost:7000/1", decode_responses=True)
    manager.update("redis://other/2")
    connection = manager._settings.sample()
    assert (connection.db, connection.password, connection.encoder.decode_responses) == (2, None, True)
    assert manager._settings.place() == "other:6379"


def test_an_update_can_exchange_a_password_for_a_provider_and_back() -> None:
    """redis-py refuses both at once; whoever names one means it instead of the other."""
    manager = RedisConnectionManager("redis://user:old@localhost")
    manager.update(credential_provider=UsernamePasswordCredentialProvider("a", "b"))
    assert manager._settings.sample().password is None
    manager.update(password="new")
    assert manager._settings.sample().credential_provider is None
