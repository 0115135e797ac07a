"""Outgoing attachments that do not go in the stream: file descriptors and shared memory.

Decides for each attachment of a message where it travels, keeps what belongs to it until it has
left, and keeps to what the other side takes: a window of descriptors (credit, as for
notifications), and the regions of one arena.

Layer 2, inside the session. Above: the outbox. Below: wire, transport.
"""

import io
import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from asyncipc.config import Limits
from asyncipc.errors import EncodeError, FrameTooLarge, RemoteProtocolError
from asyncipc.lazy import LazyModule
from asyncipc.wire.attachments import Attachment, Buffer, HasFileno
from asyncipc.wire.messages import DESCRIPTORS, MEMORY
from asyncipc.wire.transfers import Outgoing

if TYPE_CHECKING:
    from asyncipc.transport import fd, shared_memory
else:
    fd = LazyModule("asyncipc.transport.fd")
    shared_memory = LazyModule("asyncipc.transport.shared_memory")

__all__ = ["Cargo", "Placing", "close_given", "has_descriptors", "measure", "owned"]

# Bytes copied into the arena before others get their turn.
COPY_SIZE: Final = 1024 * 1024

# Bytes and bytearrays are copied at the other end. From this size on they go part by part, so that
# the two sides copy at the same time, and nothing waits for the whole.
CARRIED_ABOVE: Final = 1024 * 1024

# Bytes of such a part, and of those that the other side has not copied yet: what it may find to do
# in one read, while a ping waits. Beyond, parts go in the stream, where the kernel makes the sender
# wait.
CARRIED_PART: Final = 512 * 1024
CARRIED_BOUND: Final = 2 * 1024 * 1024

# Of one message: where they are has to fit into its first frame.
MAX_REGIONS: Final = 64

# The one arena of a side; later versions may have more.
SEGMENT: Final = 1


class Cargo:
    """What goes beside one transfer, until all of the message has left or it was dropped.

    :param room: for descriptors of shared memory, beside those that the message has anyway
    :ivar lengths: of the segments, as `begin` tells them
    :ivar descriptors: copies of those given, closed in the end
    """

    __slots__ = ("_copies", "_placing", "_room", "descriptors", "lengths", "regions")

    def __init__(self, placing: "Placing", room: int) -> None:
        self._placing = placing
        self._room = room
        self._copies: deque[tuple[memoryview, memoryview]] = deque()
        self.lengths: list[Any] = []
        self.descriptors: list[int] = []
        self.regions: list[shared_memory.Region] = []

    def copy_some(self) -> int:
        """Copy the next bytes into their region; how many, 0 when all are there."""
        if not self._copies:
            return 0
        source, target = self._copies[0]
        count = min(len(source), COPY_SIZE)
        target[:count] = source[:count]
        if count == len(source):
            self._copies.popleft()
        else:
            self._copies[0] = (source[count:], target[count:])
        return count

    def copy_all(self) -> None:
        """Copy everything, so that the sources may change."""
        while self.copy_some():
            pass

    @property
    def may_leave(self) -> bool:
        """The other side takes it now."""
        placing = self._placing
        if len(self.descriptors) > placing.credit:
            return False
        return not self.regions or placing.arena_is_known

    def leaves(self) -> Sequence[int]:
        """The first part leaves, and the descriptors with it."""
        self._placing.credit -= len(self.descriptors)
        self._placing.descriptors_sent += len(self.descriptors)
        for region in self.regions:
            region.is_sent = True
            self._placing.shared_sent += region.length
        return self.descriptors

    def add_descriptor(self, holder: HasFileno) -> None:
        """:raises EncodeError: there can be no copy of it"""
        try:
            if isinstance(holder, io.IOBase):
                holder.flush()  # what was written to it before stands in it when it arrives
            self.descriptors.append(os.dup(holder.fileno()))
        except (OSError, ValueError) as error:
            raise EncodeError(f"a file descriptor cannot be copied to be sent: {error}") from error
        self.lengths.append(None)

    def add_memory(self, memory: "shared_memory.SharedMemory", size: int) -> bool:
        """All of some shared memory, by a descriptor; False if there cannot be one more."""
        if self._room <= 0:
            return False
        try:
            self.descriptors.append(os.dup(memory.fd))
        except OSError:  # no descriptor is left
            return False
        self._room -= 1
        self.lengths.append([size])
        return True

    def add_region(self, region: "shared_memory.Region", source: Buffer) -> None:
        """The region is to hold what is in the source."""
        self.regions.append(region)
        self.lengths.append([SEGMENT, region.number, region.offset, region.length])
        self._copies.append((memoryview(source).cast("B"), region.memory))

    def close(self, *, begun: bool) -> None:
        """It has left, or was dropped, before or after it had begun to leave."""
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = []
        if not begun:
            # The other side has not heard of the regions, and shall not read what was not sent.
            for region in self.regions:
                self._placing.drop(region)
        self.regions = []
        self._copies.clear()


