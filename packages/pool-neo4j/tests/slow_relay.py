"""A relay before the server that keeps an answer back: Cypher has no word for waiting, and a long query loads the server.

After a message with the text "'slow'" it forwards nothing to that client for 20 seconds.

Usage: slow_relay.py HOST PORT; it prints the port that it listens on, and ends with its standard input.
"""

import asyncio
import contextlib
import sys

SECONDS = 20


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    slow = asyncio.Event()

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter, *, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if not answers and b"'slow'" in data:
                    slow.set()
                if answers and slow.is_set():
                    await asyncio.sleep(SECONDS)
                target.write(data)
                await target.drain()
        target.close()

    try:
        behind, to = await asyncio.open_connection(sys.argv[1], int(sys.argv[2]))
    except OSError:
        writer.transport.abort()
        return
    requests = asyncio.ensure_future(copy(reader, to, answers=False))
    answers = asyncio.ensure_future(copy(behind, writer, answers=True))
    await asyncio.wait({requests, answers}, return_when=asyncio.FIRST_COMPLETED)
    for task in (requests, answers):
        task.cancel()
    writer.transport.abort()
    to.close()


async def main() -> None:
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
