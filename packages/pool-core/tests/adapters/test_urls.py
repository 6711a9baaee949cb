"""URLs: what is read, what is refused, and that no error quotes a secret."""

from __future__ import annotations

import traceback
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pool_core.adapters import URL, Host, Secret, check_text

SECRET = "s3cr3tcanary"
FORM = "demo://user:password@host:1234/name"


def read(url: str, *, several_hosts: bool = False) -> URL:
    return URL(url, schemes=("demo", "demo+tls"), form=FORM, several_hosts=several_hosts)


def test_every_part_is_percent_decoded() -> None:
    """A password may hold every sign."""
    url = read("DEMO://us%40er:p%3A%2F%3F%23%40%25%20w@h%C3%BCst:1234/a%2Fb%20c?one=x+y%26&two=%3D=#"[:-1])
    assert (url.scheme, url.user, url.password) == ("demo", "us@er", Secret("p:/?#@% w"))
    assert (url.host, url.port, url.hosts) == ("hüst", 1234, (Host("hüst", 1234),))
    assert url.path == "/a/b c"
    assert url.query == (("one", "x y&"), ("two", "=="))


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("demo://", ()),
        ("demo:///name", ()),
        ("demo://h", (Host("h"),)),
        ("demo://h:", (Host("h"),)),
        ("demo://[::1]:5433", (Host("::1", 5433),)),
        ("demo://[fe80::1%25eth0]", (Host("fe80::1%eth0"),)),
        ("demo://u@%2Frun%2Fs.sock:7", (Host("/run/s.sock", 7),)),
        ("demo+tls://u:p@h1,[::1]:5433,h2:65535/x", (Host("h1"), Host("::1", 5433), Host("h2", 65535))),
    ],
)
def test_hosts_are_read_without_urllib(text: str, hosts: tuple[Host, ...]) -> None:
    """Newer Pythons' urllib refuses a list of hosts with brackets in it."""
    url = read(text, several_hosts=True)
    assert url.hosts == hosts
    assert all(read(f"demo://{host}".replace("%", "%25")).hosts == (host,) for host in hosts if "/" not in host.name)


TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)


@given(user=TEXT, password=TEXT, value=TEXT)
@example(user="%", password=":@/?#%", value="&=+ ")
def test_whatever_is_percent_encoded_comes_back(user: str, password: str, value: str) -> None:
    """With the standard library's own quote()."""
    url = read(f"demo://{quote(user, safe='')}:{quote(password, safe='')}@h?key={quote(value, safe='')}")
    assert (url.user, url.password, url.query) == (user, Secret(password), (("key", value),))


@given(before=st.text(max_size=6), after=st.text(max_size=6), rest=st.text("@/?#:%[], ab1=&\n", max_size=12))
@example(before="", after="", rest="%\n")
@example(before="[", after="]", rest="")
@example(before="1/", after="", rest="")
def test_whatever_is_around_a_password_its_error_does_not_quote_it(before: str, after: str, rest: str) -> None:
    """Nobody escapes a password on the first try."""
    try:
        url = read(f"demo://u:{before}{SECRET}{after}{rest}@h/x", several_hosts=True)
    except ValueError as error:
        assert SECRET not in "".join(traceback.format_exception(error))
    else:
        assert url.password is not None
        assert SECRET in url.password.reveal()
        assert SECRET not in repr(url)


def test_what_is_missing_is_none_or_empty() -> None:
    """An adapter puts its defaults in the place of None."""
    url = read("demo://")
    assert (url.user, url.password, url.host, url.port, url.path, url.query) == (None, None, None, None, "", ())
    url = read("demo://:@h/?&")
    assert (url.user, url.password, url.path, url.query) == (None, Secret(""), "/", ())


