"""Connections that do nothing, at once: what is measured over them is the pool alone."""

from __future__ import annotations


class FakeConnection:
    """One bare object, so that it weighs as little as it can in the memory that is measured."""

    __slots__ = ("__weakref__", "broken")

    def __init__(self) -> None:
        self.broken = False


class FakeManager:
    """The four verbs of our pool (and of L3), each as short as it can be."""

    async def connect(self) -> FakeConnection:
        return FakeConnection()

    async def is_valid(self, conn: FakeConnection, /) -> bool:
        return True

    def has_broken(self, conn: FakeConnection, /) -> bool:
        return conn.broken

    async def close(self, conn: FakeConnection, /) -> None:
        conn.broken = True
