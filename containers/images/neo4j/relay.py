"""Forward Bolt connections to FalkorDB, and make up for some of its differences from Neo4j.

FalkorDB never serves the connection that follows a `GOODBYE`: the relay drops that message, and the end of the connection
has the same meaning. Half a message ends FalkorDB's process: the relay sends whole ones. FalkorDB knows one user,
"falkordb": the relay writes that name into logins of the user that it is given.

Usage: relay.py PORT BEHIND USER; PORT is the one to listen on, BEHIND is FalkorDB's on the loopback.
"""

import asyncio
import contextlib
import struct
import sys

GOODBYE = b"\xb0\x02"
HANDSHAKE = 20  # bytes, before the first message


def text(value: str) -> bytes:
    """A text of at most 255 bytes as PackStream writes it."""
    data = value.encode()
    return (bytes([0x80 + len(data)]) if len(data) < 16 else bytes([0xD0, len(data)])) + data


async def forward_requests(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Forward the client's messages, each in one piece: half a message ends FalkorDB's process."""
    principal = text("principal")
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        writer.write(await reader.readexactly(HANDSHAKE))
        message = b""
        while True:
            (size,) = struct.unpack(">H", await reader.readexactly(2))
            chunk = await reader.readexactly(size)
            if chunk == GOODBYE:
                break
            chunk = chunk.replace(principal + text(sys.argv[3]), principal + text("falkordb"), 1)
            message += struct.pack(">H", len(chunk)) + chunk
            if not chunk:  # the end of a message
                writer.write(message)
                await writer.drain()
                message = b""
    writer.close()


async def forward_answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        behind_reader, behind = await asyncio.open_connection("127.0.0.1", int(sys.argv[2]))
    except OSError:
        writer.close()  # FalkorDB has not started yet
        return
    await asyncio.gather(forward_requests(reader, behind), forward_answers(behind_reader, writer))


async def main() -> None:
    async with await asyncio.start_server(serve, "0.0.0.0", int(sys.argv[1])) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
