"""Neo4j for pool-core, on the official driver."""

from pool_neo4j._manager import Neo4jSessionManager

__all__ = ["Neo4jSessionManager"]
