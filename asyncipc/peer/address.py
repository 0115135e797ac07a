"""Addresses: ``unix:/run/app.sock``, ``tcp:host:port``, ``fd:3``, ``exec:python child.py``.

A registry of schemes maps the word before the first colon to a parser, so that other layers can
add schemes of their own which resolve to one of the addresses here. Parsing looks at the text
alone: whether a path, host or descriptor exists is found out when it is opened.

Layer 3, inside the peer. Below: errors.
"""

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from asyncipc.errors import AddressError
from asyncipc.lazy import LazyModule

if TYPE_CHECKING:
    import shlex
else:
    shlex = LazyModule("shlex")

__all__ = [
    "Address",
    "ExecAddress",
    "FdAddress",
    "TcpAddress",
    "UnixAddress",
    "parse_address",
    "register_scheme",
]

# The kernel's struct sockaddr_un has room for so many bytes of path and a closing NUL.
MAX_UNIX_PATH: Final = 107 if sys.platform == "linux" else 103

MAX_PORT: Final = 65535

# Descriptors are C ints, and the limit on their number (fs.nr_open) is far below.
MAX_DESCRIPTOR: Final = 2**31 - 1


class UnixAddress(NamedTuple):
    """A unix stream socket; a path that begins with ``@`` is in Linux' abstract namespace."""

    path: str

    @property
    def is_abstract(self) -> bool:
        """True for a name that no file stands for."""
        return self.path.startswith("@")

    @property
    def native(self) -> str:
        """The address as the socket module wants it."""
        return "\0" + self.path[1:] if self.is_abstract else self.path

    def __str__(self) -> str:
        return f"unix:{self.path}"


class TcpAddress(NamedTuple):
    """A TCP host, by name or number, and a port; port 0 lets a listener choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return (
            f"tcp:[{self.host}]:{self.port}" if ":" in self.host else f"tcp:{self.host}:{self.port}"
        )


class FdAddress(NamedTuple):
    """A file descriptor of this process that is a connected stream socket."""

    fd: int

    def __str__(self) -> str:
        return f"fd:{self.fd}"


class ExecAddress(NamedTuple):
    """A program to start, spoken to over its standard input and output."""

    argv: tuple[str, ...]

    def __str__(self) -> str:
        return f"exec:{shlex.join(self.argv)}"


Address: TypeAlias = UnixAddress | TcpAddress | FdAddress | ExecAddress


def parse_address(text: str) -> Address:
    """The address that a text stands for.

    :raises AddressError: it stands for none; says what was expected
    """
    if not isinstance(text, str):
        raise AddressError(
            f"an address must be a string such as 'unix:/run/app.sock', not {text!r}"
        )
    scheme, colon, rest = text.partition(":")
    parser = _schemes.get(scheme)
    if not colon or parser is None:
        known = ", ".join(f"{name}:" for name in sorted(_schemes))
        raise AddressError(f"the address {text!r} should begin with one of {known}")
    if not rest:
        raise AddressError(f"the address {text!r} has nothing behind {scheme}:")
    return parser(rest)


def register_scheme(name: str, parser: Callable[[str], Address]) -> None:
    """Let addresses that begin with ``name:`` be resolved by ``parser``.

    :param name: a word without a colon
    :param parser: gets the text behind the colon, which is not empty; raises `AddressError`
    :raises ValueError: the name cannot be one, or the scheme exists already
    """
    if not name or ":" in name:
        raise ValueError(f"the name of an address scheme is a word without a colon, not {name!r}")
    if name in _schemes:
        raise ValueError(f"the address scheme {name!r} exists already")
    _schemes[name] = parser


def _parse_unix(rest: str) -> UnixAddress:
    try:
        size = len(os.fsencode(rest))
    except UnicodeEncodeError as error:
        raise AddressError(f"the path {rest!r} cannot be encoded: {error}") from error
    if size > MAX_UNIX_PATH:
        raise AddressError(
            f"the path of a unix socket may have {MAX_UNIX_PATH} bytes; {rest!r} has {size}"
        )
    if "\0" in rest:
        raise AddressError(f"the path of a unix socket cannot contain a NUL: {rest!r}")
    if rest == "@" or (rest.startswith("@") and sys.platform != "linux"):
        raise AddressError(f"abstract unix sockets need a name, and Linux: {rest!r}")
    return UnixAddress(rest)


def _parse_tcp(rest: str) -> TcpAddress:
    host, colon, digits = rest.rpartition(":")
    port = _number(digits, MAX_PORT)
    if not colon or port is None or "/" in host or "\0" in host:
        raise AddressError(
            f"expected tcp:host:port with a port from 0 to {MAX_PORT}, not 'tcp:{rest}'"
        )
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise AddressError(f"an IPv6 address stands in brackets: tcp:[{host}]:{port}")
    if not host:
        raise AddressError(
            f"'tcp:{rest}' names no host; tcp:localhost:{port} is this machine, "
            f"tcp:0.0.0.0:{port} listens to all"
        )
    return TcpAddress(host, port)


def _parse_fd(rest: str) -> FdAddress:
    fd = _number(rest, MAX_DESCRIPTOR)
    if fd is None:
        raise AddressError(f"expected fd: and the number of a descriptor, not 'fd:{rest}'")
    return FdAddress(fd)


def _parse_exec(rest: str) -> ExecAddress:
    try:
        argv = shlex.split(rest)
    except ValueError as error:
        raise AddressError(f"'exec:{rest}' cannot be split into words: {error}") from error
    if not argv:
        raise AddressError("exec: names no program")
    if "\0" in rest:
        raise AddressError(f"the arguments of a program cannot contain a NUL: {rest!r}")
    return ExecAddress(tuple(argv))


def _number(digits: str, highest: int) -> int | None:
    """The number that the digits stand for, unless it is too large or they stand for none."""
    if not (digits.isascii() and digits.isdecimal()) or len(digits) > len(str(highest)):
        return None
    number = int(digits)
    return number if number <= highest else None


_schemes: dict[str, Callable[[str], Address]] = {
    "unix": _parse_unix,
    "tcp": _parse_tcp,
    "fd": _parse_fd,
    "exec": _parse_exec,
}
