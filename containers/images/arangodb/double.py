"""Answer as ArangoDB does to the few requests that pool-arangodb and its tests make. It is no database: it keeps nothing.

There is one user, root, and one database, _system. AQL is `RETURN 42`, or `RETURN SLEEP(seconds)`. Usage: double.py PORT PASSWORD
"""

import asyncio
import base64
import contextlib
import json
import re
import sys

FOUND = re.compile(r"(?:/_db/(?P<database>[^/]+))?/_api/(?P<what>version|database/current|cursor)(?:\?.*)?")


async def answer(method: str, target: str, login: str, body: bytes) -> tuple[int, object]:
    """The status and the body of one request."""
    wanted = base64.b64encode(f"root:{sys.argv[2]}".encode()).decode()
    found = FOUND.fullmatch(target)
    if login != f"Basic {wanted}":
        return 401, {
            "error": True,
            "code": 401,
            "errorNum": 11,
            "errorMessage": "not authorized to execute this request",
        }
    if found and found["database"] not in (None, "_system"):
        return 404, {"error": True, "code": 404, "errorNum": 1228, "errorMessage": "database not found"}
    if found and found["what"] == "version":
        return 200, {"server": "double", "license": "none", "version": "of ArangoDB 3.12"}
    if found and found["what"] == "database/current":
        return 200, {
            "error": False,
            "code": 200,
            "result": {"id": "1", "name": "_system", "isSystem": True, "path": ""},
        }
    if found and method == "POST":
        query = json.loads(body)["query"]
        if slow := re.fullmatch(r"RETURN SLEEP\(([\d.]+)\)", query):
            await asyncio.sleep(float(slow[1]))
        if query == "INSERT {} INTO readonly":
            return 403, {"error": True, "code": 403, "errorNum": 1004, "errorMessage": "read only"}
        return 201, {"error": False, "code": 201, "result": [42], "hasMore": False, "cached": False, "extra": {}}
    return 404, {"error": True, "code": 404, "errorNum": 404, "errorMessage": "unknown path"}


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection."""
    with contextlib.suppress(asyncio.IncompleteReadError, OSError):
        while True:
            first = await reader.readexactly(1)
            if not first.isalpha():  # TLS, which is not spoken here
                break
            head = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, target, _ = head[0].split(" ")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            status, content = await answer(method, target, headers.get("authorization", ""), body)
            data = json.dumps(content).encode()
            writer.write(
                f"HTTP/1.1 {status} Answer\r\nContent-Type: application/json; charset=utf-8\r\n"
                f"Content-Length: {len(data)}\r\nConnection: Keep-Alive\r\n\r\n".encode()
                + data
            )
            await writer.drain()
    writer.close()


async def main() -> None:
    async with await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1])) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
