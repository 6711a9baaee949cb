"""What the author of an adapter would otherwise write by hand: URLs, options, secrets, errors.

Nothing here knows a driver. ``docs/adapter.md`` has an adapter that uses all of it.
"""

from pool_core._text import check_text

from ._errors import ErrorTable, dropping_on_failure, is_transient, judge
from ._options import Kind, Options, boolean, choice, did_you_mean, integer, number, text
from ._secrets import Credential, Secret, ask, check_credential
from ._settings import Settings
from ._url import URL, Host

__all__ = [
    "URL",
    "Credential",
    "ErrorTable",
    "Host",
    "Kind",
    "Options",
    "Secret",
    "Settings",
    "ask",
    "boolean",
    "check_credential",
    "check_text",
    "choice",
    "did_you_mean",
    "dropping_on_failure",
    "integer",
    "is_transient",
    "judge",
    "number",
    "text",
]
