# mypy: ignore-errors
# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportPrivateImportUsage=false
"""All tests of the suite, as a dialect of somebody else's collects them."""

from sqlalchemy.testing.suite import *  # noqa: F403
