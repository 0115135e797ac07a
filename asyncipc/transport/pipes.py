"""Pairs of descriptors: pipes, FIFOs, terminals, files, and whatever else stands at 0 and 1.

Owns: a transport over one descriptor to read and one to write. Above: ``stdio`` and the peer
layer. Below: ``descriptors`` and ``polled``.
"""

import fcntl
import os
import socket
import stat

from asyncipc.transport.descriptors import FileDescriptor, PolledDescriptor, open_descriptor
from asyncipc.transport.polled import PolledTransport

__all__ = ["PipeTransport"]


class PipeTransport(PolledTransport):
    """Reads one descriptor and writes another (`asyncipc.transport.base.Transport`).

    It owns both from now on, and closes both when it cannot be made. The flags of open files that
    other processes share are left, or at the end put back, as they were.

    When the other side closes the end that it reads, this ends the transport at once, although
    more might be coming: nobody is left to answer. What is there to read is delivered first.
    A regular file (or ``/dev/null``) is read by a thread of the loop's default executor; where
    `close` meets a read under way, the file is closed when that returns.

    :param read_fd: a descriptor open for reading
    :param write_fd: a descriptor open for writing; may be the same, as with a terminal
    :param description: for messages to people
    :param tolerates_noise: whether bytes of other writers may stand between frames
    :raises OSError: a descriptor is not open, or there are too many
    """

    __slots__ = ("_input", "_output")

    # It shows as an error on the end we write: the end that the other side reads is closed.
    _reading_tells = False

    def __init__(
        self, read_fd: int, write_fd: int, *, description: str, tolerates_noise: bool = True
    ) -> None:
        if write_fd == read_fd:
            write_fd = fcntl.fcntl(read_fd, fcntl.F_DUPFD_CLOEXEC, 3)
        try:
            self._input = open_descriptor(read_fd)
        except OSError:
            os.close(write_fd)
            raise
        try:
            output = open_descriptor(write_fd)
        except OSError:
            self._input.close()
            raise
        self._output: PolledDescriptor | FileDescriptor | None = output
        super().__init__(
            self._input.fd,
            output.fd,
            read_into=self._input.read_into,
            send=output.send,
            send_many=output.send_many,
            description=description,
            tolerates_noise=tolerates_noise,
            credentials=None,
        )

    def _poll_input(self, poll: bool) -> None:
        if isinstance(self._input, FileDescriptor):
            self._input.poll(self._loop, self._read_ready if poll else None)
        else:
            super()._poll_input(poll)

    def _shut_output(self) -> None:
        if stat.S_ISSOCK(os.fstat(self._write_fd).st_mode):
            with socket.socket(fileno=os.dup(self._write_fd)) as sock:
                sock.shutdown(socket.SHUT_WR)
        # From now on the end of what the other side writes is the end of all.
        self._watch_hangup(False)
        self._close_output()
        self._hangup_fd = self._read_fd
        self._watch_hangup(True)

    def _close_descriptors(self) -> None:
        # In this order, for where both are one description: its flags were read by the first.
        self._close_output()
        self._input.close()

    def _close_output(self) -> None:
        if self._output is not None:
            self._output.close()
            self._output = None
