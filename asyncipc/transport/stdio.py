"""This process's end of a connection to the program that started it.

Owns: descriptors 0 and 1 once claimed, the socket that a parent may hand over instead, and where
stray output goes. Above: the peer layer. Below: ``pipes``.
"""

import fcntl
import io
import os
import socket
import stat
import sys
from typing import Final

from asyncipc.errors import AddressError, LocalProtocolError
from asyncipc.transport.pipes import PipeTransport

__all__ = ["CHANNEL_VARIABLE", "claim", "inherited_socketpair"]

#: The environment variable that names the descriptor of an inherited socket.
CHANNEL_VARIABLE: Final = "ASYNCIPC_CHANNEL_FD"

_STDIN, _STDOUT, _STDERR = 0, 1, 2

_claimed = False


def claim() -> PipeTransport:
    """Take standard input and output for the library; nobody else in this process gets at them.

    The transport works on private duplicates. Descriptor 0 becomes ``/dev/null`` and descriptor 1
    a copy of descriptor 2, so ``print``, C's ``printf``, ``os.write(1, ...)`` and programs started
    from here can neither damage the stream nor eat its input: what they print appears on stderr.
    It stays like this when the transport is closed. Input that ``sys.stdin`` has read ahead before
    is lost, so claim before reading; output not flushed before appears on stderr.

    Pipes, sockets, terminals, files and ``/dev/null`` all work.

    :raises AddressError: standard input or output was closed when the process started, or is open
        the wrong way round
    :raises LocalProtocolError: they were claimed before
    :raises OSError: no descriptors left
    """
    global _claimed  # noqa: PLW0603 - as there is one 0 and one 1 in a process
    if _claimed:
        raise LocalProtocolError("standard input and output of this process were claimed before")
    found = _usable(_STDIN, sys.__stdin__, "standard input", os.O_WRONLY)
    found_output = _usable(_STDOUT, sys.__stdout__, "standard output", os.O_RDONLY)
    if found != found_output:
        found = f"{found} in, {found_output} out"
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        # Not below 3, where the next program would take them for standard streams.
        read_fd = fcntl.fcntl(_STDIN, fcntl.F_DUPFD_CLOEXEC, 3)
        try:
            write_fd = fcntl.fcntl(_STDOUT, fcntl.F_DUPFD_CLOEXEC, 3)
        except OSError:
            os.close(read_fd)
            raise
        _claimed = True
        os.dup2(null, _STDIN)
        os.dup2(null if sys.__stderr__ is None else _STDERR, _STDOUT)
    finally:
        os.close(null)
    _line_buffer_stdout()
    return PipeTransport(read_fd, write_fd, description=f"stdio ({found})")


def inherited_socketpair() -> socket.socket | None:
    """The socket that the parent handed over beside the standard streams; None if it did not.

    It is taken once: the variable is removed and the descriptor made private, so that programs
    started from here do not take it for theirs. Standard input and output stay as they are.

    :raises AddressError: `CHANNEL_VARIABLE` does not name an open unix stream socket
    """
    text = os.environ.pop(CHANNEL_VARIABLE, None)
    if text is None:
        return None
    expected = f"{CHANNEL_VARIABLE} must name an inherited unix stream socket"
    if not (text.isascii() and text.isdecimal()):
        raise AddressError(f"{expected}, not {text!r}")
    fd = int(text)
    try:
        is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
    except (OSError, OverflowError):
        raise AddressError(f"{expected}; descriptor {text} is not open") from None
    if not is_socket:
        raise AddressError(f"{expected}; descriptor {fd} is a {_kind_name(fd)}")
    sock = socket.socket(fileno=fd)
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        found = f"{sock.family.name} {sock.type.name}"
        sock.detach()
        raise AddressError(f"{expected}; descriptor {fd} is a socket of type {found}")
    sock.set_inheritable(False)
    return sock


def _usable(fd: int, stream: object, name: str, wrong_access: int) -> str:
    """What the descriptor is, if it can be used."""
    # Python makes no stream for a descriptor that is closed when it starts. By now the number may
    # be taken by something else: the event loop, as a rule.
    if stream is None:
        raise AddressError(f"{name} (descriptor {fd}) was closed when this process started")
    try:
        kind = _kind_name(fd)
    except OSError:
        raise AddressError(f"{name} (descriptor {fd}) is closed") from None
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == wrong_access:
        way = "writing" if wrong_access == os.O_WRONLY else "reading"
        raise AddressError(f"{name} (descriptor {fd}) is a {kind} open for {way} only")
    return kind


def _kind_name(fd: int) -> str:
    mode = os.fstat(fd).st_mode
    if os.isatty(fd):
        return "terminal"
    names = {
        stat.S_IFIFO: "pipe",
        stat.S_IFSOCK: "socket",
        stat.S_IFREG: "file",
        stat.S_IFCHR: "device",
    }
    return names.get(stat.S_IFMT(mode), "descriptor of another kind")


def _line_buffer_stdout() -> None:
    """Have ``print`` appear on stderr as it happens, as on a terminal."""
    for stream in (sys.stdout, sys.__stdout__):
        if isinstance(stream, io.TextIOWrapper) and not stream.closed:
            stream.reconfigure(line_buffering=True)  # flushes as well
