"""ArangoDB for pool-core, on python-arango-async."""

from pool_arangodb._manager import ArangoConnectionManager

__all__ = ["ArangoConnectionManager"]
