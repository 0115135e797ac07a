"""Listening sockets: how a unix socket's path is owned, and who may listen on TCP.

The owner of a path is who holds the lock on a file beside it (``app.sock.lock``). Looking at the
socket itself cannot tell: between a look and an unlink somebody else may have taken the path. The
lock is the kernel's (``flock``), so a dead owner holds none.

Layer 3, inside the peer. Below: errors.
"""

import contextlib
import fcntl
import ipaddress
import os
import socket
import stat
from typing import Final

from asyncipc.errors import AddressError, AddressInUse
from asyncipc.peer.address import TcpAddress, UnixAddress

__all__ = ["ListeningSocket", "is_loopback", "listen_tcp", "listen_unix"]

# Connections that the kernel holds while the loop is busy; it caps this by net.core.somaxconn.
BACKLOG: Final = 1024


class ListeningSocket:
    """A listening socket and the path it owns, if any."""

    def __init__(self, sock: socket.socket, path: "_OwnedPath | None" = None) -> None:
        self.sock = sock
        self._path = path

    def close(self) -> None:
        """Stop listening and give the path back. May be called twice."""
        if self._path is not None:
            self._path.release()
            self._path = None
        self.sock.close()


def listen_unix(address: UnixAddress, mode: int) -> ListeningSocket:
    """Listen on a path, or on an abstract name.

    :param mode: permissions of the socket file; there is no moment in which it has more
    :raises AddressInUse: a live server listens there, or is just about to
    :raises AddressError: something that is no socket stands there
    :raises OSError: the directory does not exist, or is not writable
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if address.is_abstract:
            _bind(sock, address)
            sock.listen(BACKLOG)
            return ListeningSocket(sock)
        path = _OwnedPath(address.path)
        try:
            path.remove_stale_socket()
            # On the unbound socket: its mode is what bind gives the file, less the umask.
            os.fchmod(sock.fileno(), mode)
            _bind(sock, address)
            path.remember()
            os.chmod(address.path, mode)  # noqa: PTH101 - what the umask took away
            sock.listen(BACKLOG)
        except BaseException:
            path.release()
            raise
        return ListeningSocket(sock, path)
    except BaseException:
        sock.close()
        raise


def listen_tcp(address: TcpAddress) -> ListeningSocket:
    """Listen on a TCP port of one interface.

    :raises AddressInUse: somebody listens there
    :raises OSError: the host is unknown or not of this machine
    """
    infos = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    family, kind, protocol, _, native = infos[0]
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _bind(sock, address, native)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return ListeningSocket(sock)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host, going by every address its name has."""
    try:
        infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ipaddress.ip_address(info[4][0]).is_loopback for info in infos)


def _bind(
    sock: socket.socket, address: UnixAddress | TcpAddress, native: object | None = None
) -> None:
    try:
        sock.bind(native if native is not None else address.native)  # type: ignore[union-attr,arg-type]
    except OSError as error:
        if isinstance(error, FileExistsError) or error.errno == 98:
            raise AddressInUse(f"somebody listens on {address} already") from error
        raise


class _OwnedPath:
    """The path of a socket, owned by holding a lock."""

    def __init__(self, path: str) -> None:
        """Take the lock.

        :raises AddressInUse: somebody holds it
        """
        self._path = path
        self._lock_path = f"{path}.lock"
        self._socket_id: tuple[int, int] | None = None
        self._lock = self._take_lock()

    def _take_lock(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        while True:
            lock = os.open(self._lock_path, flags, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Whoever held it before may have removed the file since it was opened here.
                if _file_id(self._lock_path) == _id_of(os.fstat(lock)):
                    return lock
            except BlockingIOError as error:
                os.close(lock)
                raise AddressInUse(f"a live server owns unix:{self._path}") from error
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)

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
            raise AddressError(f"{self._path} exists and is no socket; it was left alone")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(self._path)
            except ConnectionRefusedError:
                os.unlink(self._path)  # noqa: PTH108
                return
            except BlockingIOError:
                pass  # its backlog is full: alive
        raise AddressInUse(f"a live server listens on unix:{self._path}")

    def remember(self) -> None:
        """The socket was bound: from now on it is ours."""
        self._socket_id = _file_id(self._path)

    def release(self) -> None:
        """Remove our socket, unless the path is somebody else's by now, and let go of the lock."""
        with contextlib.suppress(OSError):
            if self._socket_id is not None and _file_id(self._path) == self._socket_id:
                os.unlink(self._path)  # noqa: PTH108
        # Before the lock is let go: who opens the file meanwhile finds that it is gone.
        with contextlib.suppress(OSError):
            os.unlink(self._lock_path)  # noqa: PTH108
        os.close(self._lock)


def _file_id(path: str) -> tuple[int, int] | None:
    try:
        return _id_of(os.lstat(path))
    except FileNotFoundError:
        return None


def _id_of(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
