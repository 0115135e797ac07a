"""TLS, through the event loop's own transports.

Owns: the handshake and the meeting of asyncio's protocol callbacks with ours. Above: the peer
layer, which makes the sockets and the contexts. Below: asyncio or uvloop.
"""

import asyncio
import os
import socket
import ssl
from collections.abc import Sequence
from typing import Any, Final, cast

from asyncipc.errors import LocalProtocolError
from asyncipc.transport.base import Buffer, Credentials, Receiver
from asyncipc.transport.sockets import peer_credentials, tune

__all__ = ["TlsTransport", "accept", "connect"]

# Seconds for the goodbye of TLS, after which the connection is cut: close() is meant to be quick.
_SHUTDOWN_TIMEOUT: Final = 1.0

# What is read before start(), or after close() and before its end, at a time.
_SPARE_SIZE: Final = 16 * 1024  # a TLS record


async def connect(
    sock: socket.socket,
    context: ssl.SSLContext,
    server_hostname: str | None,
    *,
    handshake_timeout: float,
    description: str | None = None,
) -> "TlsTransport":
    """Begin TLS on a connected socket as its client. The socket is owned from now on.

    :param server_hostname: the name the certificate must bear; None where ``context`` checks none
    :param handshake_timeout: seconds
    :param description: for messages to people; by default the address of the other side
    :raises ssl.SSLError: the other side does not speak TLS, or is not trusted
    :raises OSError: the connection broke, or took longer (``ConnectionAbortedError``)
    """
    loop = asyncio.get_running_loop()
    unix = sock.family == socket.AF_UNIX
    create = loop.create_unix_connection if unix else loop.create_connection
    return await _secure(
        sock,
        description,
        create,
        ssl=context,
        server_hostname=server_hostname or "",
        ssl_handshake_timeout=handshake_timeout,
        ssl_shutdown_timeout=_SHUTDOWN_TIMEOUT,
    )


async def accept(
    sock: socket.socket,
    context: ssl.SSLContext,
    *,
    handshake_timeout: float,
    description: str | None = None,
) -> "TlsTransport":
    """Begin TLS on an accepted socket as its server; like `connect`."""
    return await _secure(
        sock,
        description,
        asyncio.get_running_loop().connect_accepted_socket,
        ssl=context,
        ssl_handshake_timeout=handshake_timeout,
        ssl_shutdown_timeout=_SHUTDOWN_TIMEOUT,
    )


async def _secure(
    sock: socket.socket, description: str | None, create: Any, **options: Any
) -> "TlsTransport":
    inode = os.fstat(sock.fileno()).st_ino
    try:
        sock.setblocking(False)
        tune(sock)
        transport = TlsTransport(sock, description or f"TLS connection with {sock.getpeername()}")
        await create(lambda: transport, sock=sock, **options)
    except BaseException:
        _close_after_failure(sock, inode)
        raise
    return transport


def _close_after_failure(sock: socket.socket, inode: int) -> None:
    """Close the socket, unless the loop has done so behind the object's back.

    uvloop does, when the connection breaks early in the handshake. To close the number again would
    close whatever got it since.
    """
    try:
        still_open = os.fstat(sock.fileno()).st_ino == inode
    except OSError:
        still_open = False
    if still_open:
        sock.close()
    else:
        sock.detach()


class TlsTransport(asyncio.BufferedProtocol):
    """An established TLS connection (`asyncipc.transport.base.Transport`); see `connect`.

    TLS as the loops do it has no half close: `write_eof` closes both directions once what was
    written is out, and the end of the other side's data is the end of the connection.
    """

    def __init__(self, sock: socket.socket, description: str) -> None:
        self.description = description
        self.tolerates_noise = False
        self.can_carry_descriptors = False
        self.drops_on_close = False  # it takes what comes until the other side's goodbye
        self.credentials: Credentials | None = peer_credentials(sock)
        self._transport: asyncio.Transport | None = None
        self._receiver: Receiver | None = None
        self._spare = memoryview(b"")
        self._early = b""  # came before start()
        self._full = False  # the loop's buffer
        self._kept = False  # ... with our last write in it
        self._paused = False
        self._closed = False  # by us
        self._lost = False
        self._error: Exception | None = None

    # The contract

    def start(self, receiver: Receiver) -> None:
        self._receiver = receiver
        asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        early = memoryview(self._early)
        while early and self._receiver is not None and not self._closed:
            buffer = self._receiver.get_buffer()
            count = min(len(early), len(buffer))
            buffer[:count] = early[:count]
            self._receiver.buffer_updated(count)
            early = early[count:]
        self._early = b""
        if self._lost:
            self._tell_lost()
        elif not self._paused:
            self.resume_reading()

    def write(self, buffers: Sequence[Buffer]) -> bool:
        if self._transport is None or self._closed:
            return False
        if self._kept:
            raise LocalProtocolError("write() was called before the last one was finished")
        # Joined: the loop may keep what it is given, and could not be told to copy it.
        self._transport.write(b"".join(buffers))
        self._kept = self._full
        return not self._kept

    def copy_kept(self) -> None:
        """It is a copy already."""

    def read_available(self) -> None:
        """What has come is still encrypted, and in the loop's hands."""

    def pause_reading(self) -> None:
        self._paused = True
        if self._transport is not None and not self._closed:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._paused = False
        if self._transport is not None and not self._closed:
            self._transport.resume_reading()

    def write_eof(self) -> None:
        if self._kept:
            raise LocalProtocolError("write_eof() was called before the last write was finished")
        self.close()

    def close(self) -> None:
        if self._transport is None or self._closed:
            return
        self._closed = True
        if self._kept:
            self._transport.abort()
        else:
            # Bytes that left this object may still be on their way through the loop's.
            self._transport.resume_reading()
            self._transport.close()

    def _tell_lost(self) -> None:
        if self._receiver is not None:
            self._receiver.connection_lost(None if self._closed else self._error)
            self._receiver = None

    # The loop's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Reading cannot be paused in here: asyncio would not send the end of the handshake.
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=1, low=0)  # with 0 it would always pause

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        if self._receiver is None or self._closed:
            self._spare = memoryview(bytearray(_SPARE_SIZE))
            return self._spare
        return self._receiver.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        if self._closed:
            return  # what comes during the goodbye is dropped
        if self._receiver is not None:
            self._receiver.buffer_updated(nbytes)
        elif self._transport is not None:
            self._early += self._spare[:nbytes]
            self._transport.pause_reading()

    def eof_received(self) -> None:
        """The connection ends with it: `connection_lost` follows."""

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        # What was full may have been the loop's own: the end of the handshake.
        if self._kept:
            self._kept = False
            if not self._closed and self._receiver is not None:
                self._receiver.writable()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._error = exc
        self._transport = None
        self._tell_lost()
