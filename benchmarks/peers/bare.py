"""The least that Python can do for an RPC on a loop: what of a figure is the language's own.

A header, MessagePack, a dict of futures and one `add_reader` callback a side, on the assumption
that each read brings whole frames. No limits, deadlines, errors, or order; it is no library.
"""

import asyncio
import itertools
import socket
import struct
from collections.abc import Callable
from typing import Any

import msgpack

from benchmarks.worker import obey_async, run, session_commands

HEADER = struct.Struct(">4sII")
MAGIC = b"\xf3\x4a\x9d\xe2"
REQUEST, REPLY = 0, 1


def echo(n: int, text: str) -> dict[str, Any]:
    return {"n": n, "text": text}


HANDLERS: dict[str, Callable[..., Any]] = {"echo": echo}


class Connection:
    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._buffer = bytearray(65536)
        self._view = memoryview(self._buffer)
        self._packer = msgpack.Packer()
        self._loop = asyncio.get_running_loop()
        self._ids = itertools.count(1)
        self._pending: dict[int, asyncio.Future[Any]] = {}
        self._loop.add_reader(connection, self._read)

    async def request(self, method: str, params: dict[str, Any]) -> Any:
        identifier = next(self._ids)
        future = self._pending[identifier] = self._loop.create_future()
        self._send([REQUEST, identifier, method, params])
        return await future

    def _send(self, message: list[Any]) -> None:
        body = self._packer.pack(message)
        self._socket.send(HEADER.pack(MAGIC, len(body), 0) + body)

    def _read(self) -> None:
        count = self._socket.recv_into(self._buffer)
        if not count:
            self._loop.remove_reader(self._socket)
        position = 0
        while position < count:
            _, length, _ = HEADER.unpack_from(self._buffer, position)
            position += HEADER.size
            message = msgpack.unpackb(self._view[position : position + length])
            position += length
            if message[0] == REQUEST:
                self._send([REPLY, message[1], HANDLERS[message[2]](**message[3])])
            else:
                self._pending.pop(message[1]).set_result(message[2])


def serve(path: str, ready: Callable[[], None]) -> None:
    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            ready()
            connection, _ = listener.accept()
        server = Connection(connection)
        await asyncio.get_running_loop().create_future()
        del server

    run(main())


def client(path: str) -> None:
    async def main() -> None:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(path)
        await obey_async(session_commands(Connection(connection).request))

    run(main())
