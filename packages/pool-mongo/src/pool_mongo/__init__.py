"""MongoDB for pool-core: sessions of one client, or clients. For motor see `pool_mongo.motor`."""

from __future__ import annotations

from typing import Any, ClassVar

from pymongo import AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession

from ._driver import Driver, PyMongoDriver
from ._manager import ClientManager, SessionManager

__all__ = ["MongoClientManager", "MongoSessionManager"]


class MongoSessionManager(SessionManager[AsyncMongoClient[dict[str, Any]], AsyncClientSession]):
    """Manages sessions of one shared ``AsyncMongoClient``: ``session.client`` leads to databases.

    Give the client a ``maxPoolSize`` (100 by default) of at least the pool's ``max_size``: otherwise sessions wait in
    the driver's own queue.
    """

    _driver: ClassVar[Driver[Any, Any]] = PyMongoDriver()


class MongoClientManager(ClientManager[AsyncMongoClient[dict[str, Any]], AsyncClientSession]):
    """Manages ``AsyncMongoClient`` objects with one connection each. The README shows what each one costs."""

    _driver: ClassVar[Driver[Any, Any]] = PyMongoDriver()
