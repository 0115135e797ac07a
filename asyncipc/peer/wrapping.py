"""From whatever a user has in hand to a transport: streams, sockets, descriptors, files.

Layer 3, inside the peer. Below: transport.
"""

import asyncio
import io
import os
import socket
import ssl
import stat
from typing import Any, Protocol, TypeAlias, runtime_checkable

import anyio.abc

from asyncipc.transport.base import Transport
from asyncipc.transport.pipes import PipeTransport
from asyncipc.transport.polled import PolledTransport
from asyncipc.transport.sockets import SocketTransport
from asyncipc.transport.streams import StreamTransport

__all__ = ["Readable", "Writable", "wrap_streams"]


@runtime_checkable
class HasDescriptor(Protocol):
    """Files, pipe ends, ``multiprocessing`` connections."""

    def fileno(self) -> int:
        """The descriptor behind the object."""
        ...

    def close(self) -> object:
        """Flush what was written to the object, and close the descriptor."""
        ...


Readable: TypeAlias = (
    asyncio.StreamReader | anyio.abc.ByteReceiveStream | socket.socket | HasDescriptor | int
)
Writable: TypeAlias = (
    asyncio.StreamWriter | anyio.abc.ByteSendStream | socket.socket | HasDescriptor | int
)


def wrap_streams(reader: Readable, writer: Writable | None) -> Transport:
    """A transport over what the user has; see `asyncipc.Peer.wrap`.

    :raises TypeError: the two do not make a pair of byte streams
    :raises OSError: a descriptor is not open
    """
    if isinstance(reader, asyncio.StreamReader) and isinstance(writer, asyncio.StreamWriter):
        return StreamTransport.from_asyncio(reader, writer)
    if isinstance(reader, anyio.abc.ByteReceiveStream):
        sender: Any = reader if writer is None else writer
        if isinstance(sender, anyio.abc.ByteSendStream):
            return StreamTransport.from_anyio(reader, sender)
    if _has_descriptor(reader) and (writer is None or _has_descriptor(writer)):
        return _wrap_descriptors(reader, reader if writer is None else writer)
    raise TypeError(
        "expected asyncio's StreamReader and StreamWriter, an anyio ByteStream or a pair of its "
        "halves, a socket, or files or descriptors to read and write; "
        f"got {type(reader).__name__} and {type(writer).__name__}"
    )


def _has_descriptor(thing: object) -> bool:
    if isinstance(thing, bool):
        return False
    return isinstance(thing, int | HasDescriptor)


def _wrap_descriptors(reader: Any, writer: Any) -> Transport:
    """Numbers and sockets are taken over as they are, of other objects a copy."""
    # What can be wrong is found out before anything is taken.
    are_sockets = [_is_stream_socket(thing) for thing in (reader, writer)]
    early = _read_ahead(reader)
    transport = _transport(reader, writer, are_sockets)
    transport.put_back(early)
    return transport


def _transport(reader: Any, writer: Any, are_sockets: list[bool]) -> PolledTransport:
    if _number(reader) != _number(writer):
        read_fd, write_fd = _take(reader), _take(writer)
    elif all(are_sockets):
        sock = reader if isinstance(reader, socket.socket) else socket.socket(fileno=_take(reader))
        return SocketTransport(sock, description=f"socket {sock.fileno()}")
    else:
        read_fd = write_fd = _take(reader)
    return PipeTransport(read_fd, write_fd, description=f"descriptors {read_fd} and {write_fd}")


def _number(thing: Any) -> int:
    number: int = thing if isinstance(thing, int) else thing.fileno()
    return number


def _take(thing: Any) -> int:
    """The descriptor, which the object that it stood behind has no longer."""
    if isinstance(thing, int):
        return thing
    fd = os.dup(thing.fileno())
    thing.close()
    return fd


def _read_ahead(thing: Any) -> bytes:
    """What a file has read that nobody has taken from it, and that is lost with it. Never waits."""
    buffered = thing.buffer if isinstance(thing, io.TextIOWrapper) else thing
    if not isinstance(buffered, io.BufferedReader | io.BufferedRandom):
        return b""
    fd = buffered.fileno()
    was_blocking = os.get_blocking(fd)
    if isinstance(buffered.raw, socket.SocketIO):
        # It would wait as long as its socket is set to, whatever the descriptor is.
        buffered.raw._sock.settimeout(0)  # type: ignore[attr-defined]  # noqa: SLF001 - not public
    os.set_blocking(fd, False)
    try:
        return bytes(buffered.peek())
    except OSError:
        return b""  # the transport will see it too
    finally:
        os.set_blocking(fd, was_blocking)


def _is_stream_socket(thing: Any) -> bool:
    """:raises TypeError: it is a socket of another kind"""
    if isinstance(thing, ssl.SSLSocket):
        raise TypeError("expected a plain socket; asyncio's and anyio's streams can have TLS")
    fd = _number(thing)
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return False
    with socket.socket(fileno=os.dup(fd)) as sock:
        if sock.type != socket.SOCK_STREAM:
            raise TypeError(f"expected a stream socket, got one of type {sock.type.name}")
    return True
