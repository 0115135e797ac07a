"""The other end of a session, by hand: says exactly what a test wants, and shows what comes."""

import asyncio
import socket
import struct
from typing import Any, Self

import msgpack

from asyncipc.wire.framing import HEADER_SIZE, frame_header

__all__ = ["RawClient", "frame", "hello", "pack"]

# Seconds to wait for what comes next. It takes milliseconds.
PATIENCE = 10

# Larger than any other, so that a session which speaks at once takes the codec of this hello.
INSTANCE = b"\xff" * 16


def pack(message: Any) -> bytes:
    """A message as an envelope."""
    data: bytes = msgpack.packb(message)
    return data


def frame(message: Any, attached: bytes = b"") -> bytes:
    """A message, or an envelope as it is, in a frame."""
    envelope = message if isinstance(message, bytes) else pack(message)
    return frame_header(len(envelope), len(attached)) + envelope + attached


def hello(**changes: Any) -> list[Any]:
    """A hello that is right but for the changes; None leaves a parameter out."""
    limits = {
        "max_frame": 2**20,
        "max_message": 2**30,
        "max_requests": 100,
        "notification_credit": 2**20,
        "stream_credit": 2**18,
    }
    parameters: dict[str, Any] = {
        "versions": [1, 1],
        "instance": INSTANCE,
        "codec": "msgpack",
        "features": [],
        "limits": limits,
    }
    parameters |= changes
    return [0, {name: value for name, value in parameters.items() if value is not None}]


class RawClient:
    """A connected socket and the messages on it.

    :param sock: a stream socket; it is made non-blocking, and closed by ``async with``
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._batch: list[Any] = []

    @classmethod
    async def connect(cls, path: str) -> Self:
        """Connect to a unix socket."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, path)
        return cls(sock)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._sock.close()

    async def say_hello(self, **changes: Any) -> dict[str, Any]:
        """Exchange hellos; the parameters of the other side's."""
        await self.send(hello(**changes))
        kind, parameters = await self.receive()
        assert kind == 0
        assert isinstance(parameters, dict)
        return parameters

    async def send(self, *messages: Any, attached: bytes = b"") -> None:
        """Send each message in a frame of its own; what is attached goes with the last."""
        data = b"".join(map(frame, messages[:-1])) + frame(messages[-1], attached)
        await self.send_bytes(data)

    async def send_bytes(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._sock, data)

    def finish(self) -> None:
        """Send no more, and go on reading."""
        self._sock.shutdown(socket.SHUT_WR)

    async def receive(self) -> Any:
        """The next message; those of a batch one by one.

        :raises EOFError: the other side has hung up
        """
        while not self._batch:
            envelope, attached = await self.receive_frame()
            message = msgpack.unpackb(envelope, strict_map_key=False)
            self._batch = list(message) if isinstance(message[0], list) else [message]
            assert not attached, "what is attached is for `receive_frame`"
        return self._batch.pop(0)

    async def receive_frame(self) -> tuple[bytes, bytes]:
        """The next frame: envelope and attached bytes."""
        magic, envelope, attached = struct.unpack(">4sII", await self._read(HEADER_SIZE))
        assert magic == b"\xf3\x4a\x9d\xe2"
        return await self._read(envelope), await self._read(attached)

    async def request(self, wire_id: int, method: str, params: Any = None) -> Any:
        """Ask, and wait for the answer; what else comes meanwhile is dropped."""
        await self.send([2, wire_id, method, params])
        return await self.answer(wire_id)

    async def answer(self, wire_id: int) -> list[Any]:
        """The terminal message of a call; what else comes meanwhile is dropped."""
        while True:
            message = await self.receive()
            if message[0] in (3, 4) and message[1] == wire_id + 1:
                assert isinstance(message, list)
                return message

    async def receive_all(self) -> list[Any]:
        """All messages until the other side hangs up."""
        messages = []
        try:
            while True:
                messages.append(await self.receive())
        except EOFError:
            return messages

    async def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                async with asyncio.timeout(PATIENCE):
                    chunk = await self._loop.sock_recv(self._sock, size - len(data))
            except ConnectionResetError:  # it hung up on bytes that it had not read
                chunk = b""
            if not chunk:
                raise EOFError(data)
            data += chunk
        return data
