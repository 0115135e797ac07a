"""Listening sockets: how a unix socket's path is owned, and which interface a TCP port is on.

The owner of a path is who holds the lock on a file beside it (``app.sock.lock``). Looking at the
socket itself cannot tell: between a look and an unlink somebody else may have taken the path. The
lock is the kernel's (``flock``), so a dead owner holds none.

Layer 3, inside the peer. Below: errors.
"""

import contextlib
import errno
import fcntl
import os
import socket
import stat
import warnings
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from asyncipc.errors import AddressError, AddressInUse
from asyncipc.peer.address import TcpAddress, UnixAddress
from asyncipc.peer.resolving import Resolved

__all__ = ["ListeningSocket", "listen_tcp", "listen_unix"]

# Connections that the kernel holds while the loop is busy; it caps this by net.core.somaxconn.
BACKLOG: Final = 1024

# An address that its host has, but that cannot be used here: IPv6 may be switched off.
UNUSABLE: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class ListeningSocket:
    """A listening socket and the path it owns, if any."""

    def __init__(self, sock: socket.socket, path: "_OwnedPath | None" = None) -> None:
        self.sock = sock
        self._path = path
        _listening.add(self)

    def close(self) -> None:
        """Stop listening and give the path back. May be called twice."""
        _listening.discard(self)
        if self._path is not None:
            self._path.release()
            self._path = None
        self.sock.close()

    def let_go(self) -> None:
        """Close it in a forked copy of the process; the server, and the path, are not its own."""
        if self._path is not None:
            self._path.drop_lock()
            self._path = None
        self.sock.close()

    def __del__(self) -> None:
        # The loop holds it while it listens, so the loop was closed before the server.
        if self._path is not None:
            warnings.warn(f"unclosed {self.sock!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()


# All that are open in this process.
_listening: weakref.WeakSet[ListeningSocket] = weakref.WeakSet()


def _let_go_in_forked_process() -> None:
    # Copies of the descriptors would keep the path taken, and clients waiting, when the server is
    # long dead.
    for listening in tuple(_listening):
        listening.let_go()


os.register_at_fork(after_in_child=_let_go_in_forked_process)


def listen_unix(address: UnixAddress, mode: int) -> ListeningSocket:
    """Listen on a path, or on an abstract name.

    :param mode: permissions of the socket file; there is no moment in which it has more
    :raises AddressInUse: a live server listens there, or is just about to
    :raises AddressError: something that is no socket stands there
    :raises OSError: the directory does not exist, or is not writable
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if address.is_abstract:
            _bind(sock, address, address.native)
            sock.listen(BACKLOG)
            return ListeningSocket(sock)
        path = _OwnedPath(address.path)
        try:
            path.remove_stale_socket()
            # Linux gives the file the mode of the unbound socket, less the umask. Elsewhere that
            # cannot be had; but nobody can connect before listen(), which comes last.
            with contextlib.suppress(OSError):
                os.fchmod(sock.fileno(), mode)
            _bind(sock, address, address.native)
            path.remember()
            Path(address.path).chmod(mode)  # what the umask took away
            sock.listen(BACKLOG)
        except BaseException:
            path.release()
            raise
        return ListeningSocket(sock, path)
    except BaseException:
        sock.close()
        raise


def listen_tcp(address: TcpAddress, resolved: Sequence[Resolved]) -> ListeningSocket:
    """Listen on a TCP port of one interface.

    :param resolved: the addresses of the host; the first that this machine can use is taken
    :raises AddressInUse: somebody listens there
    :raises OSError: the host is not this machine
    """
    failures: list[OSError] = []
    for candidate in resolved:
        try:
            return ListeningSocket(_listen(address, candidate))
        except OSError as error:
            if error.errno not in UNUSABLE:
                raise
            failures.append(error)
    raise OSError(
        failures[0].errno, f"cannot listen on {address}: {failures[0].strerror}"
    ) from failures[0]


def _listen(address: TcpAddress, resolved: Resolved) -> socket.socket:
    sock = socket.socket(resolved.family, socket.SOCK_STREAM, resolved.protocol)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if resolved.family == socket.AF_INET6:
            # What "::" covers must not depend on how the system is set up.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        _bind(sock, address, resolved.native)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind(sock: socket.socket, address: UnixAddress | TcpAddress, native: Any) -> None:
    try:
        sock.bind(native)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(f"somebody listens on {address} already") from error
        raise


class _OwnedPath:
    """The path of a socket, owned by holding a lock."""

    def __init__(self, path: str) -> None:
        """Take the lock.

        :raises AddressInUse: somebody holds it
        :raises OSError: there can be no lock beside the path
        """
        self._given = path
        self._path = str(Path(path).absolute())  # the program may change its directory meanwhile
        self._lock_path = f"{self._path}.lock"
        self._socket_id: tuple[int, int] | None = None
        self._lock = self._take_lock()

    def _take_lock(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        while True:
            try:
                lock = os.open(self._lock_path, flags, 0o600)
            except OSError as error:
                raise self._explained(error) from error
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Whoever held it before may have removed the file since it was opened here.
                if _file_id(self._lock_path) == _id_of(os.fstat(lock)):
                    return lock
            except BlockingIOError as error:
                os.close(lock)
                raise AddressInUse(f"a live server owns unix:{self._given}") from error
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)

    def _explained(self, error: OSError) -> OSError:
        """The same error, which also says what it was that could not be done."""
        failed = f"cannot listen on unix:{self._given}"
        if isinstance(error, FileNotFoundError):
            folder = Path(self._path).parent
            return FileNotFoundError(error.errno, f"{failed}: there is no directory {folder}")
        return OSError(error.errno, f"{failed}: {error.strerror}", self._lock_path)

    def remove_stale_socket(self) -> None:
        """Remove the socket of a dead server.

        :raises AddressInUse: a live server that takes no lock listens there
        :raises AddressError: no socket stands there
        """
        try:
            found = os.lstat(self._path)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise AddressError(f"{self._given} exists and is no socket; it was left alone")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(self._given)  # of which there is room for fewer characters
            except ConnectionRefusedError:
                Path(self._path).unlink()
                return
            except OSError as error:
                # EAGAIN: its queue is full. EPROTOTYPE: it takes datagrams. Both are alive.
                if error.errno not in (errno.EAGAIN, errno.EPROTOTYPE):
                    raise
        raise AddressInUse(f"a live server listens on unix:{self._given}")

    def remember(self) -> None:
        """The socket was bound: from now on it is ours."""
        self._socket_id = _file_id(self._path)

    def release(self) -> None:
        """Remove our socket, unless the path is somebody else's by now, and let go of the lock."""
        if self._socket_id is not None:
            _unlink_if(self._path, self._socket_id)
        # Before the lock is let go: who opens the file meanwhile finds that it is gone.
        _unlink_if(self._lock_path, _id_of(os.fstat(self._lock)))
        self.drop_lock()

    def drop_lock(self) -> None:
        """Close the lock's descriptor here; the lock stands while another process has a copy."""
        os.close(self._lock)


def _unlink_if(path: str, file_id: tuple[int, int]) -> None:
    """Remove a file if it is still the one that it was."""
    with contextlib.suppress(OSError):
        if _file_id(path) == file_id:
            Path(path).unlink()


def _file_id(path: str) -> tuple[int, int] | None:
    try:
        return _id_of(os.lstat(path))
    except FileNotFoundError:
        return None


def _id_of(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
