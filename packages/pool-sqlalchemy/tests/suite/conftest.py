# mypy: ignore-errors
# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportPrivateImportUsage=false
"""SQLAlchemy's dialect suite, over its own pool or (POOL_SUITE=1) over ours: see ../test_dialect_suite.py."""

import os
import sys
from pathlib import Path

import pytest
import sqlalchemy

sys.path.insert(0, str(Path(__file__).parent))  # suite_requirements
pytest.register_assert_rewrite("sqlalchemy.testing.assertions")

if os.environ.get("POOL_SUITE"):
    from pool_sqlalchemy import _engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    create_of_sqlalchemy = sqlalchemy.create_engine
    # The suite wants engines that are not wrapped, and gives them an option that an AsyncEngine's maker refuses.
    _engine.create_of_sqlalchemy = lambda url, **options: AsyncEngine(create_of_sqlalchemy(url, **options))

    def over_our_pool(url, **options):
        """An engine of the suite's; where a test is about a pool of SQLAlchemy's, the original."""
        if options.keys() & {"poolclass", "pool", "creator", "module"}:
            return create_of_sqlalchemy(url, **options)
        return _engine.create_async_engine(url, connection_timeout=5, **options).sync_engine

    sqlalchemy.create_engine = over_our_pool

from sqlalchemy.testing.plugin.pytestplugin import *  # noqa: E402, F403 - the plugin reads options when it is imported
