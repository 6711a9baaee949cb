"""Run SecantusDB with the part of mongod's command line and of the official image's environment that the tests use.

MongoDB itself can be had from neither Debian nor PyPI. SecantusDB speaks its wire protocol on WiredTiger: good for what
a driver does on a connection, never for a statement about MongoDB's speed or durability.

MONGO_INITDB_ROOT_USERNAME and MONGO_INITDB_ROOT_PASSWORD create a root user and switch authentication on.
"""

import argparse
import contextlib
import os
import signal
import socket
import threading
from pathlib import Path

from pymongo import MongoClient
from secantus.server import SecantusDBServer  # pyright: ignore[reportMissingImports] (in the image only)


def halt(server: SecantusDBServer) -> None:
    """Stop at once: its accept loop looks at the stop flag only when a connection comes, or after two seconds."""
    server._stop_event.set()
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", server.address[1]), 1).close()
    server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(prog="mongod", allow_abbrev=False)
    parser.add_argument("--port", type=int, default=27017)
    parser.add_argument("--bind_ip", default="0.0.0.0")
    parser.add_argument("--dbpath", default="/data/db")
    parser.add_argument("--replSet", default=None)
    options = parser.parse_args()
    user = os.environ.get("MONGO_INITDB_ROOT_USERNAME")
    password = os.environ.get("MONGO_INITDB_ROOT_PASSWORD")
    # sync_on_commit: without it a kill loses what was acknowledged in the last tenth of a second.
    storage = {"storage_path": options.dbpath, "cache_size": "128M", "sync_on_commit": True}
    has_user = Path(options.dbpath, ".has-user")
    if user and password and not has_user.exists():
        first = SecantusDBServer("127.0.0.1", 0, replica_set_name=None, **storage)
        first.start()
        with MongoClient("127.0.0.1", first.port, directConnection=True) as client:
            client.admin.command(
                "createUser", user, pwd=password, roles=["root"], mechanisms=["SCRAM-SHA-1", "SCRAM-SHA-256"]
            )
        halt(first)
        has_user.touch()
    server = SecantusDBServer(
        options.bind_ip,
        options.port,
        replica_set_name=options.replSet,
        require_auth=bool(user and password),
        **storage,
    )
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server.start()
    print(f"Waiting for connections on port {options.port}", flush=True)
    stop.wait()
    halt(server)


if __name__ == "__main__":
    main()
