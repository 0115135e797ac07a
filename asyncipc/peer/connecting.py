"""From an address to a connected transport.

Layer 3, inside the peer. Below: transport.
"""

import asyncio
import os
import random
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from asyncipc.errors import AddressError
from asyncipc.peer.address import FdAddress, TcpAddress, UnixAddress
from asyncipc.transport.base import Transport
from asyncipc.transport.sockets import SocketTransport
from asyncipc.transport.tls import connect as connect_tls

__all__ = ["open_transport", "retry_until"]

T = TypeVar("T")

# Nobody listens yet: the ways in which the kernel says so.
NOT_THERE_YET: Final = (ConnectionRefusedError, FileNotFoundError, ConnectionResetError)

FIRST_PAUSE: Final = 0.01
LONGEST_PAUSE: Final = 1.0


async def open_transport(
    address: UnixAddress | TcpAddress | FdAddress,
    tls: ssl.SSLContext | None,
    handshake_timeout: float,
) -> Transport:
    """Connect to an address.

    :raises OSError: nobody listens there, or it cannot be reached
    :raises ssl.SSLError: TLS could not be agreed on
    :raises TimeoutError: no connection within ``handshake_timeout`` seconds
    """
    async with asyncio.timeout(handshake_timeout):
        if isinstance(address, UnixAddress):
            sock = await _connect(socket.AF_UNIX, 0, address.native)
        elif isinstance(address, FdAddress):
            sock = socket.socket(fileno=os.dup(address.fd))
        else:
            sock = await _connect_tcp(address)
    if tls is None:
        return SocketTransport(sock, description=str(address))
    if not isinstance(address, TcpAddress):
        sock.close()
        raise AddressError(f"TLS is for tcp: addresses, not for {address}")
    return await connect_tls(sock, tls, address.host, handshake_timeout=handshake_timeout)


async def retry_until(deadline: float | None, attempt: Callable[[], Awaitable[T]]) -> T:
    """Repeat an attempt while nobody listens yet, with growing pauses, until a deadline.

    :param deadline: on the clock of the loop; None: try once
    """
    loop = asyncio.get_running_loop()
    pause = FIRST_PAUSE
    while True:
        try:
            return await attempt()
        except NOT_THERE_YET:
            if deadline is None or loop.time() >= deadline:
                raise
        # Spread, so that many who wait for one server do not come at the same moment.
        await asyncio.sleep(min(pause * random.uniform(0.5, 1), max(0, deadline - loop.time())))  # noqa: S311
        pause = min(2 * pause, LONGEST_PAUSE)


async def _connect_tcp(address: TcpAddress) -> socket.socket:
    loop = asyncio.get_running_loop()
    infos = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    failures: list[OSError] = []
    for family, _, protocol, _, native in infos:
        try:
            return await _connect(family, protocol, native)
        except OSError as error:
            failures.append(error)
    raise failures[0]


async def _connect(family: int, protocol: int, native: object) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM, protocol)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, native)  # type: ignore[arg-type]
    except BaseException:
        sock.close()
        raise
    return sock
