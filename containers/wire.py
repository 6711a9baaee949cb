"""Ask servers whose drivers the test environments do not have, on a plain socket: memcached, RabbitMQ, Neo4j.

Each function logs in as far as the server has logins, and raises while the server does not answer as expected.
"""

import socket
import struct
from collections.abc import Mapping

from .address import PATIENCE, Address


def ask_memcached(address: Address) -> str:
    """The version of a memcached, after a login where there is one."""
    with _connect(address) as stream:
        if address.password:
            words = f"{address.user} {address.password}".encode()
            stream.sendall(b"set auth 0 0 %d\r\n%b\r\n" % (len(words), words))
            if _read_until(stream, b"\r\n") != b"STORED\r\n":
                raise ConnectionError("memcached refused the login")
        stream.sendall(b"version\r\n")
        answer = _read_until(stream, b"\r\n")
    if not answer.startswith(b"VERSION "):
        raise ConnectionError(f"memcached answered {answer!r} to 'version'")
    return answer.split()[1].decode()


def ask_amqp(address: Address) -> tuple[str, str]:
    """Name and version of an AMQP 0-9-1 server, after a login."""
    with _connect(address) as stream:
        stream.sendall(b"AMQP\x00\x00\x09\x01")
        start = _read_method(stream)
        response = f"\0{address.user}\0{address.password}".encode()
        start_ok = struct.pack(">HHI", 10, 11, 0) + b"\x05PLAIN" + struct.pack(">I", len(response)) + response
        start_ok += b"\x05en_US"
        stream.sendall(struct.pack(">BHI", 1, 0, len(start_ok)) + start_ok + b"\xce")
        if _read_method(stream)[:4] != struct.pack(">HH", 10, 30):  # Tune: the login is accepted
            raise ConnectionError("the AMQP server refused the login")
    return _property(start, b"product"), _property(start, b"version")


def ask_bolt(address: Address) -> str:
    """What a Bolt server calls itself, after a login and a query."""
    with _connect(address) as stream:
        stream.sendall(b"\x60\x60\xb0\x17" + b"\x00\x00\x01\x05" + b"\x00" * 12)  # version 5.1 and no other
        if _read(stream, 4) != b"\x00\x00\x01\x05":
            raise ConnectionError("the server does not speak Bolt 5.1")
        hello = _request(stream, 0x01, _packed_map({"user_agent": "pool-core-tests/1"}))
        login = {"scheme": "basic", "principal": address.user or "", "credentials": address.password or ""}
        _request(stream, 0x6A, _packed_map(login))
        _request(stream, 0x10, _packed("RETURN 1"), b"\xa0", b"\xa0")
        _send(stream, 0x3F, b"\xa1" + _packed("n") + b"\xff")
        while _read_message(stream)[1] == 0x71:  # its rows
            pass
    _, _, value = hello.partition(_packed("server"))
    size, text = (value[1], value[2:]) if value[:1] == b"\xd0" else (value[0] - 0x80, value[1:])
    return text[:size].decode()


def _connect(address: Address) -> socket.socket:
    return socket.create_connection((address.host, address.port), timeout=PATIENCE)


def _read(stream: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = stream.recv(size - len(data))
        if not more:
            raise ConnectionError("the server closed the connection")
        data += more
    return data


def _read_until(stream: socket.socket, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        data += _read(stream, 1)
    return data


def _read_method(stream: socket.socket) -> bytes:
    _, _, size = struct.unpack(">BHI", _read(stream, 7))
    return _read(stream, size + 1)[:-1]


def _property(start: bytes, name: bytes) -> str:
    """A text of the table of properties with which an AMQP server introduces itself."""
    _, _, value = start.partition(bytes([len(name)]) + name + b"S")
    (size,) = struct.unpack(">I", value[:4])
    return value[4 : 4 + size].decode()


def _packed(text: str) -> bytes:
    data = text.encode()
    return (bytes([0x80 + len(data)]) if len(data) < 16 else bytes([0xD0, len(data)])) + data


def _packed_map(values: Mapping[str, str]) -> bytes:
    return bytes([0xA0 + len(values)]) + b"".join(_packed(text) for pair in values.items() for text in pair)


def _send(stream: socket.socket, tag: int, *fields: bytes) -> None:
    message = bytes([0xB0 + len(fields), tag]) + b"".join(fields)
    stream.sendall(struct.pack(">H", len(message)) + message + b"\x00\x00")


def _read_message(stream: socket.socket) -> bytes:
    message = b""
    while True:
        (size,) = struct.unpack(">H", _read(stream, 2))
        if size:
            message += _read(stream, size)
        elif message:  # an empty chunk ends a message; before one it only keeps the connection alive
            return message


def _request(stream: socket.socket, tag: int, *fields: bytes) -> bytes:
    _send(stream, tag, *fields)
    answer = _read_message(stream)
    if answer[1] != 0x70:
        raise ConnectionError(f"the Bolt server refused the message {tag:#04x}")
    return answer