class Placing:
    """The attachments of what one session sends.

    :param shares: the other side takes shared memory
    :param send: sends a message in the stream
    :param announce: sends one with a descriptor, in a lane of its own; the function that it returns
        tells whether that has left
    :ivar credit: descriptors that the other side takes now
    :ivar descriptors_sent: how many went
    :ivar shared_sent: bytes that went through shared memory
    """

    __slots__ = (
        "_announce",
        "_arena",
        "_arena_is_known",
        "_asked",
        "_carried",
        "_is_closed",
        "_limits",
        "_max_descriptors",
        "_send",
        "_shares",
        "credit",
        "descriptors_sent",
        "shared_sent",
    )

    def __init__(
        self,
        limits: Limits,
        max_descriptors: int,
        *,
        shares: bool,
        send: Callable[[list[Any]], object],
        announce: Callable[[list[Any]], Callable[[], bool]],
    ) -> None:
        self._limits = limits
        self._max_descriptors = max_descriptors
        self._shares = shares and limits.shared_memory_above > 0
        self._send = send
        self._announce = announce
        self._arena: shared_memory.Arena | None = None
        self._arena_is_known: Callable[[], bool] | None = None
        self._asked = False
        self._is_closed = False
        self._carried: dict[int, int] = {}  # parts of transfers: region and length
        self.credit: int = 0
        self.descriptors_sent: int = 0
        self.shared_sent: int = 0

    def check_count(self, descriptors: int) -> None:
        """:raises FrameTooLarge: one message may not have so many"""
        if descriptors > self._max_descriptors:
            raise FrameTooLarge(
                f"the message has {descriptors} file descriptors; "
                f"the other side's Limits.max_descriptors is {self._max_descriptors}"
            )

    @property
    def arena_used(self) -> int:
        """Bytes of the arena that the other side has not given back."""
        return 0 if self._arena is None else self._arena.used

    @property
    def arena_is_known(self) -> bool:
        """The announcement of the arena has left."""
        return self._arena_is_known is not None and self._arena_is_known()

    def place(
        self, segments: Sequence[Attachment], *, lasting: bool
    ) -> tuple[Sequence[Buffer], Cargo | None]:
        """Share the segments of a message out between the transfer and what goes beside it.

        `Fd` objects among them are closed: they were given away.

        :param lasting: the buffers do not change until the message has left
        :returns: the segments of the transfer, and the rest, if there is one
        :raises EncodeError: a descriptor cannot be copied; nothing was taken then
        """
        given = sum(1 for segment in segments if hasattr(segment, "fileno"))
        cargo = Cargo(self, self._max_descriptors - given)
        stream: list[Buffer] = []
        if self._is_closed:
            return _nothing_sent(segments), None
        try:
            for segment in segments:
                if hasattr(segment, "fileno"):
                    cargo.add_descriptor(segment)
                elif not (stream and self._place_buffer(cargo, segment)):
                    stream.append(segment if lasting else owned(segment))
                    cargo.lengths.append(memoryview(segment).nbytes)
            if not lasting:
                cargo.copy_all()
        except BaseException:
            cargo.close(begun=False)
            raise
        if len(stream) == len(segments):
            return stream, None
        close_given(segments)
        if cargo.descriptors:
            self._ask()
        return stream, cargo

    def carry(self, outgoing: Outgoing) -> tuple[int, list[int] | None]:
        """Copy the next part of a transfer, its size and where it is; 0 and None if it cannot go.

        That is where there is no room, or the other side has copied too little of those before.
        """
        missing = outgoing.size - outgoing.taken
        if not (self._shares and self.arena_is_known) or self._arena is None:
            return 0, None
        if missing < self._limits.shared_memory_above:
            return 0, None
        if sum(self._carried.values()) >= CARRIED_BOUND:
            return 0, None
        region = self._arena.take(min(missing, CARRIED_PART))
        if region is None:
            return 0, None
        start = 0
        for piece in outgoing.next_part(region.length):
            region.memory[start : start + len(piece)] = piece
            start += len(piece)
        region.is_sent = True
        self._carried[region.number] = region.length
        self.shared_sent += region.length
        return region.length, [SEGMENT, region.number, region.offset, region.length]

    def credited(self, count: int) -> None:
        """The other side takes more descriptors.

        :raises RemoteProtocolError: more than twice as many as it said
        """
        self.credit += count
        if self.credit > 2 * self._max_descriptors:
            raise RemoteProtocolError(
                f"the other side takes {self.credit} file descriptors at once, but its "
                f"Limits.max_descriptors is {self._max_descriptors}"
            )

    def released(self, segment: int, regions: Sequence[int]) -> None:
        """The other side has done with regions.

        :raises RemoteProtocolError: it has not got them
        """
        arena = self._arena
        for number in regions:
            if segment != SEGMENT or arena is None or not arena.has_sent(number):
                raise RemoteProtocolError(
                    f"the other side gave back region {number} of segment {segment}, "
                    "which it did not have"
                )
            self.give_back(number)

    def drop(self, region: "shared_memory.Region") -> None:
        """What a region holds was not sent, and shall not be seen."""
        if not self._is_closed:
            region.wipe()
            self.give_back(region.number)

    def give_back(self, number: int) -> None:
        """A region is free again; KeyError if it was."""
        if self._arena is None:
            raise KeyError(number)
        self._carried.pop(number, None)
        self._arena.give_back(number)

    def close(self) -> None:
        """The session is over; what the other side still holds lives as long as its mapping."""
        self._is_closed = True
        self._arena = None
        self._shares = False

    def _place_buffer(self, cargo: Cargo, buffer: Buffer) -> bool:
        if not self._shares:
            return False
        size = memoryview(buffer).nbytes
        memory = shared_memory.memory_behind(buffer)
        if memory is not None and cargo.add_memory(memory, size):
            self.shared_sent += size
            return True
        region = self._region_for(buffer, size) if len(cargo.regions) < MAX_REGIONS else None
        if region is None:
            return False
        cargo.add_region(region, buffer)
        return True

    def _region_for(self, buffer: Buffer, size: int) -> "shared_memory.Region | None":
        """A region for all of a buffer; None where it goes in the stream, perhaps in parts."""
        if size < self._limits.shared_memory_above:
            return None
        arena = self._arena or self._new_arena()
        if size > CARRIED_ABOVE and not isinstance(buffer, memoryview):
            return None
        return None if arena is None else arena.take(size)

    def _new_arena(self) -> "shared_memory.Arena | None":
        """Make and announce the arena; None if none is to be had, now and later."""
        try:
            arena = shared_memory.Arena(self._limits.arena)
            memfd = fd.Fd(os.dup(arena.fd))
            with memfd:
                self._arena_is_known = self._announce([MEMORY, SEGMENT, arena.size, memfd])
        except (OSError, EncodeError):  # there is no shared memory, or no descriptor left
            self._shares = False
            return None
        self._arena = arena
        return arena

    def _ask(self) -> None:
        """The other side begins to look for descriptors only when it is asked to."""
        if not self._asked:
            self._asked = True
            self._send([DESCRIPTORS, 0])


def measure(attachments: Sequence[Attachment]) -> tuple[int, int]:
    """The bytes in the buffers, and how many of the others, descriptors, there are."""
    size = descriptors = 0
    for attachment in attachments:
        if hasattr(attachment, "fileno"):
            descriptors += 1
        else:
            size += memoryview(attachment).nbytes
    return size, descriptors


def has_descriptors(attachments: Sequence[Attachment]) -> bool:
    """Whether not all of them are buffers."""
    return any(hasattr(attachment, "fileno") for attachment in attachments)


def close_given(segments: Sequence[Attachment]) -> None:
    """Whoever sends an `Fd` gives it away."""
    for segment in segments:
        if type(segment) is fd.Fd:
            segment.close()


def _nothing_sent(segments: Sequence[Attachment]) -> list[Buffer]:
    """The buffers, for an outbox that sends nothing any more."""
    close_given(segments)
    return [segment for segment in segments if not hasattr(segment, "fileno")]


def owned(buffer: Buffer) -> bytes:
    """A copy of a buffer that somebody may change."""
    return buffer if isinstance(buffer, bytes) else bytes(buffer)
