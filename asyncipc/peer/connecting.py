"""From an address to a connected transport.

Layer 3, inside the peer. Below: transport.
"""

import asyncio
import errno
import os
import random
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from asyncipc.errors import AddressError, AuthenticationError, PeerDied
from asyncipc.peer.address import FdAddress, TcpAddress, UnixAddress
from asyncipc.peer.resolving import Resolved, resolve
from asyncipc.transport.base import Transport
from asyncipc.transport.sockets import SocketTransport, peer_credentials
from asyncipc.transport.tls import connect as connect_tls

__all__ = ["NOT_THERE_YET", "open_transport", "retry"]

T = TypeVar("T")

# Nobody listens yet: the ways in which the kernel says so, and the last one's going.
NOT_THERE_YET: Final = (
    ConnectionRefusedError,
    FileNotFoundError,
    ConnectionResetError,
    PeerDied,
)

FIRST_PAUSE: Final = 0.01
LONGEST_PAUSE: Final = 1.0


async def open_transport(
    address: UnixAddress | TcpAddress | FdAddress,
    tls: ssl.SSLContext | None,
    users: frozenset[int] | None,
    handshake_timeout: float,
) -> Transport:
    """Connect to an address.

    :param tls: for a `TcpAddress` alone
    :param users: ids of whose listener it may be, for a `UnixAddress` alone; None: anybody's
    :param handshake_timeout: seconds for the connection, and again for TLS
    :raises AddressError: there can be no such host, or the descriptor is no connected socket
    :raises AuthenticationError: it is the listener of another user; nothing was sent
    :raises OSError: nobody listens there, or it cannot be reached
    :raises ssl.SSLError: TLS could not be agreed on
    :raises TimeoutError: no connection in time, or no TLS
    """
    try:
        sock = await _connected_socket(address, handshake_timeout)
    except socket.gaierror:
        raise
    except OSError as error:
        raise _explained(error, address, handshake_timeout) from error
    if tls is not None and isinstance(address, TcpAddress):
        return await _secured(sock, tls, address, handshake_timeout)
    try:
        if users is not None:
            _check_user(sock, address, users)
        return SocketTransport(sock, description=str(address))
    except BaseException:
        sock.close()
        raise


async def _secured(
    sock: socket.socket, tls: ssl.SSLContext, address: TcpAddress, seconds: float
) -> Transport:
    description = str(address)
    try:
        return await connect_tls(
            sock, tls, address.host, handshake_timeout=seconds, description=description
        )
    except ssl.SSLError:
        raise  # says what is wrong
    except ConnectionAbortedError as error:
        reason = f"no TLS with {address} within {seconds:g} s"
        raise TimeoutError(errno.ETIMEDOUT, reason) from error
    except OSError as error:
        reason = f"{address} broke off the TLS handshake; it may not speak TLS"
        raise OSError(error.errno or errno.ECONNRESET, reason) from error


async def retry(
    attempt: Callable[[], Awaitable[T]], errors: tuple[type[Exception], ...], seconds: float
) -> T:
    """Repeat an attempt as long as it ends in one of the errors, with growing pauses.

    :param seconds: after which the error is raised; 0: try once. An attempt that has begun before
        is not cut short.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    pause = FIRST_PAUSE
    while True:
        try:
            return await attempt()
        except errors:
            left = deadline - loop.time()
            if left <= 0:
                raise
        # Spread, so that many who wait for one server do not come at the same moment.
        await asyncio.sleep(min(pause * random.uniform(0.5, 1), left))  # noqa: S311 - no secret
        pause = min(2 * pause, LONGEST_PAUSE)


async def _connected_socket(
    address: UnixAddress | TcpAddress | FdAddress, seconds: float
) -> socket.socket:
    if isinstance(address, FdAddress):
        return _take_descriptor(address)
    if isinstance(address, UnixAddress):
        # The kernel tells nobody when there is room again in a full queue of connections.
        return await retry(lambda: _connect_unix(address), (BlockingIOError,), seconds)
    async with asyncio.timeout(seconds):
        return await _connect_tcp(address)


async def _connect_unix(address: UnixAddress) -> socket.socket:
    """Not through the loop, which would take a full queue of connections for a success.

    A unix socket connects at once or not at all.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.connect(address.native)
    except BaseException:
        sock.close()
        raise
    return sock


async def _connect_tcp(address: TcpAddress) -> socket.socket:
    """To the first address of the host that answers."""
    failures: list[OSError] = []
    for resolved in await resolve(address):
        try:
            return await _connect_to(resolved)
        except OSError as error:
            failures.append(error)
    raise failures[0]


async def _connect_to(resolved: Resolved) -> socket.socket:
    sock = socket.socket(resolved.family, socket.SOCK_STREAM, resolved.protocol)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, resolved.native)
    except BaseException:
        sock.close()
        raise
    return sock


def _check_user(
    sock: socket.socket,
    address: UnixAddress | TcpAddress | FdAddress,
    users: frozenset[int],
) -> None:
    credentials = peer_credentials(sock)
    if credentials is None or credentials.uid not in users:
        who = f"user {credentials.uid}" if credentials is not None else "an unknown user"
        raise AuthenticationError(f"{who} listens on {address}; users= admits others")


def _take_descriptor(address: FdAddress) -> socket.socket:
    """The socket that stands at a descriptor, which is owned from now on.

    :raises AddressError: there is none, or it is not connected; it is left alone then
    """
    try:
        sock = socket.socket(fileno=address.fd)
    except OSError as error:
        raise AddressError(
            f"file descriptor {address.fd} is not an open socket: {error.strerror}"
        ) from error
    try:
        if sock.type != socket.SOCK_STREAM:
            raise AddressError(
                f"file descriptor {address.fd} is a {sock.type.name} socket; "
                "expected a stream socket"
            )
        sock.getpeername()
        sock.set_inheritable(False)
    except OSError as error:
        sock.detach()
        raise AddressError(
            f"file descriptor {address.fd} is not a connected socket: {error.strerror}"
        ) from error
    except BaseException:
        sock.detach()
        raise
    return sock


def _explained(
    error: OSError, address: UnixAddress | TcpAddress | FdAddress, seconds: float
) -> OSError:
    """The same error, which also says where; the kernel's and the loops' do not all do."""
    if isinstance(error, BlockingIOError):
        reason = f"its queue of connections was full for {seconds:g} s"
        return TimeoutError(errno.ETIMEDOUT, f"cannot connect to {address}: {reason}")
    if error.errno is None:
        return TimeoutError(errno.ETIMEDOUT, f"no connection to {address} within {seconds:g} s")
    return OSError(error.errno, f"cannot connect to {address}: {os.strerror(error.errno)}")
