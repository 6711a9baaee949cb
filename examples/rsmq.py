"""A message queue on Redis in the manner of rsmq: at least once, with a visibility timeout, over leases of a pool.

Each queue has two keys: a sorted set with the time at which each message may be seen, and a hash with the messages.
A receiver hides a message for a while; if it does not delete it in time, somebody else receives it.

    python examples/rsmq.py redis://localhost
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from typing import Any

from pool_core import Pool
from pool_redis import LeasedRedis, RedisConnectionManager

# A script sees one moment of Redis, by Redis' own clock: two receivers never get one message, whatever their clocks say.
_NOW = "local t = redis.call('TIME') local now = t[1] * 1000 + math.floor(t[2] / 1000) "
_SEND = f"""{_NOW}
local id = redis.call('HINCRBY', KEYS[2], 'sent', 1)
redis.call('ZADD', KEYS[1], now + ARGV[2], id)
redis.call('HSET', KEYS[2], id, ARGV[1])
return id"""
_RECEIVE = f"""{_NOW}
local id = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 1)[1]
if not id then return nil end
redis.call('ZADD', KEYS[1], now + ARGV[1], id)
return {{id, redis.call('HGET', KEYS[2], id), redis.call('HINCRBY', KEYS[2], id .. ':received', 1)}}"""
_DELETE = """redis.call('HDEL', KEYS[2], ARGV[1], ARGV[1] .. ':received') return redis.call('ZREM', KEYS[1], ARGV[1])"""


@dataclass(frozen=True)
class Message:
    """One message, and how often it has been received, this time included."""

    id: int
    body: bytes
    received: int


class Queue:
    """A queue of byte strings. Times are in seconds; the pool is the caller's, who opens and closes it."""

    def __init__(self, pool: Pool[LeasedRedis], name: str, *, visibility_timeout: float = 30.0) -> None:
        self._pool = pool
        # One hash tag: on a cluster both keys are on one node.
        self._keys = (f"rsmq:{{{name}}}", f"rsmq:{{{name}}}:Q")
        self._hidden_for = int(visibility_timeout * 1000)

    async def send(self, body: bytes, *, delay: float = 0.0) -> int:
        """Append a message, to be seen after `delay`; returns its id."""
        return int(await self._run(_SEND, body, int(delay * 1000)))

    async def receive(self) -> Message | None:
        """Take the message that has waited longest and hide it; None when there is none to be seen."""
        found = await self._run(_RECEIVE, self._hidden_for)
        return None if found is None else Message(int(found[0]), found[1], int(found[2]))

    async def delete(self, message: Message) -> bool:
        """Be done with a message; False when somebody else was."""
        return bool(await self._run(_DELETE, message.id))

    async def _run(self, script: str, *arguments: Any) -> Any:
        async with self._pool.get() as client:
            return await client.register_script(script)(keys=self._keys, args=arguments)


async def main(url: str) -> None:
    """Three workers share twelve messages."""
    async with Pool(RedisConnectionManager(url), max_size=4, min_idle=1) as pool:
        queue = Queue(pool, "demo")

        async def worker(name: str) -> None:
            while (message := await queue.receive()) is not None:
                print(f"{name}: {message.body.decode()}")
                await queue.delete(message)

        await asyncio.gather(*(queue.send(b"message %d" % number) for number in range(12)))
        await asyncio.gather(*(worker(f"worker {number}") for number in range(3)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "redis://localhost"))
