"""Stream sockets: unix, TCP, socketpairs. The path of every message, so it is kept short.

Owns: the options of a socket and who is at its other end. Above: the peer layer, which makes the
sockets. Below: ``polled``.
"""

import array
import asyncio
import contextlib
import errno
import os
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Final, cast

from asyncipc.transport.base import Buffer, Credentials, DescriptorReceiver
from asyncipc.transport.polled import PolledTransport

__all__ = ["SocketTransport", "is_tcp", "peer_credentials", "tune"]

# A dead machine at the other end is noticed after KEEPALIVE_IDLE + INTERVAL * COUNT seconds: two
# minutes. (TCP_USER_TIMEOUT is left alone: it would end the connection to a stopped process too.)
_KEEPALIVE_IDLE: Final = 60
_KEEPALIVE_INTERVAL: Final = 10
_KEEPALIVE_COUNT: Final = 6

# What the kernel passes at most with one write (SCM_MAX_FD), so that none is lost for want of room.
_MAX_DESCRIPTORS: Final = 253
_ANCILLARY_SIZE: Final = socket.CMSG_SPACE(_MAX_DESCRIPTORS * array.array("i").itemsize)

# Seconds until another attempt where too many are under way for this user, in all sockets of all
# its processes (RLIMIT_NOFILE bounds that too). Nothing tells when they are fewer.
_RETRY_DELAY: Final = 0.02

# A descriptor that comes must not get into a child that is being started: at once where possible.
_CLOSE_ON_EXEC: Final = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))

_TRUNCATED: Final = int(socket.MSG_CTRUNC)  # its operators as an enum take longer than the read


class SocketTransport(PolledTransport):
    """A connected stream socket, which it owns from now on (`asyncipc.transport.base.Transport`).

    A unix socket tells a half close from a hang-up. Over TCP they look the same, so a FIN is a
    half close until a write is answered with a reset.

    :param sock: a connected ``SOCK_STREAM`` socket; it is made non-blocking
    :param description: for messages to people
    """

    __slots__ = (
        "_outgoing",
        "_process",
        "_retry",
        "_sock",
        "can_carry_descriptors",
        "drops_on_close",
    )

    def __init__(self, sock: socket.socket, *, description: str) -> None:
        sock.setblocking(False)
        tune(sock)
        self._sock = sock
        self._process = os.getpid()
        self._retry: asyncio.TimerHandle | None = None
        self.drops_on_close: bool = is_tcp(sock)
        self.can_carry_descriptors: bool = sock.family == socket.AF_UNIX
        super().__init__(
            sock.fileno(),
            sock.fileno(),
            read_into=sock.recv_into,
            send=sock.send,
            send_many=sock.sendmsg,
            description=description,
            tolerates_noise=False,
            credentials=peer_credentials(sock),
        )

    def accept_descriptors(self) -> None:
        self._read_into = self._receive

    def write_with_descriptors(self, buffers: Sequence[Buffer], descriptors: Sequence[int]) -> bool:
        if not (self._output_ended or self._unsent):
            self._outgoing = array.array("i", descriptors)
            self._send_many = self._send_descriptors
        return self.write(buffers)

    def _send_descriptors(self, buffers: Sequence[Buffer]) -> int:
        """Takes the place of ``sendmsg`` until a first byte has left, and they with it."""
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, self._outgoing)
        try:
            sent = self._sock.sendmsg(buffers, (rights,))
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:
                raise
            self._try_later()
            raise BlockingIOError from error
        self._send_many = self._sock.sendmsg
        return sent

    def _try_later(self) -> None:
        """Go on with what is unsent in a moment, though the socket may be ready for it now."""
        super()._poll_output(False)
        self._retry = self._loop.call_later(_RETRY_DELAY, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        super()._poll_output(True)

    def _poll_output(self, poll: bool) -> None:
        if self._retry is None:
            super()._poll_output(poll)
        elif not poll:
            self._retry.cancel()
            self._retry = None

    def _receive(self, buffer: memoryview) -> int:
        """Takes the place of ``recv_into`` where descriptors may come.

        Linux ends a read behind the write that they came with, so a read brings those of one
        write at most.
        """
        count, ancillary, flags, _ = self._sock.recvmsg_into(
            (buffer,), _ANCILLARY_SIZE, _CLOSE_ON_EXEC
        )
        if ancillary or flags & _TRUNCATED:
            descriptors = array.array("i")
            for level, kind, data in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    whole = len(data) - len(data) % descriptors.itemsize
                    descriptors.frombytes(data[:whole])
            if not _CLOSE_ON_EXEC:
                for descriptor in descriptors:
                    os.set_inheritable(descriptor, False)
            cast("DescriptorReceiver", self._receiver).descriptors_received(
                descriptors.tolist(), lost=bool(flags & _TRUNCATED)
            )
        return count

    def _shut_output(self) -> None:
        self._sock.shutdown(socket.SHUT_WR)

    def _take_error(self) -> OSError | None:
        number = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return OSError(number, os.strerror(number)) if number else None

    def _close_descriptors(self) -> None:
        # As long as anybody has a copy (a process that was forked meanwhile, an object that the
        # socket came from) closing alone tells the other side nothing. A forked process must not
        # end what is its parent's. (Over TCP `write_eof` has told it, or nobody is to be told.)
        if hasattr(self, "_loop") and not self.drops_on_close and self._process == os.getpid():
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


def is_tcp(sock: socket.socket) -> bool:
    """Whether the other side is reached over TCP, on this machine or another."""
    return sock.family in (socket.AF_INET, socket.AF_INET6)


def tune(sock: socket.socket) -> None:
    """Set the options of a TCP socket: no delay for small writes, and keepalive."""
    if not is_tcp(sock):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "darwin":
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPALIVE, _KEEPALIVE_IDLE)
    else:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_COUNT)


def peer_credentials(sock: socket.socket) -> Credentials | None:
    """Who is at the other end of a connected unix socket; None for any other, or if unknown.

    Of a socketpair the kernel tells who made it, at both ends. Where that is this process, nothing
    is known of who has the other end.
    """
    if sock.family != socket.AF_UNIX:
        return None
    try:
        found = _kernel_credentials(sock)
        is_pair = not (sock.getsockname() or sock.getpeername())
    except (OSError, struct.error):
        return None
    return None if is_pair and found is not None and found.pid == os.getpid() else found


def _kernel_credentials(sock: socket.socket) -> Credentials | None:
    if sys.platform == "linux":
        # struct ucred: pid, uid, gid
        pid, uid, gid = struct.unpack(
            "iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        )
        nobody = uid == 0xFFFFFFFF  # not connected
        return None if nobody else Credentials(pid=pid, uid=uid, gid=gid)
    if sys.platform == "darwin":
        # struct xucred: version (0), uid, number of groups, 16 groups, the first the primary
        level, peer_pid, layout = 0, 2, struct.Struct("=IIh2x16I")  # SOL_LOCAL, LOCAL_PEERPID
        version, uid, count, gid, *_ = layout.unpack(
            sock.getsockopt(level, socket.LOCAL_PEERCRED, layout.size)
        )
        pid = sock.getsockopt(level, peer_pid)
        known = version == 0 and count > 0
        return Credentials(pid=pid, uid=uid, gid=gid) if known else None
    return None
