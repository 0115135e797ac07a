"""Transfers: messages too large, or with too much attached, for one frame.

A transfer is announced by a ``begin`` message, which gives its number and the lengths of its
segments: segment 0 is the encoded message, the others are its attachments. The bytes of all
segments, one behind the other, are cut into parts: the first stands attached to the ``begin``,
the next to ``part`` messages. Parts of several transfers, and whole frames of other messages, may
stand between them. ``retract`` gives an unfinished transfer up.

Receiving copies each chunk once, out of memory that is still in the processor's cache, into
memory that grows as the bytes come: nothing is allocated because it was announced. `io.BytesIO`
hands its memory over as ``bytes`` without another copy; for the large ones see ``large_bytes``.

Layer 1. Above: the session. Below: attachments. Does no I/O.
"""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from asyncipc.errors import FrameTooLarge, RemoteProtocolError
from asyncipc.lazy import LazyModule
from asyncipc.wire.attachments import MAX_ATTACHMENTS, Attached

if TYPE_CHECKING:
    from asyncipc.wire import large_bytes
else:
    large_bytes = LazyModule("asyncipc.wire.large_bytes")

__all__ = ["MAX_SEGMENTS", "MAX_TRANSFERS", "Assembler", "Beside", "Outgoing"]

# Unfinished transfers in one direction. A sender finishes some before it begins others, so that
# the memory of half-received messages is bounded; see docs/protocol.md.
MAX_TRANSFERS: Final = 64

# A message and 1024 attachments: their lengths, in a begin, fit the smallest frame in any codec.
MAX_SEGMENTS: Final = 1 + MAX_ATTACHMENTS

Buffer = bytes | bytearray | memoryview


class Outgoing:
    """A transfer on its way out: cuts the segments into parts without copying them."""

    __slots__ = ("_offset", "_position", "_segments", "lengths", "size", "taken")

    def __init__(self, segments: Sequence[Buffer]) -> None:
        self._segments = [memoryview(segment).cast("B") for segment in segments]
        self._position = 0
        self._offset = 0
        self.lengths: list[int] = [len(segment) for segment in self._segments]
        self.size: int = sum(self.lengths)
        self.taken: int = 0

    def next_part(self, limit: int) -> list[memoryview]:
        """The next bytes, at most ``limit``; an empty list at the end."""
        part: list[memoryview] = []
        while limit > 0 and self._position < len(self._segments):
            segment = self._segments[self._position]
            piece = segment[self._offset : self._offset + limit]
            limit -= len(piece)
            self.taken += len(piece)
            self._offset += len(piece)
            if piece:
                part.append(piece)
            if self._offset == len(segment):
                self._position += 1
                self._offset = 0
        return part

    def forget(self) -> None:
        """Nobody asks for the rest: let go of the buffers."""
        self._segments = []

    @property
    def finished(self) -> bool:
        """All bytes were handed out."""
        return self.taken == self.size


class Beside(Protocol):
    """The attachments of one message that do not come in the transfer; they were there first.

    Their segments have the length 0 in the transfer.
    """

    @property
    def attached(self) -> Mapping[int, Attached]:
        """By segment."""
        ...

    @property
    def size(self) -> int:
        """In bytes, of them all."""
        ...

    @property
    def descriptors(self) -> int:
        """How many file descriptors came with the message."""
        ...

    def finish(self, *, dropped: bool) -> None:
        """The message is complete, or will never be."""
        ...

    def close_descriptors(self) -> None:
        """Nobody takes them, after all."""
        ...


class _Incoming:
    """One unfinished message: takes bytes, fills segment after segment."""

    __slots__ = ("_lengths", "_memory", "_missing_here", "beside", "missing", "segments", "size")

    def __init__(self, lengths: list[int], beside: Beside | None) -> None:
        self.beside = beside
        self._lengths = lengths
        self._memory = _new_memory(lengths[0])
        self._missing_here = lengths[0]  # bytes, of the segment that is being filled
        self.segments: list[bytes] = []
        self.missing = sum(lengths)
        self.size = self.missing + (0 if beside is None else beside.size)

    def feed(self, data: memoryview) -> bool:
        """Take a chunk, of at most `missing` bytes; True when the message is complete."""
        self.missing -= len(data)
        while True:
            taken = min(len(data), self._missing_here)
            self._memory.write(data[:taken])
            self._missing_here -= taken
            if self._missing_here:
                return False
            self.segments.append(self._memory.getvalue())
            if len(self.segments) == len(self._lengths):
                return True
            data = data[taken:]
            self._missing_here = self._lengths[len(self.segments)]
            self._memory = _new_memory(self._missing_here)


