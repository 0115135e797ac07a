"""What all transports over polled descriptors have in common.

Owns: the states of such a transport, its one reader callback, the rest of a short write, and the
order in which its end is told. Above: ``sockets`` and ``pipes``, which say how bytes get in and
out. Below: ``readiness`` and the loop's ``add_reader`` and ``add_writer``.
"""

import abc
import asyncio
import errno
from collections.abc import Callable, Sequence
from functools import partial
from weakref import ref

from asyncipc.errors import LocalProtocolError
from asyncipc.transport.base import Buffer, Credentials, Receiver
from asyncipc.transport.readiness import (
    IOV_MAX,
    hung_up,
    unread,
    unsent,
    unwatch_hangup,
    watch_hangup,
)

__all__ = ["PolledTransport"]


class PolledTransport(abc.ABC):
    """A transport whose descriptors the loop polls (``Transport``, see ``base`` for the contract).

    A subclass hands over how to move bytes as plain callables, because they are on the path of
    every message, and implements what happens at the end.

    :param read_into: fills some of a buffer; 0 at the end of input, BlockingIOError for "later"
    :param send: sends some of one buffer
    :param send_many: the same for several, at most ``IOV_MAX``
    """

    __slots__ = (
        "__weakref__",
        "_early",
        "_ended",
        "_hangup_fd",
        "_input_ended",
        "_loop",
        "_output_ended",
        "_polls_output",
        "_read_fd",
        "_read_into",
        "_reader",
        "_reading",
        "_receiver",
        "_send",
        "_send_many",
        "_unsent",
        "_write_error",
        "_write_fd",
        "credentials",
        "description",
        "tolerates_noise",
    )

    # Whether a hang-up shows as the end of input, so that it is watched for only while nothing is
    # read. To be watched all the time costs half a microsecond for each message.
    _reading_tells = True

    _loop: asyncio.AbstractEventLoop
    _receiver: Receiver

    drops_on_close = False
    can_carry_descriptors = False

    def __init__(
        self,
        read_fd: int,
        write_fd: int,
        *,
        read_into: Callable[[memoryview], int],
        send: Callable[[Buffer], int],
        send_many: Callable[[Sequence[Buffer]], int],
        description: str,
        tolerates_noise: bool,
        credentials: Credentials | None,
    ) -> None:
        self.description: str = description
        self.tolerates_noise: bool = tolerates_noise
        self.credentials: Credentials | None = credentials
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._hangup_fd = write_fd  # where it shows that the other side is gone altogether
        self._read_into = read_into
        self._send = send
        self._send_many = send_many
        self._early = b""  # what others have read before
        self._reading = False  # the reader is in the loop: started, not paused, not at an end
        self._input_ended = False
        self._output_ended = False  # by write_eof, by a failed write, or with everything else
        self._ended = False
        self._polls_output = False
        self._unsent: list[Buffer] = []
        self._write_error: OSError | None = None
        self._reader: ref[partial[None]] | None = None

    # What subclasses add

    @abc.abstractmethod
    def _shut_output(self) -> None:
        """Tell the other side that nothing more comes. May raise OSError."""

    @abc.abstractmethod
    def _close_descriptors(self) -> None:
        """Close all that is owned; the loop polls none of it any more."""

    def _take_error(self) -> OSError | None:
        """What the kernel noted about the connection and has not told yet."""
        return None

    def _other_side_gone(self) -> bool:
        """Whether the end of input is a hang-up, and not only a half close."""
        return hung_up(self._hangup_fd)

    def _poll_input(self, poll: bool) -> None:
        """Have the loop call `_read_ready`, or no longer."""
        if poll:
            # At an error (a reset, or a peer that left bytes unread) uvloop calls a reader once
            # more and then drops it, without a word. It holds the only reference, so that the
            # death of this object tells, at no cost for each message.
            reader = partial(self._read_ready)
            self._reader = ref(reader, self._reader_dropped)
            self._loop.add_reader(self._read_fd, reader)
        else:
            self._reader = None
            self._loop.remove_reader(self._read_fd)

    def _reader_dropped(self, _: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon(self._finish)

    def _poll_output(self, poll: bool) -> None:
        """Have the loop call `_write_ready`, or no longer."""
        if poll:
            self._loop.add_writer(self._write_fd, self._write_ready)
        else:
            self._loop.remove_writer(self._write_fd)

    # Life

    def start(self, receiver: Receiver) -> None:
        self._loop = asyncio.get_running_loop()
        if self._ended:
            self._loop.call_soon(receiver.connection_lost, None)
            return
        self._receiver = receiver
        self._reading = True
        if self._early:
            self._loop.call_soon(self._begin_with_early)
        else:
            self._poll_input(True)
        if not self._reading_tells:
            self._watch_hangup(True)

    def put_back(self, data: bytes) -> None:
        """Deliver bytes first that somebody has read already. Before `start`."""
        self._early = data

    def _begin_with_early(self) -> None:
        self._deliver_early()
        if self._reading:
            self._poll_input(True)

    def _deliver_early(self) -> None:
        while self._early and not self._ended:
            buffer = self._receiver.get_buffer()
            count = min(len(self._early), len(buffer))
            buffer[:count] = self._early[:count]
            self._early = self._early[count:]
            self._receiver.buffer_updated(count)

    def close(self) -> None:
        if not self._ended:
            self._end(None)

    def _end(self, error: Exception | None) -> None:
        """Let go of everything; the receiver hears of it in the next turn."""
        self._ended = self._output_ended = True
        if not hasattr(self, "_loop"):  # never started, so there is nobody to tell
            self._close_descriptors()
            return
        self._watch_hangup(False)
        if self._reading:
            self._reading = False
            self._poll_input(False)
        self._drop_unsent()
        self._close_descriptors()
        self._loop.call_soon(self._receiver.connection_lost, error)
        del self._receiver

    # Reading

    def pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._poll_input(False)
            if self._reading_tells:
                self._watch_hangup(True)

    def resume_reading(self) -> None:
        if not (self._reading or self._input_ended or self._ended):
            self._reading = True
            if self._reading_tells:
                self._watch_hangup(False)
            self._poll_input(True)

    def _read_ready(self) -> None:
        # One read for each event. More of them, where the buffer came full, were measured to bring
        # nothing with a buffer that holds what a socket does.
        receiver = self._receiver
        try:
            count = self._read_into(receiver.get_buffer())
        except BlockingIOError:
            return
        except OSError as error:
            self._end(self._write_error or error)
            return
        if count:
            receiver.buffer_updated(count)
        else:
            self._end_of_input()

    def _end_of_input(self) -> None:
        if self._output_ended or self._other_side_gone():
            self._end(self._write_error or self._unsent_error())
            return
        # The end of input stays readable for ever, so the loop must not poll for it any longer.
        self._input_ended = True
        self._reading = False
        self._poll_input(False)
        if self._reading_tells:
            self._watch_hangup(True)
        self._receiver.end_of_input()

    def _watch_hangup(self, watch: bool) -> None:
        """Have the loop call `_finish` when the other side is gone, or no longer."""
        if watch:
            watch_hangup(self._loop, self._hangup_fd, self._finish)
        else:
            unwatch_hangup(self._loop, self._hangup_fd)

    def _finish(self) -> None:
        """The other side is gone: deliver what the kernel still holds, then end.

        Also while reading is paused, because what paused it may be waiting for the dead. The
        amount is bounded by the kernel's buffer: a peer that reads no more but goes on writing
        cannot keep this going.
        """
        if self._ended:
            return
        error = self._read_rest()
        if not self._ended:  # by what was delivered
            error = error or self._take_error()
            self._end(self._write_error or error or self._unsent_error())

    def read_available(self) -> None:
        if not self._ended and (error := self._read_rest()):
            self._end(error)

    def _read_rest(self) -> OSError | None:
        """Deliver what the kernel holds now, also while reading is paused."""
        self._deliver_early()
        left = unread(self._read_fd)
        while left >= 0 and not (self._input_ended or self._ended):
            try:
                count = self._read_into(self._receiver.get_buffer())
            except BlockingIOError:
                return None
            except OSError as error:
                return error
            if not count:
                return None
            left -= count
            self._receiver.buffer_updated(count)
        return None

    def _unsent_error(self) -> OSError | None:
        """A hang-up is clean only if the other side took everything."""
        if not self._unsent:
            return None
        size = sum(map(len, self._unsent))
        return BrokenPipeError(errno.EPIPE, f"the other side hung up with {size} bytes unsent")

    # Writing

    def write(self, buffers: Sequence[Buffer]) -> bool:
        if self._output_ended or self._unsent:
            return self._refuse_write()
        try:
            if len(buffers) == 1:
                sent = self._send(buffers[0])
                if sent == len(buffers[0]):
                    return True
            else:
                sent = self._send_many(buffers if len(buffers) <= IOV_MAX else buffers[:IOV_MAX])
                if sent == sum(map(len, buffers)):
                    return True
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._write_failed(error)
            return False
        self._unsent = unsent(buffers, sent)
        if self._unsent and not self._polls_output:
            self._polls_output = True
            self._poll_output(True)
        return not self._unsent

    def copy_kept(self) -> None:
        self._unsent = list(map(bytes, self._unsent))

    def _refuse_write(self) -> bool:
        if self._unsent:
            raise LocalProtocolError("write() was called before the last one was finished")
        return False

    def _write_ready(self) -> None:
        try:
            sent = self._send_many(self._unsent[:IOV_MAX])
        except BlockingIOError:
            return
        except OSError as error:
            self._write_failed(error)
            return
        self._unsent = unsent(self._unsent, sent)
        if self._unsent:
            return
        # The receiver mostly has more to write: polling for output stops only if it has not.
        try:
            self._receiver.writable()
        finally:
            if self._polls_output and not self._unsent:
                self._drop_unsent()

    def _drop_unsent(self) -> None:
        self._unsent = []
        if self._polls_output:
            self._polls_output = False
            self._poll_output(False)

    def _write_failed(self, error: OSError) -> None:
        # What the other side sent before it went may still be there to read, a reply above all.
        self._output_ended = True
        self._write_error = error
        self._drop_unsent()
        self._loop.call_soon(self._finish)

    def write_eof(self) -> None:
        if self._output_ended:
            return
        if self._unsent:
            raise LocalProtocolError("write_eof() was called before the last write was finished")
        self._output_ended = True
        try:
            self._shut_output()
        except OSError as error:
            self._write_failed(error)
            return
        if self._input_ended:
            self._end(None)
