"""Answer as NebulaGraph's graphd does to a login, a version, and `YIELD <number>`. It is no database: it keeps nothing.

The bytes are those of the official client: its own thrift code serves here. There is one user, root, and one space,
`pool`; `YIELD sleep(seconds)` waits. Usage: double.py PORT PASSWORD
"""

# pyright: reportCallIssue=false
# The classes of thrift take their real __init__ at run time.

import re
import socket
import sys
import threading
import time
from typing import Any

from nebula3.common.ttypes import DataSet, ErrorCode, Row, Value
from nebula3.fbthrift.protocol.THeaderProtocol import THeaderProtocol
from nebula3.fbthrift.transport.THeaderTransport import THeaderTransport
from nebula3.fbthrift.transport.TSocket import TSocket
from nebula3.fbthrift.transport.TTransport import TBufferedTransport
from nebula3.graph import GraphService
from nebula3.graph.ttypes import AuthResponse, ExecutionResponse, VerifyClientVersionResp


class Graphd:
    """What the server knows."""

    def __init__(self) -> None:
        self.spaces: dict[int, bytes] = {}

    def verifyClientVersion(self, request: Any) -> Any:  # noqa: N802
        return VerifyClientVersionResp(error_code=ErrorCode.SUCCEEDED)

    def authenticate(self, username: bytes, password: bytes) -> Any:
        if (username, password) != (b"root", sys.argv[2].encode()):
            return AuthResponse(error_code=ErrorCode.E_BAD_USERNAME_PASSWORD, error_msg=b"Invalid password")
        number = len(self.spaces) + 1
        self.spaces[number] = b""
        return AuthResponse(error_code=ErrorCode.SUCCEEDED, session_id=number)

    def signout(self, number: int) -> None:
        self.spaces[number] = b"signed out"

    def executeWithParameter(self, number: int, statement: bytes, parameters: Any) -> Any:  # noqa: N802
        text = statement.decode()
        if used := re.fullmatch(r"USE `?(\w+)`?", text):
            if used[1] not in ("pool", "other"):
                return ExecutionResponse(
                    error_code=ErrorCode.E_EXECUTION_ERROR, error_msg=b"SpaceNotFound: ", latency_in_us=1
                )
            self.spaces[number] = used[1].encode()
            return ExecutionResponse(error_code=ErrorCode.SUCCEEDED, latency_in_us=1, space_name=self.spaces[number])
        if slow := re.fullmatch(r"YIELD sleep\((\d+)\)", text):
            time.sleep(int(slow[1]))
        if found := re.fullmatch(r"YIELD (\d+)", text):
            rows = [Row(values=[Value(iVal=int(found[1]))])]
            data = DataSet(column_names=[found[1].encode()], rows=rows)
            space = self.spaces[number]
            return ExecutionResponse(error_code=ErrorCode.SUCCEEDED, latency_in_us=1, data=data, space_name=space)
        return ExecutionResponse(error_code=ErrorCode.E_SYNTAX_ERROR, error_msg=b"SyntaxError", latency_in_us=1)


def serve(connection: socket.socket, processor: Any) -> None:
    """One connection."""
    place = TSocket()
    place.setHandle(connection)
    protocol = THeaderProtocol(THeaderTransport(TBufferedTransport(place)))
    try:
        while True:
            processor.process(protocol, protocol)
    except Exception:  # the client has gone
        place.close()


def main() -> None:
    processor = GraphService.Processor(Graphd())
    with socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=100) as server:
        while True:
            connection, _ = server.accept()
            threading.Thread(target=serve, args=(connection, processor), daemon=True).start()


if __name__ == "__main__":
    main()
