"""Pairs of descriptors: pipes, FIFOs, terminals, files, and whatever else stands at 0 and 1.

Owns: a transport over one descriptor to read and one to write. Above: ``stdio`` and the peer
layer. Below: ``descriptors`` and ``polled``.
"""

import fcntl
import os
import socket
import stat

from asyncipc.transport.base import Receiver
from asyncipc.transport.descriptors import FileDescriptor, PolledDescriptor, open_descriptor
from asyncipc.transport.polled import PolledTransport
from asyncipc.transport.readiness import Watch

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

    __slots__ = ("_input", "_output", "_reader_watch")

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
        self._reader_watch: Watch | None = None
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

    def start(self, receiver: Receiver) -> None:
        super().start(receiver)
        if not self._output_ended:
            # An error on the end we write means that the end the other side reads is closed.
            self._reader_watch = Watch.for_hangup(self._loop, self._write_fd, self._finish)

    def _poll_input(self, poll: bool) -> None:
        if isinstance(self._input, FileDescriptor):
            self._input.poll(self._loop, self._read_ready if poll else None)
        else:
            super()._poll_input(poll)

    def _watch_hangup(self, watch: bool) -> None:
        """Nothing to do: the end we write is watched all the time."""

    def _shut_output(self) -> None:
        if stat.S_ISSOCK(os.fstat(self._write_fd).st_mode):
            with socket.socket(fileno=os.dup(self._write_fd)) as sock:
                sock.shutdown(socket.SHUT_WR)
        self._close_output()

    def _close_descriptors(self) -> None:
        self._input.close()
        self._close_output()

    def _close_output(self) -> None:
        if self._reader_watch is not None:
            self._reader_watch.close()
            self._reader_watch = None
        if self._output is not None:
            self._output.close()
            self._output = None
