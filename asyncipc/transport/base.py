"""What a session asks of the bytes below it, and what every transport promises.

A transport moves bytes between the kernel (or another program's stream object) and one
`Receiver`. It knows nothing of messages. Everything happens on the event loop's thread.

The contract, which ``tests/contract`` runs over every implementation:

1. Nothing is delivered before `Transport.start`. The receiver is called from the loop, never
   from inside a call that the receiver's owner made into the transport (but see rule 7).
2. For each read the transport asks `Receiver.get_buffer`, fills some of it, and calls
   `Receiver.buffer_updated` in the same step, so that receivers of one loop may share memory.
   Where nothing was there to read, `buffer_updated` does not follow.
3. `Transport.write` takes everything it is given, after `start`. It returns True when all of it
   has left. Otherwise it returns False, keeps the buffers (uncopied: do not change them before
   `Transport.copy_kept`) and calls `Receiver.writable` once when they have left; until then it
   must not be called again. A failure to write is never raised: write returns False, and
   `Receiver.connection_lost` comes in the place of `writable`, behind what there was still to read.
4. `Receiver.end_of_input` comes at most once, when the other side has finished sending but may
   still be reading. No data follows. Over TCP a hang-up looks the same, until a write fails.
5. `Receiver.connection_lost` comes exactly once after `start`, last of all calls, in a later turn
   of the loop than the call that caused it: with None after `Transport.close`, when both
   directions have come to their end, and where the other side has hung up cleanly (it left
   nothing unread that this side kept, and all that it sent was delivered first); else with the
   error.
6. `Transport.close` is immediate and may be called at any time, and twice. What was not written
   is dropped; a receiver that wants it flushed waits for `writable` first. After
   `connection_lost` all descriptors the transport owned are closed and the loop holds no
   reference to it. (TLS takes up to a second for its goodbye.)
7. `read_available` delivers what has come already, inside the call: for who knows that the
   process at the other end is dead, and wants what it sent before the loop gets to it.
8. `pause_reading` and `resume_reading` may be called at any time after `start`, and twice. While
   paused no data is delivered, with two exceptions: one read already under way, and, when the
   other side is gone, the rest of what it sent. What paused may be waiting for the dead, so a
   hang-up is not held back; the rest is bounded by the kernel's buffer.
9. Where `Transport.can_carry_descriptors` is true, it is a `DescriptorCarrier`: file descriptors
   go with the first byte of a write, and come, each as often as it was sent, after
   `DescriptorCarrier.accept_descriptors`. `DescriptorReceiver.descriptors_received` is called
   before the `buffer_updated` for the read they came with, once for each write that had any.

Layer 1.
"""

import sys
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol, TypeAlias, runtime_checkable

__all__ = [
    "HAS_SHARED_MEMORY",
    "Buffer",
    "Credentials",
    "DescriptorCarrier",
    "DescriptorReceiver",
    "Receiver",
    "Transport",
]

# memfds with seals, and madvise as it is used here.
HAS_SHARED_MEMORY: Final = sys.platform == "linux"

# A memoryview must be of single bytes, so that len() is its size.
Buffer: TypeAlias = bytes | bytearray | memoryview


class Credentials(NamedTuple):
    """Who is at the other end of a unix socket, as the kernel saw it when it connected.

    Authorise by ``uid``, never by ``pid``: process ids are reused. On a socketpair they name the
    process that made the pair, whoever has the other end; there are none where this one did.
    """

    pid: int
    uid: int
    gid: int


class Receiver(Protocol):
    """The side of a transport that takes what comes in: a session, or a test."""

    def get_buffer(self) -> memoryview:
        """Writable memory, never empty, for the next read. Valid until `buffer_updated`."""
        ...

    def buffer_updated(self, count: int) -> None:
        """The first ``count`` bytes (at least 1) of the buffer were filled."""
        ...

    def writable(self) -> None:
        """What the last `Transport.write` kept has left."""
        ...

    def end_of_input(self) -> None:
        """The other side sends no more, but may still read."""
        ...

    def connection_lost(self, error: Exception | None) -> None:
        """The transport is gone. None: it was closed here, or there cleanly."""
        ...


class DescriptorReceiver(Receiver, Protocol):
    """A receiver that also takes file descriptors."""

    def descriptors_received(self, descriptors: list[int], *, lost: bool) -> None:
        """Descriptors came, which belong to the receiver; see rule 9.

        :param lost: some more came, but this process had no room for them. They are gone.
        """
        ...


@runtime_checkable
class Transport(Protocol):
    """A pair of byte streams with a kernel, a library or another object behind it."""

    @property
    def description(self) -> str:
        """For messages to people: ``unix:/run/app.sock``, ``stdio``, ``pid 123``."""
        ...

    @property
    def tolerates_noise(self) -> bool:
        """True where bytes of other writers may stand between frames (pipes, stdio)."""
        ...

    @property
    def drops_on_close(self) -> bool:
        """True where closing may undo what has left: TCP, when unread data comes in.

        Who cares ends with `write_eof`, and closes when the other side has hung up.
        """
        ...

    @property
    def can_carry_descriptors(self) -> bool:
        """True where the other side may be given file descriptors; see rule 9."""
        ...

    @property
    def credentials(self) -> Credentials | None:
        """The process at the other end, where the kernel tells; None elsewhere."""
        ...

    def start(self, receiver: Receiver) -> None:
        """Begin to read. Called once, inside a running loop."""
        ...

    def write(self, buffers: Sequence[Buffer]) -> bool:
        """Send the buffers one behind the other; see rule 3. Ignored after the end."""
        ...

    def copy_kept(self) -> None:
        """Copy what the last `write` keeps, if anything, so that its owner may change it."""
        ...

    def read_available(self) -> None:
        """Deliver what has come already, now; see rule 7.

        Does nothing where that is not possible.
        """
        ...

    def pause_reading(self) -> None:
        """Stop delivering data until `resume_reading`."""
        ...

    def resume_reading(self) -> None:
        """Deliver data again."""
        ...

    def write_eof(self) -> None:
        """Finish sending; the other side sees the end of its input.

        Call only when nothing is kept. Where there is no half close (TLS) both directions end.
        """
        ...

    def close(self) -> None:
        """End both directions now; see rules 5 and 6."""
        ...


class DescriptorCarrier(Transport, Protocol):
    """A transport that can carry file descriptors: a unix socket."""

    def accept_descriptors(self) -> None:
        """Take the descriptors that come from now on; before, they are lost.

        Reading takes somewhat longer from then on (0.5 us a read, measured).
        """
        ...

    def write_with_descriptors(self, buffers: Sequence[Buffer], descriptors: Sequence[int]) -> bool:
        """`write` at least two buffers, and descriptors with their first byte.

        They are the caller's, and must stay open until all has left.
        """
        ...