# From so many bytes on, a segment gets memory that is made for it.
LARGE_SEGMENT: Final = 1024 * 1024


def _new_memory(size: int) -> "io.BytesIO | large_bytes.LargeBytes":
    return large_bytes.new_large_bytes(size) if size >= LARGE_SEGMENT else io.BytesIO()


class Assembler:
    """Puts the transfers that come in together again.

    :param max_message: limit in bytes for one message with all that is attached to it, and for
        all unfinished ones together where there are several
    """

    __slots__ = ("_current", "_current_id", "_held", "_incoming", "beside", "max_message")

    def __init__(self, max_message: int) -> None:
        self.max_message: int = max_message
        self._incoming: dict[int, _Incoming] = {}
        self._held = 0
        self._current: _Incoming | None = None
        self.beside: Beside | None = None
        self._current_id = 0

    def __len__(self) -> int:
        return len(self._incoming)

    def begin(self, transfer: int, lengths: list[int], beside: Beside | None = None) -> None:
        """A transfer was announced; what is attached belongs to it.

        :param beside: attachments that have come by another way; its own, unless this raises
        :raises FrameTooLarge: the message is over ``max_message``
        :raises RemoteProtocolError: the announcement breaks the rules
        """
        size = sum(lengths) + (0 if beside is None else beside.size)
        if size > self.max_message:
            raise FrameTooLarge(
                f"the other side announced a message of {size} bytes; "
                f"Limits.max_message is {self.max_message}"
            )
        if transfer in self._incoming:
            raise RemoteProtocolError(f"the other side began transfer {transfer} twice")
        if lengths[0] == 0 or len(lengths) > MAX_SEGMENTS:
            raise RemoteProtocolError(
                f"the other side began a transfer with an empty message or over {MAX_SEGMENTS} "
                f"segments: {len(lengths)}, the first of {lengths[0]} bytes"
            )
        if self._incoming and (
            self._held + size > self.max_message or len(self._incoming) >= MAX_TRANSFERS
        ):
            raise RemoteProtocolError(
                f"the other side began a transfer of {size} bytes beside {len(self._incoming)} "
                f"unfinished ones of {self._held}; together at most {MAX_TRANSFERS} and "
                f"Limits.max_message ({self.max_message}) are allowed"
            )
        self._held += size
        self._current = self._incoming[transfer] = _Incoming(lengths, beside)
        self._current_id = transfer

    def part(self, transfer: int) -> None:
        """What is attached belongs to a transfer.

        :raises RemoteProtocolError: nobody began it
        """
        self._current = self._incoming.get(transfer)
        self._current_id = transfer
        if self._current is None:
            raise RemoteProtocolError(
                f"the other side sent a part of transfer {transfer}, which it had not begun"
            )

    def retract(self, transfer: int) -> None:
        """An unfinished transfer was given up; one that nobody began is ignored."""
        given_up = self._incoming.pop(transfer, None)
        if given_up is not None:
            self._held -= given_up.size
            if given_up.beside is not None:
                given_up.beside.finish(dropped=True)

    def close(self) -> None:
        """No more comes: drop what is unfinished."""
        for transfer in list(self._incoming):
            self.retract(transfer)

    def expect(self, size: int) -> None:
        """So many bytes are attached to the last begin or part.

        :raises RemoteProtocolError: more than are missing of its transfer
        """
        missing = self._current.missing if self._current is not None else 0
        if size > missing:
            raise RemoteProtocolError(
                f"the other side attached {size} bytes to transfer {self._current_id}, "
                f"of which {missing} were missing"
            )

    def feed(self, data: memoryview) -> list[bytes] | None:
        """Take attached bytes, no more than were expected.

        :returns: the segments of the message when it is complete, else None; what stands beside
            them is `beside` then
        """
        current = self._current
        assert current is not None, "expect lets no bytes through without a transfer"
        if not current.feed(data):
            return None
        self._current = None
        del self._incoming[self._current_id]
        self._held -= current.size
        self.beside = current.beside
        return current.segments
