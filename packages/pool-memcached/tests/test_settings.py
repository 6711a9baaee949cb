"""URLs and options: what is meant, and what is refused before any I/O, without a secret in the text."""

import ssl
from typing import Any

import pytest
from pool_memcached import MemcachedConnectionManager

PASSWORD = "canary-7f3a"


@pytest.mark.parametrize(
    ("url", "place"),
    [
        (None, "memcached://localhost:11211"),
        ("memcached://", "memcached://localhost:11211"),
        ("memcached://cache", "memcached://cache:11211"),
        ("memcached://cache:11222/", "memcached://cache:11222"),
        ("memcached://[::1]:1", "memcached://[::1]:1"),
        (f"memcached://me:{PASSWORD}@cache", "memcached://cache:11211"),
        ("memcacheds://cache", "memcacheds://cache:11211"),
        ("memcached:///run/memcached.sock", "memcached:///run/memcached.sock"),
    ],
)
def test_a_url_says_where_the_server_is(url: str | None, place: str) -> None:
    """The repr of the manager shows it, and nothing else."""
    assert repr(MemcachedConnectionManager(url)) == f"<MemcachedConnectionManager {place}>"


@pytest.mark.parametrize(
    ("url", "error", "words"),
    [
        (f"memcached://me:{PASSWORD}/x@cache", ValueError, "percent-encode"),
        (f"memcached://me:{PASSWORD}@cache:port", ValueError, "port"),
        (f"memcached://me:{PASSWORD}@cache/0", ValueError, "no databases"),
        (f"memcached://me:{PASSWORD}@one,two", ValueError, "several hosts"),
        (f"memcached://me:{PASSWORD}@cache?tiemout=3", TypeError, "not an option"),
        (f"memcached://me:{PASSWORD}@cache?timeout=3", TypeError, "asyncio.timeout"),
        (f"memcache://me:{PASSWORD}@cache", ValueError, "must start with memcached://"),
        (f"memcached://me:{PASSWORD}@cache\n", ValueError, "line break"),
        (f"memcached://:{PASSWORD}@cache", ValueError, "together"),
        ("memcached://me@cache", ValueError, "together"),
    ],
)
def test_a_bad_url_is_refused_without_its_password(url: str, error: type[Exception], words: str) -> None:
    """At once, in a sentence that says what to do."""
    with pytest.raises(error, match=words) as caught:
        MemcachedConnectionManager(url)
    assert PASSWORD not in f"{caught.value!r} {caught.value.__cause__!r}"


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"port": 0}, ValueError, "1 to 65535"),
        ({"port": "11211"}, TypeError, "port"),
        ({"hots": "cache"}, TypeError, "did you mean 'host'"),
        ({"pool_size": 3}, TypeError, "max_size"),
        ({"host": "cache", "path": "/run/x"}, ValueError, "Unix socket"),
        ({"ssl": "yes"}, TypeError, "SSLContext"),
        ({"path": "/run/x", "ssl": True}, ValueError, "server_hostname"),
        ({"user": "me"}, ValueError, "together"),
        ({"user": "me", "password": 7}, TypeError, "password"),
        ({"get_flag_handler": 7}, TypeError, "async function"),
    ],
)
def test_a_bad_option_is_refused(options: dict[str, Any], error: type[Exception], words: str) -> None:
    """When the manager is made, before any I/O."""
    with pytest.raises(error, match=words):
        MemcachedConnectionManager(**options)


def test_update_replaces_what_it_names() -> None:
    """What is refused changes nothing."""
    manager = MemcachedConnectionManager("memcached://old:1", ssl=ssl.create_default_context())
    manager.update(host="new")
    assert "memcacheds://new:1" in repr(manager)
    with pytest.raises(ValueError, match="port"):
        manager.update(port=0)
    manager.update(ssl=False)
    assert "memcached://new:1" in repr(manager)
