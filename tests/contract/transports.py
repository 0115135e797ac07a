"""Every kind of transport there is, as connected pairs for the contract's tests."""

import asyncio
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.streams.stapled
import trustme

from asyncipc.transport import tls
from asyncipc.transport.base import Transport
from asyncipc.transport.memory import memory_transports
from asyncipc.transport.pipes import PipeTransport
from asyncipc.transport.sockets import SocketTransport
from asyncipc.transport.streams import StreamTransport
from tests.transport.recorder import WAIT


@dataclass
class Kind:
    """How two transports of a kind are made, and where the medium allows less than the contract."""

    name: str
    make: Callable[[Path], Awaitable[tuple[Transport, Transport]]]
    half_close: bool = True
    hangup_is_told: bool = True  # also while nothing is read or written
    hangup_after_eof: bool = True  # ... once the end of input was told
    reads_while_paused: bool = True  # a hang-up brings what was sent before also while paused
    uncopied: bool = True
    has_credentials: bool = False  # which socketpairs made here do not
    tolerates_noise: bool = False
    can_carry_descriptors: bool = False

    def __str__(self) -> str:
        return self.name


async def make_socketpair(_: Path) -> tuple[Transport, Transport]:
    left, right = socket.socketpair()
    return SocketTransport(left, description="left"), SocketTransport(right, description="right")


async def connected(family: int, address: Any) -> tuple[socket.socket, socket.socket]:
    with socket.socket(family) as listener:
        listener.bind(address)
        listener.listen()
        client = socket.socket(family)
        client.connect(listener.getsockname())
        return client, listener.accept()[0]


def tcp_sockets() -> Awaitable[tuple[socket.socket, socket.socket]]:
    return connected(socket.AF_INET, ("127.0.0.1", 0))


async def make_unix(folder: Path) -> tuple[Transport, Transport]:
    left, right = await connected(socket.AF_UNIX, str(folder / "socket"))
    return SocketTransport(left, description="left"), SocketTransport(right, description="right")


async def make_tcp(_: Path) -> tuple[Transport, Transport]:
    left, right = await tcp_sockets()
    return SocketTransport(left, description="left"), SocketTransport(right, description="right")


AUTHORITY = trustme.CA()
CERTIFICATE = AUTHORITY.issue_cert("server.example")


def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    client = ssl.create_default_context()
    AUTHORITY.configure_trust(client)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    CERTIFICATE.configure_cert(server)
    return client, server


async def secured(left: socket.socket, right: socket.socket) -> tuple[Transport, Transport]:
    client, server = contexts()
    return await asyncio.gather(
        tls.connect(left, client, "server.example", handshake_timeout=WAIT, description="left"),
        tls.accept(right, server, handshake_timeout=WAIT, description="right"),
    )


async def make_tls(_: Path) -> tuple[Transport, Transport]:
    return await secured(*await tcp_sockets())


async def make_tls_unix(_: Path) -> tuple[Transport, Transport]:
    return await secured(*socket.socketpair())


async def make_pipes(_: Path) -> tuple[Transport, Transport]:
    (read_left, write_right), (read_right, write_left) = os.pipe(), os.pipe()
    return (
        PipeTransport(read_left, write_left, description="left"),
        PipeTransport(read_right, write_right, description="right"),
    )


async def make_pipes_of_sockets(_: Path) -> tuple[Transport, Transport]:
    """As Node.js gives them to its children: one socketpair for each direction."""
    (read_left, write_right), (read_right, write_left) = socket.socketpair(), socket.socketpair()
    return (
        PipeTransport(read_left.detach(), write_left.detach(), description="left"),
        PipeTransport(read_right.detach(), write_right.detach(), description="right"),
    )


async def make_one_socket_as_pipes(_: Path) -> tuple[Transport, Transport]:
    """As inetd gives it: the same socket at 0 and 1."""
    left, right = (sock.detach() for sock in socket.socketpair())
    return (
        PipeTransport(left, left, description="left"),
        PipeTransport(right, right, description="right"),
    )


