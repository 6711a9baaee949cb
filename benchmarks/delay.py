"""A network that adds time: `python -m benchmarks.delay HOST PORT MILLISECONDS` forwards a port of its own, later.

A process of its own, so that its work is not counted as a pool's. It prints its port.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress


async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
    """Pass on what comes, so many seconds after it came."""
    loop = asyncio.get_running_loop()
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            loop.call_later(seconds, writer.write, data)
    loop.call_later(seconds, writer.close)


async def serve(host: str, port: int, seconds: float) -> None:
    """Accept and forward until this process is ended."""

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, onward = await asyncio.open_connection(host, port)
        await asyncio.gather(forward(reader, onward, seconds), forward(there, writer, seconds))

    server = await asyncio.start_server(accepted, "127.0.0.1")
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]) / 1000))
