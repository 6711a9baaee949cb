# mypy: ignore-errors
# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportPrivateImportUsage=false
"""What the suite may expect of the databases."""

from sqlalchemy.testing import exclusions
from sqlalchemy.testing.requirements import SuiteRequirements


class Requirements(SuiteRequirements):
    """As the suite assumes of an unknown dialect; SQLite has no second schema here."""

    @property
    def schemas(self):
        return exclusions.skip_if(lambda config: config.db.dialect.name == "sqlite", "no second schema is attached")
