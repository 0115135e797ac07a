"""From whatever a user has in hand to a transport: streams, sockets, descriptors, files.

Layer 3, inside the peer. Below: transport.
"""

import asyncio
import os
import socket
from typing import Any, Protocol, TypeAlias, runtime_checkable

import anyio.abc

from asyncipc.transport.base import Transport
from asyncipc.transport.pipes import PipeTransport
from asyncipc.transport.sockets import SocketTransport
from asyncipc.transport.streams import StreamTransport

__all__ = ["Readable", "Writable", "wrap_streams"]


@runtime_checkable
class HasFileno(Protocol):
    """Files, pipe ends, ``multiprocessing`` connections."""

    def fileno(self) -> int:
        """The descriptor behind the object."""


Readable: TypeAlias = (
    asyncio.StreamReader | anyio.abc.ByteReceiveStream | socket.socket | HasFileno | int
)
Writable: TypeAlias = (
    asyncio.StreamWriter | anyio.abc.ByteSendStream | socket.socket | HasFileno | int
)


def wrap_streams(reader: Readable, writer: Writable | None) -> Transport:
    """A transport over what the user has; see `asyncipc.Peer.wrap`.

    :raises TypeError: the two do not make a pair of byte streams
    """
    if isinstance(reader, asyncio.StreamReader) and isinstance(writer, asyncio.StreamWriter):
        return StreamTransport.from_asyncio(reader, writer)
    if isinstance(reader, anyio.abc.ByteReceiveStream):
        sender: Any = reader if writer is None else writer
        if isinstance(sender, anyio.abc.ByteSendStream):
            return StreamTransport.from_anyio(reader, sender)
    if isinstance(reader, socket.socket) and (writer is None or writer is reader):
        return SocketTransport(reader, description=f"socket {reader.fileno()}")
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
    return isinstance(thing, int | HasFileno)


def _wrap_descriptors(reader: Any, writer: Any) -> Transport:
    """An int is taken over as it is; of an object that owns its descriptor, a copy."""
    read_fd = reader if isinstance(reader, int) else os.dup(reader.fileno())
    if writer is reader:
        write_fd = read_fd if isinstance(reader, int) else os.dup(read_fd)
    else:
        write_fd = writer if isinstance(writer, int) else os.dup(writer.fileno())
    return PipeTransport(read_fd, write_fd, description=f"descriptors {read_fd} and {write_fd}")