def test_a_repr_shows_scheme_hosts_and_path_only() -> None:
    """User names may be tokens, and options may be keys."""
    url = read(f"demo://{SECRET}:{SECRET}@h1,[::1]:2/name?key={SECRET}", several_hosts=True)
    assert repr(url) == "demo://h1,[::1]:2/name"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"http://u:{SECRET}@h", "must start with demo:// or demo\\+tls://, but it has another scheme: write demo://"),
        (f"u:{SECRET}@h", "it has no scheme"),
        (f"demo:u:{SECRET}@h", "it has no scheme"),
        (f"{SECRET}@h://x", "it has no scheme"),
        (f"demo://u:{SECRET}/RET@h/db", "without doubt.*/ is %2F"),
        (f"demo://u:{SECRET}?x@h/db", "without doubt"),
        (f"demo://u:{SECRET}#x@h/db", "without doubt"),
        (f"demo://u:1/{SECRET}@h/db", "without doubt"),
        (f"demo://u:1?a={SECRET}@h/db", "without doubt"),
        (f"demo://u:p@{SECRET}@h/db", "without doubt"),
        (f"demo://u:p:{SECRET}@h/db", "without doubt"),
        (f"demo://u:{SECRET}%@h/db", "without doubt.*% is %25"),
        (f"demo://u:{SECRET}%zz@h/db", "without doubt"),
        (f"demo://u:{SECRET}@h/db#part", "without doubt"),
        (f"demo://u:{SECRET}%ff@h/db", "not UTF-8"),
        (f"demo://u:{SECRET}/db", "a port of the URL is not a number"),
        (f"demo://u:{SECRET}@h:port/db", "a port of the URL is not a number"),
        (f"demo://u:{SECRET}@h:0/db", "a port of the URL is not a number"),
        (f"demo://u:{SECRET}@h:65536/db", "a port of the URL is not a number"),
        (f"demo://u:{SECRET}@h:\u0665/db", "a port of the URL is not a number"),
        (f"demo://u:{SECRET}@h:{'9' * 5000}/db", "a port of the URL is not a number"),
        (f"demo://u:{SECRET}@::1/db", "more than one colon"),
        (f"demo://u:{SECRET}@[::1/db", "not an IPv6 address in brackets"),
        (f"demo://u:{SECRET}@[::1]5432/db", "not an IPv6 address in brackets"),
        (f"demo://u:{SECRET}@[{SECRET}]/db", "not an IPv6 address in brackets"),
        (f"demo://u:{SECRET}@h1,,h2/db", "a host of the URL is empty"),
        (f"demo://u:{SECRET}@:5432/db", "a host of the URL is empty"),
        (f"demo://u:{SECRET}@h%0a/db", "a host of the URL ends with a line break"),
        (f"demo://u:{SECRET}@h%20h/db", "a host of the URL has white space"),
        (f"demo://u:{SECRET}@h/d%00b", "the URL's path has white space or a control character"),
        (f"demo://h/db?{SECRET}", "an option without a name or a value"),
        (f"demo://h/db?={SECRET}", "an option without a name or a value"),
    ],
)
def test_a_malformed_url_is_refused_without_a_quotation(text: str, words: str) -> None:
    """The part that cannot be read may be a piece of the password."""
    with pytest.raises(ValueError, match=words) as caught:
        read(text, several_hosts=True)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__context__ is None


def test_a_list_of_hosts_needs_an_adapter_that_takes_it() -> None:
    """Connecting to the first of three would be a silent surprise."""
    with pytest.raises(ValueError, match="names several hosts"):
        read("demo://h1,h2")


def test_a_url_that_is_no_text_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="the URL is of type bytes: expected a str, demo://"):
        read(b"demo://h")  # type: ignore[arg-type]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("name", ["the URL", "host"])
def test_a_line_break_of_a_mounted_secret_is_named(end: str, name: str) -> None:
    """`open(path).read()` keeps it, and one driver strips it while another one opens another database."""
    with pytest.raises(ValueError, match=f"^{name} ends with a line break: remove it, as with .strip\\(\\)"):
        check_text(name, f"demo://{SECRET}{end}", space=False)


@pytest.mark.parametrize("sign", [" ", "\t", "\n", "\r", "\0", "\x1b", "\x7f", "\x85", "\xa0", "\u2028", "\ufeff"])
@pytest.mark.parametrize(
    "place", ["{}demo://h/x", "demo://u:p{}@h/x", "demo://h/x{}y", "demo://h/?a={}b", "demo://h/x{}"]
)
def test_white_space_and_control_characters_are_refused_anywhere(sign: str, place: str) -> None:
    """The same words for every adapter."""
    with pytest.raises(ValueError, match="^the URL (ends with a line break|has white space or a control character)"):
        read(place.format(sign))


def test_texts_may_hold_spaces_where_they_are_allowed() -> None:
    """A database may be called "my shop"; nothing begins or ends with a space by intention."""
    assert check_text("database", "my shop") == "my shop"
    assert check_text("database", None) is None
    for value in (" shop", "shop ", "sh\top", "shop\u2028"):
        with pytest.raises(ValueError, match="^database has white space or a control character .*: remove it$"):
            check_text("database", value)
    with pytest.raises(ValueError, match="^host has white space"):
        check_text("host", "a b", space=False)
    with pytest.raises(TypeError, match="^host is of type int: expected a str$"):
        check_text("host", 7)  # type: ignore[type-var]
