"""What a manager may be given, without any server: URLs, keyword settings, secrets."""

import pickle
import ssl
from typing import Any

import pytest
from pool_mysql import MySQLConnectionManager


def driver_settings(*args: Any, **kwargs: Any) -> dict[str, Any]:
    return MySQLConnectionManager(*args, **kwargs)._settings.for_driver()


def test_a_url_becomes_the_drivers_arguments() -> None:
    """The usual case: one URL from the environment."""
    assert driver_settings("mysql://ann:s%2Fe%40c@db.example:3307/shop?charset=utf8mb4&autocommit=true&ssl=1") == {
        "host": "db.example",
        "port": 3307,
        "user": "ann",
        "password": "s/e@c",
        "db": "shop",
        "charset": "utf8mb4",
        "autocommit": True,
        "ssl": True,
    }


def test_a_url_may_be_short_and_say_mariadb_and_have_an_ipv6_host() -> None:
    """What it does not say is the driver's default."""
    assert driver_settings("mariadb://db.example") == {"host": "db.example"}
    assert driver_settings("MariaDB://ann@[::1]:33/") == {"host": "::1", "port": 33, "user": "ann"}
    assert driver_settings("mysql:///shop?unix_socket=/run/my.sock") == {"db": "shop", "unix_socket": "/run/my.sock"}
    assert driver_settings("mysql://ann:@h/") == {"host": "h", "user": "ann"}


def test_keyword_settings_need_no_url_and_win_over_one() -> None:
    """Passwords often come from elsewhere than the URL."""
    assert driver_settings(host="h", password="p") == {"host": "h", "password": "p"}
    assert driver_settings("mysql://ann:x@h/shop", password="p", db="b")["db"] == "b"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://u:canary@h/d", "does not begin with mysql:// or mariadb://"),
        ("canary", "does not begin with mysql:// or mariadb://"),
        ("mysql://u:can/ary@h/d", "%2F"),
        ("mysql://u:can#ary@h/d", "%23"),
        ("mysql://u:can?ary@h/d", "%3F"),
        ("mysql://u:can@ary@h/d", "%40"),
        ("mysql://u:canary@h:port/d", "host or port"),
        ("mysql://u:canary@h:70000/d", "host or port"),
        ("mysql://u:canary@[::1/d", "host or port"),
        ("mysql://u:canary@h:0/d", "1 to 65535"),
        ("mysql://u:canary%ff@h/d", "UTF-8"),
        ("mysql://u:canary@h/d#x", "'#'"),
        ("mysql://u:can\nary@h/d", "ends that part"),
        ("mysql://u:canary@h/d?autocommit=canary", "autocommit=true"),
        ("mysql://u:canary@h/d?conv=1", "keyword argument"),
        ("mysql://u:canary@h/d?connect_timeout=3", "create_timeout"),
        ("mysql://u:canary@h/d?charset=latin99", "utf8mb4"),
    ],
)
def test_a_bad_url_is_refused_at_once_and_not_quoted(url: str, says: str) -> None:
    """Python's own URL errors, and int()'s, show parts of the password."""
    with pytest.raises(ValueError) as caught:
        MySQLConnectionManager(url)
    assert says in str(caught.value)
    for secret in ("canary", "ary", "can/", "can@"):
        assert secret not in repr(caught.value).replace("can stand", "").replace("cannot", "")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"database": "d"}, TypeError, "allowed are"),
        ({"pasword": "canary"}, TypeError, "'pasword'"),
        ({"loop": None}, ValueError, "the loop that runs"),
        ({"connect_timeout": 3}, ValueError, "create_timeout"),
        ({"port": "3306"}, ValueError, "1 to 65535"),
        ({"port": True}, ValueError, "1 to 65535"),
        ({"password": b"canary"}, TypeError, "type bytes"),
        ({"user": 7}, TypeError, "type int"),
        ({"ssl": {}}, TypeError, "ssl.SSLContext"),
        ({"ssl": {"ca": "ca.pem"}}, TypeError, "ssl.SSLContext"),
        ({"charset": "latin99"}, ValueError, "utf8mb4"),
        ({"reset": "yes"}, ValueError, "'safe', 'strict', 'none'"),
        ({"reset": None}, ValueError, "'safe', 'strict', 'none'"),
        ({"open_transaction": "commit"}, ValueError, "'rollback', 'close'"),
        ({"test_transaction": 1}, TypeError, "True or False"),
    ],
)
def test_a_bad_setting_is_refused_before_any_connect(
    settings: dict[str, Any], error: type[Exception], says: str
) -> None:
    """aiomysql ignores some of these, plain text for ssl={} among them, and answers others with a riddle."""
    with pytest.raises(error, match=says) as caught:
        MySQLConnectionManager(**settings)
    assert "canary" not in repr(caught.value)


def test_a_url_that_is_no_text_is_refused() -> None:
    """A pydantic URL object, say."""
    with pytest.raises(TypeError, match="type bytes: give a str"):
        MySQLConnectionManager(b"mysql://h")  # type: ignore[arg-type]


def test_no_secret_shows_in_a_manager() -> None:
    """Managers end up in logs, tracebacks with locals, and debuggers."""
    manager = MySQLConnectionManager("mysql://ann:canary@h/d", init_command="SET @key = 'canary'", reset="strict")
    assert repr(manager) == "<MySQLConnectionManager mysql://ann@h:3306/d reset='strict'>"
    manager.update(password="canary", user=lambda: "canary")
    for text in (repr(manager), str(manager), repr(vars(manager)), f"{manager}"):
        assert "canary" not in text
    assert "(callable)@" in repr(manager)


def test_update_replaces_the_url_as_a_whole_and_keywords_one_by_one() -> None:
    """Rotation changes the password only; failover changes the server."""
    manager = MySQLConnectionManager("mysql://ann:old@h1/shop?charset=latin1", program_name="p")
    manager.update(password="new")
    assert manager._settings.for_driver()["password"] == "new"
    assert manager._settings.for_driver()["host"] == "h1"
    manager.update("mysql://ann@h2/shop")
    assert manager._settings.for_driver() == {
        "host": "h2",
        "user": "ann",
        "password": "new",
        "db": "shop",
        "program_name": "p",
    }


def test_a_bad_update_changes_nothing() -> None:
    """A typing error in a rotation job must not take the service down."""
    manager = MySQLConnectionManager("mysql://ann@h1/shop")
    with pytest.raises(ValueError, match="does not begin"):
        manager.update("h2", password="new")
    with pytest.raises(TypeError, match="no setting"):
        manager.update("mysql://h2", pw="new")
    assert manager._settings.for_driver() == {"host": "h1", "user": "ann", "db": "shop"}


def test_ssl_takes_a_context_and_true_and_false() -> None:
    """The three forms that the driver understands."""
    context = ssl.create_default_context()
    assert driver_settings(ssl=context)["ssl"] is context
    assert driver_settings("mysql://h?ssl=false")["ssl"] is False


def test_making_a_manager_needs_no_loop() -> None:
    """Module-level pools are made at import."""
    assert pickle.loads(pickle.dumps(repr(MySQLConnectionManager()))).startswith("<MySQLConnectionManager")
