"""From the host of a TCP address to what the kernel connects to or listens on.

Layer 3, inside the peer. Below: errors.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from typing import Any, NamedTuple

from asyncipc.errors import AddressError
from asyncipc.peer.address import TcpAddress

__all__ = ["Resolved", "is_loopback", "resolve"]


class Resolved(NamedTuple):
    """One address of a host.

    :ivar family: of the socket
    :ivar protocol: of the socket
    :ivar native: the address as the socket module wants it; its first item is the number of the
        host
    """

    family: socket.AddressFamily
    protocol: int
    native: Any


async def resolve(address: TcpAddress) -> list[Resolved]:
    """All addresses of a host, the best first; at least one.

    :raises AddressError: there can be no host of that name
    :raises socket.gaierror: there is none, or nobody can be asked
    """
    try:
        return _resolved(
            socket.getaddrinfo(
                address.host,
                address.port,
                type=socket.SOCK_STREAM,
                # A number is no question to the network, so it takes no thread.
                flags=socket.AI_NUMERICHOST,
            )
        )
    except socket.gaierror:
        pass
    except ValueError as error:
        raise AddressError(f"{address.host!r} can be no host: {error}") from error
    loop = asyncio.get_running_loop()
    try:
        return _resolved(
            await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        )
    except socket.gaierror as error:
        raise socket.gaierror(error.errno, f"{error.strerror} ({address})") from error


def is_loopback(addresses: Sequence[Resolved]) -> bool:
    """Whether only this machine can reach a host, going by every address it has."""
    return all(ipaddress.ip_address(address.native[0]).is_loopback for address in addresses)


def _resolved(infos: Sequence[tuple[Any, Any, int, str, Any]]) -> list[Resolved]:
    return [Resolved(family, protocol, native) for family, _, protocol, _, native in infos]
