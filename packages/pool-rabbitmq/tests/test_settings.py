"""URLs and options: what is meant, and what is refused before any I/O, without a secret in the text."""

import asyncio
import ssl
from typing import Any

import pytest
from aiormq.exceptions import AMQPConnectionError, ConnectionNotAllowed, ProbableAuthenticationError
from pool_core import Verdict
from pool_rabbitmq import RabbitMQChannelManager
from pool_rabbitmq._settings import Settings

PASSWORD = "canary-7f3a"


@pytest.mark.parametrize(
    ("url", "place"),
    [
        (None, "amqp://localhost:5672, virtual host '/'"),
        ("amqp://", "amqp://localhost:5672, virtual host '/'"),
        ("amqp://h", "amqp://h:5672, virtual host '/'"),
        ("amqp://h/", "amqp://h:5672, virtual host '/'"),
        ("amqp://h/%2F", "amqp://h:5672, virtual host '/'"),
        ("amqp://h/a%2Fb", "amqp://h:5672, virtual host 'a/b'"),
        (f"amqps://me:{PASSWORD}@[::1]:7/shop?heartbeat=10", "amqps://[::1]:7, virtual host 'shop'"),
        ("amqps://h", "amqps://h:5671, virtual host '/'"),
    ],
)
def test_a_url_says_where_the_broker_is(url: str | None, place: str) -> None:
    """The repr of the manager shows it, and nothing else."""
    assert repr(RabbitMQChannelManager(url)) == f"<RabbitMQChannelManager {place}>"


@pytest.mark.parametrize(
    ("url", "user", "password", "vhost"),
    [
        ("amqp://h", "guest", "guest", "/"),
        ("amqp://me:p%40ss%2Fw%25rd@h/a%2Fb", "me", "p@ss/w%rd", "a/b"),
        ("amqp://m%C3%A9:%20@h/with%20space", "mé", " ", "with space"),
    ],
)
def test_aiormq_gets_what_the_url_says(url: str, user: str, password: str, vhost: str) -> None:
    """Whatever characters a name or a password has."""
    built = asyncio.run(Settings(url).url())
    assert (built.user, built.password, built.path[1:]) == (user, password, vhost)


def test_credentials_may_be_callables() -> None:
    """They are called for each connection: a token is as fresh as its connection."""
    asked: list[str] = []

    async def token() -> str:
        asked.append("token")
        return f"token {len(asked)}"

    settings = Settings("amqp://h", {"login": lambda: "me", "password": token})
    for number in (1, 2):
        built = asyncio.run(settings.url())
        assert (built.user, built.password) == ("me", f"token {number}")


def test_options_of_the_url_reach_aiormq() -> None:
    """It reads them from the URL's query."""
    url = "amqps://h?heartbeat=10&name=me&no_verify_ssl=true&prefetch_count=5&publisher_confirms=false"
    built = asyncio.run(Settings(url).url())
    assert dict(built.query) == {"heartbeat": "10", "name": "me", "no_verify_ssl": "1"}


@pytest.mark.parametrize(
    ("url", "error", "words"),
    [
        (f"amqp://me:{PASSWORD}/x@h", ValueError, "percent-encode"),
        (f"amqp://me:{PASSWORD}@h:port", ValueError, "port"),
        (f"amqp://me:{PASSWORD}@one,two", ValueError, "several hosts"),
        (f"amqp://me:{PASSWORD}@h?hearbeat=3", TypeError, "did you mean 'heartbeat'"),
        (f"amqp://me:{PASSWORD}@h?heartbeat=soon", ValueError, "heartbeat"),
        (f"amqp://me:{PASSWORD}@h?timeout=3", TypeError, "create_timeout"),
        (f"rabbitmq://me:{PASSWORD}@h", ValueError, "must start with amqp://"),
        (f"amqp://me:{PASSWORD}@h\n", ValueError, "line break"),
    ],
)
def test_a_bad_url_is_refused_without_its_password(url: str, error: type[Exception], words: str) -> None:
    """At once, in a sentence that says what to do."""
    with pytest.raises(error, match=words) as caught:
        RabbitMQChannelManager(url)
    assert PASSWORD not in f"{caught.value!r} {caught.value.__cause__!r}"


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"port": 0}, ValueError, "1 to 65535"),
        ({"user": "me"}, TypeError, "login"),
        ({"channels_per_connection": 0}, ValueError, "1 to 2047"),
        ({"publisher_confirms": "no"}, TypeError, "publisher_confirms"),
        ({"publisher_confirms": False, "on_return_raises": True}, ValueError, "publisher_confirms"),
        ({"prefetch_count": -1}, ValueError, "0 to 65535"),
        ({"ssl_context": True}, TypeError, "SSLContext"),
        ({"ssl_context": ssl.create_default_context()}, ValueError, "amqps"),
        ({"reconnect_interval": 3}, TypeError, "never reconnects"),
        ({"password": 7}, TypeError, "password"),
        ({"virtualhost": "shop\n"}, ValueError, "line break"),
    ],
)
def test_a_bad_option_is_refused(options: dict[str, Any], error: type[Exception], words: str) -> None:
    """When the manager is made, before any I/O."""
    with pytest.raises(error, match=words):
        RabbitMQChannelManager(**options)


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (ProbableAuthenticationError("ACCESS_REFUSED"), False),
        (ConnectionNotAllowed("NOT_ALLOWED - vhost nowhere not found"), False),
        (ConnectionNotAllowed("NOT_ALLOWED - vhost limit not found"), False),
        (ConnectionNotAllowed("NOT_ALLOWED - access refused: vhost connection limit (2) is reached"), True),
        (AMQPConnectionError(111, "Connect call failed"), True),
        (FileNotFoundError("ca.pem"), False),
    ],
)
def test_what_heals_by_itself_is_told_from_what_does_not(error: Exception, transient: bool) -> None:
    """A wrong password fails a get at once; a broker that restarts does not."""
    assert RabbitMQChannelManager().is_transient(error) is transient


def test_a_lost_connection_is_judged() -> None:
    """Also where a program wraps the error."""
    manager = RabbitMQChannelManager()
    wrapped = RuntimeError("job failed")
    wrapped.__cause__ = AMQPConnectionError("lost")
    channel: Any = None
    assert manager.judge(wrapped, channel) is Verdict.CLOSE
    assert manager.judge(KeyError("x"), channel) is Verdict.KEEP
