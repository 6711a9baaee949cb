"""Secrets are shown nowhere; credentials may be callables, which are asked for each connection."""

from __future__ import annotations

import asyncio
import copy
import pickle
from typing import Any

import pytest
from pool_core.adapters import Secret, ask, check_credential

SECRET = "s3cr3t-canary"


def test_no_text_of_a_secret_shows_it() -> None:
    """Whatever a log, a debugger or an f-string makes of it."""
    secret = Secret(SECRET)
    for text in (str(secret), repr(secret), f"{secret}", f"{secret:>9}", f"{secret!r}", repr([secret])):
        assert SECRET not in text
        assert "***" in text
    assert secret.reveal() == SECRET
    assert not hasattr(secret, "__dict__")


def test_secrets_compare_by_their_text() -> None:
    """Settings that are the same are equal."""
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a")}) == 1
    assert not Secret("")
    assert Secret(" ")


def test_a_secret_cannot_be_changed() -> None:
    with pytest.raises(AttributeError, match="cannot be changed"):
        Secret("a")._text = "b"


def test_secrets_survive_copy_and_pickle() -> None:
    """Settings go to worker processes."""
    secret = Secret(SECRET)
    assert copy.copy(secret) is secret
    assert copy.deepcopy({"a": secret})["a"] is secret
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(secret, protocol)).reveal() == SECRET


async def _later() -> str:
    await asyncio.sleep(0)
    return SECRET


class _Rotated:
    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> str:
        self.asked += 1
        return f"{SECRET}{self.asked}"


@pytest.mark.parametrize(
    ("credential", "text"),
    [
        (None, None),
        (SECRET, SECRET),
        (Secret(SECRET), SECRET),
        (lambda: SECRET, SECRET),
        (lambda: Secret(SECRET), SECRET),
        (_later, SECRET),
    ],
)
def test_a_credential_is_a_text_or_what_a_callable_returns(credential: Any, text: str | None) -> None:
    """Sync or async."""
    check_credential("password", credential)
    assert asyncio.run(ask("password", credential)) == text


def test_a_callable_is_asked_for_each_connection() -> None:
    """Short-lived tokens."""
    rotated = _Rotated()
    check_credential("password", rotated)
    assert rotated.asked == 0
    assert [asyncio.run(ask("password", rotated)) for _ in range(2)] == [f"{SECRET}1", f"{SECRET}2"]


@pytest.mark.parametrize("wrong", [f"{SECRET}\n", f"{SECRET}\r\n", f"\n{SECRET}", f"{SECRET}\0"])
def test_a_secret_that_was_read_with_its_line_break_is_refused(wrong: str) -> None:
    """The server would say "wrong password", and nobody would see why."""
    for credential in (wrong, Secret(wrong)):
        with pytest.raises(ValueError, match="^password (ends with a line break|has a NUL character)") as caught:
            check_credential("password", credential)
        assert SECRET not in str(caught.value)
    with pytest.raises(ValueError, match="^password (ends with a line break|has a NUL character)"):
        asyncio.run(ask("password", lambda: wrong))


def test_spaces_in_a_password_are_its_own() -> None:
    check_credential("password", f" {SECRET}\t{SECRET} ")


@pytest.mark.parametrize("wrong", [7, b"bytes", ["x"]])
def test_what_is_no_credential_is_a_type_error(wrong: Any) -> None:
    with pytest.raises(TypeError, match=f"password is of type {type(wrong).__name__}: expected a str, or a callable"):
        check_credential("password", wrong)
    with pytest.raises(TypeError, match=f"the callable for password returned {type(wrong).__name__}"):
        asyncio.run(ask("password", lambda: wrong))


def test_a_callable_that_returns_nothing_is_refused() -> None:
    """A forgotten return would connect without a password."""
    with pytest.raises(TypeError, match="the callable for password returned NoneType: it must return a str"):
        asyncio.run(ask("password", lambda: None))  # type: ignore[arg-type]


def test_what_a_callable_raises_is_raised() -> None:
    """The pool retries it, or not, by its kind."""

    async def broken() -> str:
        raise ConnectionResetError("the token service is away")

    with pytest.raises(ConnectionResetError):
        asyncio.run(ask("password", broken))
