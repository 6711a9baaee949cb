"""Options: read from a URL, checked as keyword arguments, and named well when there is no such thing."""

from __future__ import annotations

from typing import Any

import pytest
from pool_core.adapters import Options, boolean, choice, did_you_mean, integer, number, text

SECRET = "s3cr3t canary"
OPTIONS = Options(
    "DemoManager",
    {
        "heartbeat": number(0, 3600),
        "linger": number(above=0),
        "prefetch": integer(1, 9),
        "depth": integer(),
        "tls": boolean(),
        "mode": choice("fast", "safe"),
        "vhost": text(),
    },
    keywords={"context": None, "level": integer(0)},
    refused={"max_connections": "use the pool's max_size"},
)


def test_a_urls_options_are_read_by_their_kinds() -> None:
    """The driver wants an int, not its text."""
    query = [
        ("heartbeat", "1.5"),
        ("prefetch", "9"),
        ("depth", "-3"),
        ("tls", "Yes"),
        ("mode", "safe"),
        ("vhost", "a b"),
    ]
    assert OPTIONS.read(query) == {
        "heartbeat": 1.5,
        "prefetch": 9,
        "depth": -3,
        "tls": True,
        "mode": "safe",
        "vhost": "a b",
    }


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("prefetch", "ten", r"prefetch='ten' in the URL: expected an int from 1 to 9"),
        ("prefetch", "0", r"prefetch='0' in the URL: expected an int from 1 to 9"),
        ("prefetch", "1_0", "expected an int from 1 to 9"),
        ("depth", "9" * 5000, "^depth in the URL: expected an int$"),
        ("prefetch", SECRET, r"^prefetch in the URL: expected an int"),
        ("heartbeat", "nan", "heartbeat='nan' in the URL: expected a finite number from 0 to 3600"),
        ("heartbeat", "-1", "expected a finite number from 0 to 3600"),
        ("linger", "0", "linger='0' in the URL: expected a finite number above 0"),
        ("linger", "inf", "expected a finite number above 0"),
        ("linger", "1_0", "expected a finite number above 0"),
        ("tls", "maybe", r"tls='maybe' in the URL: expected True or False \(in a URL: true or false\)"),
        ("mode", "slow", "mode='slow' in the URL: expected one of 'fast', 'safe'"),
        ("vhost", "a\n", "^vhost in the URL: expected a text without control characters"),
    ],
)
def test_a_bad_value_in_a_url_is_named_with_what_is_allowed(name: str, value: str, words: str) -> None:
    """A value is shown where it can be no secret."""
    with pytest.raises(ValueError, match=words) as caught:
        OPTIONS.read([(name, value)])
    assert SECRET not in str(caught.value)
    assert caught.value.__context__ is None


def test_an_option_stands_once_in_a_url() -> None:
    """Which one counts would be a guess."""
    with pytest.raises(ValueError, match="tls stands twice in the URL"):
        OPTIONS.read([("tls", "1"), ("tls", "0")])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("prefech", r"^'prefech' is not an option of DemoManager; did you mean 'prefetch'\? \(in the URL\)$"),
        ("TLS", "did you mean 'tls'"),
        ("xyz", "; the options are heartbeat, linger, prefetch, depth, tls, mode, vhost"),
        ("max_connections", "^max_connections is not taken: use the pool's max_size"),
        ("context", "^context cannot be given in a URL: give it as a keyword argument"),
        (SECRET, r"^\(not shown\) is not an option of DemoManager"),
    ],
)
def test_an_unknown_option_of_a_url_is_a_type_error_that_helps(name: str, words: str) -> None:
    """As for the pool's own options."""
    with pytest.raises(TypeError, match=words) as caught:
        OPTIONS.read([(name, "1")])
    assert SECRET not in str(caught.value)


def test_keyword_arguments_are_checked_by_the_same_kinds() -> None:
    """None is the driver's default, and a keyword without a kind is the driver's to check."""
    OPTIONS.check({"heartbeat": 3, "linger": 0.1, "prefetch": 1, "tls": False, "mode": "fast", "vhost": "v"})
    OPTIONS.check({"context": object(), "level": 0, "prefetch": None})


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"prefetch": "3"}, TypeError, "prefetch is of type str: expected an int from 1 to 9"),
        ({"prefetch": True}, TypeError, "prefetch is of type bool: expected an int"),
        ({"prefetch": 10}, ValueError, "prefetch=10: expected an int from 1 to 9"),
        ({"level": -1}, ValueError, "level=-1: expected an int of at least 0"),
        ({"linger": float("nan")}, ValueError, "linger=nan: expected a finite number above 0"),
        ({"heartbeat": True}, TypeError, "heartbeat is of type bool"),
        ({"heartbeat": 10**400}, ValueError, "expected a finite number"),
        ({"tls": 1}, TypeError, "tls is of type int: expected True or False"),
        ({"mode": ["fast"]}, ValueError, r"mode=\['fast'\]: expected one of 'fast', 'safe'"),
        ({"vhost": 7}, TypeError, "vhost is of type int: expected a text"),
        ({"vhost": f"{SECRET}\n"}, ValueError, "^vhost ends with a line break"),
        ({"prefech": 1}, TypeError, "'prefech' is not an option of DemoManager; did you mean 'prefetch'"),
        ({"contxt": 1}, TypeError, "did you mean 'context'"),
        ({"max_connections": 1}, TypeError, "max_connections is not taken: use the pool's max_size"),
    ],
)
def test_a_bad_keyword_argument_is_refused(given: dict[str, Any], error: type[Exception], words: str) -> None:
    """Before any I/O."""
    with pytest.raises(error, match=words) as caught:
        OPTIONS.check(given)
    assert SECRET not in str(caught.value)


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    assert did_you_mean("zzz", ["host", "port"]) == ""
    assert did_you_mean("hots", ["host", "port"]) == "; did you mean 'host'?"
