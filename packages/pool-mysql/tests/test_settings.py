"""What a manager may be given, without any server: URLs, keyword settings, secrets."""

import asyncio
import inspect
import pickle
import re
import ssl
from pathlib import Path
from typing import Any

import aiomysql
import pytest
from pool_mysql import MySQLConnectionManager


def driver_settings(*args: Any, **kwargs: Any) -> dict[str, Any]:
    return asyncio.run(MySQLConnectionManager(*args, **kwargs)._settings.resolved())


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
    assert driver_settings("mysql://ann:@h/") == {"host": "h", "user": "ann", "password": ""}


def test_keyword_settings_need_no_url_and_win_over_one() -> None:
    """Passwords often come from elsewhere than the URL."""
    assert driver_settings(host="h", password="p") == {"host": "h", "password": "p"}
    assert driver_settings("mysql://ann:x@h/shop", password="p", db="b")["db"] == "b"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://u:canary@h/d", "must start with mysql:// or mariadb://"),
        ("canary", "must start with mysql:// or mariadb://"),
        ("mysql://u:can/ary@h/d", "%2F"),
        ("mysql://u:can#ary@h/d", "%23"),
        ("mysql://u:can?ary@h/d", "%3F"),
        ("mysql://u:can@ary@h/d", "%40"),
        ("mysql://u:canary@h:port/d", "port"),
        ("mysql://u:canary@h:70000/d", "1 to 65535"),
        ("mysql://u:canary@[::1/d", "brackets"),
        ("mysql://u:canary@h:0/d", "1 to 65535"),
        ("mysql://u:canary%ff@h/d", "UTF-8"),
        ("mysql://u:canary@h/d#x", "%23"),
        ("mysql://u:can\nary@h/d", "white space"),
        ("mysql://u:canary@h/d\n", "line break"),
        ("mysql://u:canary@h/d ", "white space"),
        ("mysql://u:canary@h1,h2/d", "several hosts"),
        ("mysql://u:canary@h/d?autocommit=canary+", "True or False"),
        ("mysql://u:canary@h/d?charset=latin99", "such as utf8mb4"),
        ("mysql://u:canary@h/d?ssl-mode=canary", "VERIFY_IDENTITY"),
        ("mysql://u:canary@h/d?ssl-mode=PREFERRED", "goes on without TLS"),
        ("mysql://u:canary@h/d?ssl-mode=REQUIRED&ssl=true", "leave ssl out"),
        ("mysql://u:canary@h/d?ssl-key=k.pem", "ssl-cert"),
        ("mysql://u:canary@h/d?ssl-ca=/no/such.pem", "ssl-ca"),
        ("mysql://u:canary@h/d?ssl_cert=/no/such.pem", "ssl-cert"),
    ],
)
def test_a_bad_url_is_refused_at_once_and_not_quoted(url: str, says: str) -> None:
    """Python's own URL errors, and int()'s, show parts of the password."""
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        MySQLConnectionManager(url)
    assert "canary" not in repr(caught.value)
    for part in ("can/", "can@", "ary@"):
        assert part not in repr(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None or "ssl" in url


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("connect_timeout=10", "create_timeout"),
        ("connectTimeout=10000", "create_timeout"),
        ("conv=1", "keyword argument"),
        ("useSSL=true", "ssl-mode=REQUIRED"),
        ("sslaccept=strict", "ssl-mode=REQUIRED"),
        ("ssl_verify_cert=true", "ssl-mode=REQUIRED"),
        ("characterEncoding=utf8", "charset"),
        ("serverTimezone=UTC", "time_zone"),
        ("reconnect=true", "replaces a lost connection"),
        ("connection_limit=5", "max_size"),
        ("autocomit=true", "did you mean 'autocommit'"),
    ],
)
def test_a_url_option_of_another_client_is_refused_by_name(option: str, says: str) -> None:
    """Hosters print URLs for other drivers; an option that is ignored shows at the first incident."""
    name = option.partition("=")[0]
    with pytest.raises(TypeError, match=f"{name}.*{says}"):
        MySQLConnectionManager(f"mysql://u:canary@h/d?{option}")


