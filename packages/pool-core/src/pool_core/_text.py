"""One check of texts, so that all adapters refuse the same in the same words."""

from __future__ import annotations

import re
from typing import Final, TypeVar

__all__ = ["check_text"]

Text = TypeVar("Text", str, "str | None")

_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff]")


def check_text(name: str, value: Text, *, space: bool = True) -> Text:
    """Refuse control characters, and white space around a text: a mounted secret often ends with a line break.

    Args:
        name: what the text is, for the error message: ``"host"``.
        value: the text, which is returned; None is returned as it is.
        space: allow spaces within the text. False: a host name, for example, has none.

    Raises:
        TypeError: it is neither a str nor None.
        ValueError: the text has one of these characters. The message does not quote it.
    """
    if value is None:
        return value
    if not isinstance(value, str):
        raise TypeError(f"{name} is of type {type(value).__name__}: expected a str")
    if value.endswith(("\n", "\r")):
        raise ValueError(f"{name} ends with a line break: remove it, as with .strip() after reading a file")
    if _CONTROL.search(value) or value != value.strip() or (not space and any(sign.isspace() for sign in value)):
        advice = "remove it, or percent-encode it (a space is %20)" if name == "the URL" else "remove it"
        raise ValueError(f"{name} has white space or a control character where none can be: {advice}")
    return value