async def asyncio_streams(
    sock: socket.socket, **options: Any
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if sock.family == socket.AF_UNIX:
        return await asyncio.open_unix_connection(sock=sock, **options)
    return await asyncio.open_connection(sock=sock, **options)


async def make_asyncio(_: Path) -> tuple[Transport, Transport]:
    left, right = [await asyncio_streams(sock) for sock in socket.socketpair()]
    return (
        StreamTransport.from_asyncio(*left, description="left"),
        StreamTransport.from_asyncio(*right, description="right"),
    )


async def make_asyncio_tls(_: Path) -> tuple[Transport, Transport]:
    client, server = contexts()
    accepted: asyncio.Future[Transport] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set_result(StreamTransport.from_asyncio(reader, writer, description="right"))

    listener = await asyncio.start_server(serve, "127.0.0.1", ssl=server)
    host, port = listener.sockets[0].getsockname()
    streams = await asyncio.open_connection(
        host, port, ssl=client, server_hostname="server.example"
    )
    right = await accepted
    listener.close()
    return StreamTransport.from_asyncio(*streams, description="left"), right


async def make_anyio_tcp(_: Path) -> tuple[Transport, Transport]:
    left, right = [await anyio.abc.SocketStream.from_socket(s) for s in await tcp_sockets()]
    return (
        StreamTransport.from_anyio(left, left, description="left"),
        StreamTransport.from_anyio(right, right, description="right"),
    )


async def make_anyio_unix(_: Path) -> tuple[Transport, Transport]:
    left, right = [await anyio.abc.UNIXSocketStream.from_socket(s) for s in socket.socketpair()]
    return (
        StreamTransport.from_anyio(left, left, description="left"),
        StreamTransport.from_anyio(right, right, description="right"),
    )


async def make_anyio_stapled(_: Path) -> tuple[Transport, Transport]:
    """Two streams, each used one way only."""
    wrap = anyio.abc.UNIXSocketStream.from_socket
    there = [await wrap(sock) for sock in socket.socketpair()]
    back = [await wrap(sock) for sock in socket.socketpair()]
    left = anyio.streams.stapled.StapledByteStream(there[0], back[0])
    return (
        StreamTransport.from_anyio(left, left, description="left"),
        StreamTransport.from_anyio(there[1], back[1], description="right"),
    )


async def make_memory(_: Path) -> tuple[Transport, Transport]:
    return memory_transports()


TLS = {"half_close": False, "reads_while_paused": False, "uncopied": False}
STREAMS = {"reads_while_paused": False, "uncopied": False}
NO_HANGUP = {"hangup_is_told": False, "hangup_after_eof": False}
UNIX = {"has_credentials": True}
NOISY = {"tolerates_noise": True}
CARRYING = {"can_carry_descriptors": True}
KINDS = [
    Kind("socketpair", make_socketpair, **CARRYING),
    Kind("unix", make_unix, **UNIX | CARRYING),
    Kind("tcp", make_tcp, **NO_HANGUP),
    Kind("tls", make_tls, **TLS),
    Kind("tls_unix", make_tls_unix, **TLS),
    Kind("pipes", make_pipes, **NOISY),
    Kind("pipes_of_sockets", make_pipes_of_sockets, **NOISY),
    Kind("one_socket_as_pipes", make_one_socket_as_pipes, **NOISY),
    Kind("asyncio", make_asyncio, **STREAMS | NOISY),
    Kind("asyncio_tls", make_asyncio_tls, **STREAMS | TLS),
    Kind("anyio_tcp", make_anyio_tcp, **STREAMS | NO_HANGUP),
    Kind("anyio_unix", make_anyio_unix, **STREAMS | NOISY),
    Kind("anyio_stapled", make_anyio_stapled, **STREAMS | NOISY),
    Kind("memory", make_memory),
]
