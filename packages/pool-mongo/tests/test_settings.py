"""Bad settings are refused before any I/O, clearly, and no secret is ever quoted."""

from typing import Any

import pytest
from pool_core import ConnectionManager, SupportsReset, SupportsTerminate, SupportsTransient

SECRET = "s3cret-canary"
PARTS = (SECRET, "s3cret", "canary")


@pytest.fixture(params=["sessions", "clients"])
def make(request: pytest.FixtureRequest, kind: Any) -> Any:
    """Each of the four managers."""
    return getattr(kind, request.param)


def test_the_managers_have_all_verbs(make: Any) -> None:
    """Also the optional ones."""
    manager: ConnectionManager[Any] = make()
    assert isinstance(manager, SupportsReset)
    assert isinstance(manager, SupportsTerminate)
    assert isinstance(manager, SupportsTransient)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://h", "must start with mongodb:// or mongodb.srv://, but it has another scheme"),
        ("localhost", "no scheme"),
        ("mongodb://", "at least one hostname"),
        ("mongodb://h/db\n", "the URL ends with a line break"),
        (" mongodb://h/db", "white space"),
        ("mongodb://u:s3cret/canary@h/db", "percent-encode"),
        ("mongodb://u:s3cret@canary@h/db", "percent-encode"),
        ("mongodb://u:s3cret:canary@h/db", "percent-encode"),
        ("mongodb://u:s3cret%zcanary@h/db", "percent-encode"),
        ("mongodb://u:s3cret?canary@h/db", "percent-encode"),
        ("mongodb://u:s3cret#canary@h/db", "percent-encode"),
        (f"mongodb://:{SECRET}@h/db", "a password and no user"),
        (f"mongodb://u:{SECRET}", "a port of the URL is not a number"),
        (f"mongodb://u:{SECRET}/db?x=a@b", "percent-encode"),
        (f"mongodb://u:{SECRET}@h:port/db", "a port of the URL is not a number"),
        (f"mongodb://u:{SECRET}@h:70000/db", "a port of the URL is not a number"),
        (f"mongodb://u:{SECRET}@h/?maxPoolSize=many", "maxpoolsize must be an integer"),
        (f"mongodb://u:{SECRET}@h/?tlsCertificateKeyFilePassword={SECRET}&maxPoolSize=many", "may hold a secret"),
        (f"mongodb+srv://u:{SECRET}@a.b.c:27017/", "must not include a port"),
        (f"mongodb+srv://u:{SECRET}@a.b.c,d.e.f/", "only one, hostname"),
    ],
)
def test_a_bad_url_is_refused_and_not_quoted(make: Any, url: str, says: str) -> None:
    """The driver quotes what it takes for a host or a port, which may be half a password."""
    with pytest.raises(ValueError, match=says) as caught:
        make(url)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert not any(part in str(caught.value) for part in PARTS)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"maxPoolSize": -1}, ValueError, "maxPoolSize must be a non negative integer"),
        ({"maxPoolSice": 1}, ValueError, "Unknown option: maxPoolSice"),
        ({"username": "u", "password": 3}, TypeError, "password is of type int: expected a str, or a callable"),
        ({"username": b"u"}, TypeError, "username is of type bytes"),
        ({"host": ["mongodb://u:p@h"]}, ValueError, "one URL, with all hosts in it"),
        ({"username": "u", "password": SECRET, "authMechanism": "X"}, ValueError, "authMechanism must be in"),
        ({"ping_timeout": 0}, ValueError, "ping_timeout=0: give seconds, more than 0 and finite"),
        ({"ping_timeout": float("inf")}, ValueError, "finite"),
        ({"ping_timeout": float("nan")}, ValueError, "finite"),
        ({"ping_timeout": "3"}, TypeError, "ping_timeout is of type str"),
        ({"port": "27017"}, TypeError, "port must be an instance of int"),
    ],
)
def test_a_bad_option_is_refused_when_the_manager_is_made(
    make: Any, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    """Not with the first connection, which may come hours later."""
    with pytest.raises(error, match=says) as caught:
        make(**options)
    assert SECRET not in str(caught.value)


def test_a_url_and_hosts_exclude_each_other(make: Any) -> None:
    """The driver would take one of them."""
    with pytest.raises(ValueError, match="both a URL and host= are given"):
        make("mongodb://h", host="other")
    with pytest.raises(TypeError, match="the URL is of type bytes"):
        make(b"mongodb://h")


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"snapshot": True, "causal_consistency": True}, ValueError, "exclude each other"),
        ({"snapshot": True, "test_transaction": True}, ValueError, "exclude each other"),
        ({"causal_consistency": 1}, TypeError, "causal_consistency=1: give True or False"),
        ({"test_transaction": "yes"}, TypeError, "test_transaction='yes': give True or False"),
        ({"default_transaction_options": {}}, TypeError, "give a pymongo.client_session.TransactionOptions"),
    ],
)
def test_a_bad_option_of_sessions_is_refused(
    kind: Any, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    """Before any I/O, as all others."""
    with pytest.raises(error, match=says):
        kind.sessions(**options)


def test_an_option_that_the_driver_does_not_know_is_warned_of_as_the_driver_does(make: Any) -> None:
    """URLs are shared with programs in other languages, whose drivers have options of their own."""
    with pytest.warns(UserWarning, match="Unknown option"):
        make("mongodb://h/?loadSheddingMode=never")


@pytest.mark.parametrize(
    ("arguments", "options", "shown"),
    [
        (
            (f"mongodb://u:{SECRET}@h:1,i:2/db?replicaSet=r&tlsCertificateKeyFilePassword={SECRET}",),
            {},
            "mongodb://h:1,i:2/db",
        ),
        ((f"mongodb://{SECRET}@h/?tls=true&authMechanism=MONGODB-X509",), {}, "mongodb://h/"),
        ((), {"host": "h", "username": "u", "password": SECRET}, "mongodb://h"),
        ((), {"host": ["h", "i"], "username": "u", "password": SECRET}, "mongodb://h,i"),
        ((), {"host": f"mongodb://u:{SECRET}@h/db"}, "mongodb://h/db"),
        ((), {"username": "u", "password": lambda: SECRET}, "mongodb://localhost"),
        ((f"mongodb+srv://u:{SECRET}@cluster.example.com/db",), {}, "mongodb+srv://cluster.example.com/db"),
    ],
)
def test_a_manager_shows_hosts_and_database_and_no_secret(
    make: Any, arguments: Any, options: dict[str, Any], shown: str
) -> None:
    """Managers stand in logs and tracebacks."""
    manager = make(*arguments, **options)
    assert repr(manager) == f"<{type(manager).__name__} {shown}>"
    assert SECRET not in f"{manager} {manager!r} {vars(manager)!r}"


def test_the_entry_points_make_a_session_manager() -> None:
    """Pool.from_url finds the adapter by the scheme."""
    from importlib.metadata import entry_points

    found = {point.name: point.load() for point in entry_points(group="pool_core.managers") if "mongo" in point.name}
    assert set(found) == {"mongodb", "mongodb+srv"}
    for make in found.values():
        assert repr(make("mongodb://h/db")) == "<MongoSessionManager mongodb://h/db>"