@pytest.mark.parametrize("name", ["ssl-mode", "ssl_mode", "sslmode", "sslMode"])
def test_ssl_mode_in_a_url_means_what_it_means_to_mysqls_clients(name: str) -> None:
    """DigitalOcean and Aiven print ?ssl-mode=REQUIRED."""

    def context(query: str) -> Any:
        return driver_settings(f"mysql://h/d?{query}").get("ssl")

    required = context(f"{name}=required")
    assert (required.verify_mode, required.check_hostname) == (ssl.CERT_NONE, False)
    authority = Path(__file__).parent / "tls-cert.pem"
    for query in (f"{name}=VERIFY_CA&ssl-ca={authority}", f"ssl_ca={authority}"):
        assert (context(query).verify_mode, context(query).check_hostname) == (ssl.CERT_REQUIRED, False)
        assert len(context(query).get_ca_certs()) == 1
    identity = context(f"{name}=VERIFY_IDENTITY")
    assert (identity.verify_mode, identity.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert context(f"{name}=DISABLED") is False


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"database": "d"}, TypeError, "give db"),
        ({"pasword": "canary"}, TypeError, "'pasword'.*did you mean 'password'"),
        ({"loop": None}, TypeError, "the loop that runs"),
        ({"connect_timeout": 3}, TypeError, "create_timeout"),
        ({"ssl_ca": "ca.pem"}, TypeError, "ssl.SSLContext"),
        ({"port": "3306"}, TypeError, "1 to 65535"),
        ({"port": True}, TypeError, "1 to 65535"),
        ({"port": 0}, ValueError, "1 to 65535"),
        ({"host": "h\n"}, ValueError, "line break"),
        ({"password": b"canary"}, TypeError, "type bytes"),
        ({"password": "canary\n"}, ValueError, "line break"),
        ({"user": 7}, TypeError, "type int"),
        ({"ssl": {}}, TypeError, "ssl.SSLContext"),
        ({"ssl": {"ca": "ca.pem"}}, TypeError, "ssl.SSLContext"),
        ({"charset": "latin99"}, ValueError, "utf8mb4"),
        ({"server_public_key": "key.pem"}, TypeError, "the bytes of a PEM file"),
        ({"server_public_key": b"key.pem"}, ValueError, "the bytes of a PEM file"),
        (
            {"server_public_key": b"-----BEGIN PUBLIC KEY-----\nxyz\n-----END PUBLIC KEY-----\n"},
            ValueError,
            "the bytes of a PEM file",
        ),
        ({"read_default_file": "/no/such.cnf"}, ValueError, "no such file"),
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


def test_every_keyword_of_the_driver_is_known() -> None:
    """A keyword of a later aiomysql passes through, unchecked."""
    refused = {"loop", "connect_timeout"}
    for name in inspect.signature(aiomysql.Connection).parameters.keys() - refused:
        settings: dict[str, Any] = {name: None}
        MySQLConnectionManager(**settings)


def test_a_url_that_is_no_text_is_refused() -> None:
    """A pydantic URL object, say."""
    with pytest.raises(TypeError, match="type bytes: expected a str"):
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
    assert asyncio.run(manager._settings.resolved())["password"] == "new"
    assert asyncio.run(manager._settings.resolved())["host"] == "h1"
    manager.update("mysql://ann@h2/shop")
    assert asyncio.run(manager._settings.resolved()) == {
        "host": "h2",
        "user": "ann",
        "password": "new",
        "db": "shop",
        "program_name": "p",
    }


def test_a_bad_update_changes_nothing() -> None:
    """A typing error in a rotation job must not take the service down."""
    manager = MySQLConnectionManager("mysql://ann@h1/shop")
    with pytest.raises(ValueError, match="must start with"):
        manager.update("h2", password="new")
    with pytest.raises(TypeError, match="'pw' is not an option"):
        manager.update("mysql://h2", pw="new")
    assert asyncio.run(manager._settings.resolved()) == {"host": "h1", "user": "ann", "db": "shop"}


def test_ssl_takes_a_context_and_true_and_false() -> None:
    """The three forms that the driver understands."""
    context = ssl.create_default_context()
    assert driver_settings(ssl=context)["ssl"] is context
    assert driver_settings("mysql://h?ssl=false")["ssl"] is False


def test_making_a_manager_needs_no_loop() -> None:
    """Module-level pools are made at import."""
    assert pickle.loads(pickle.dumps(repr(MySQLConnectionManager()))).startswith("<MySQLConnectionManager")
