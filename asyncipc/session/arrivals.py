"""Incoming attachments that did not come in the stream: file descriptors and shared memory.

Descriptors come with the first byte of the frame that begins their message, so they are here
before it. What came in shared memory is lent: the region goes back when the last view of it is
gone, which a finalizer tells.

Layer 2, inside the session. Above: the router. Below: wire, transport.
"""

import asyncio
import contextlib
import logging
import os
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from asyncipc.errors import LocalProtocolError, RemoteProtocolError
from asyncipc.lazy import LazyModule
from asyncipc.transport.fd import Fd
from asyncipc.wire.attachments import Attached
from asyncipc.wire.messages import DESCRIPTORS, RELEASE, shown

if TYPE_CHECKING:
    from asyncipc.transport import regions, shared_memory
else:
    regions = LazyModule("asyncipc.transport.regions")
    shared_memory = LazyModule("asyncipc.transport.shared_memory")

__all__ = ["Arrivals", "Unloaded"]

logger: logging.Logger = logging.getLogger("asyncipc")

# The window of descriptors, in multiples of `Limits.max_descriptors`: credit is given back when
# half that number has gathered, so what is left of the window always suffices for one message.
WINDOW: Final = 2


class Unloaded:
    """What came beside one transfer (`asyncipc.wire.transfers.Beside`).

    :ivar attached: by segment
    :ivar size: bytes in shared memory
    """

    __slots__ = ("_arrivals", "_count", "_descriptors", "attached", "size")

    def __init__(self, arrivals: "Arrivals") -> None:
        self._arrivals = arrivals
        self._count = 0  # of descriptors
        self._descriptors: list[Fd] = []  # those that are attachments
        self.attached: dict[int, Attached] = {}
        self.size: int = 0

    @property
    def descriptors(self) -> int:
        """How many came, those of shared memory included."""
        return self._count

    def add_descriptors(self, count: int) -> list[int]:
        """Take descriptors that have come for this message."""
        self._count = count
        return self._arrivals.claim(count)

    def add_attached(self, at: int, descriptor: Fd) -> None:
        """A segment is this descriptor."""
        self.attached[at] = descriptor
        self._descriptors.append(descriptor)

    def finish(self, *, dropped: bool) -> None:
        """The message is complete, or will never be."""
        if dropped:
            self.close_descriptors()
        self._arrivals.finished(self._count)
        self.attached = {}

    def close_descriptors(self) -> None:
        """Nobody will take them."""
        for descriptor in self._descriptors:
            descriptor.close()


class Held:
    """A region that somebody here still looks at."""

    __slots__ = ("exporter", "length", "offset", "written")

    def __init__(self, exporter: "ref[Any]", offset: int, length: int, written: list[bool]) -> None:
        self.exporter: ref[Any] = exporter  # for its callback
        self.offset: int = offset
        self.length: int = length
        self.written: list[bool] = written


class Arrivals:
    """The attachments of what one session receives.

    :param max_descriptors: what the other side was told
    :param max_mapped: bytes of an arena up to which it is mapped; what is in a larger one is copied
    :param shares: it was told that this side takes shared memory
    :param accept: has the transport take descriptors
    :param send: sends a message
    :ivar descriptors_received: how many came
    :ivar shared_received: bytes that came through shared memory
    """

    __slots__ = (
        "_accept",
        "_accepted",
        "_came",
        "_due",
        "_gone",
        "_held",
        "_image",
        "_is_waking",
        "_loop",
        "_lost",
        "_max_mapped",
        "_pages",
        "_segment",
        "_send",
        "_shares",
        "_under_way",
        "_window",
        "descriptors_received",
        "shared_received",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        max_descriptors: int,
        *,
        max_mapped: int,
        shares: bool,
        accept: Callable[[], None],
        send: Callable[[list[Any]], object],
    ) -> None:
        self._loop = loop
        self._window = WINDOW * max_descriptors
        self._max_mapped = max_mapped
        self._shares = shares
        self._accept = accept
        self._accepted = False
        self._send = send
        # Lists: every session has them, and an empty deque takes ten times as much memory.
        self._came: list[list[int]] = []  # those of each write, until their frame is whole
        self._lost = False
        self._under_way = 0  # descriptors that came and were not credited
        self._due = 0  # of those, the ones that could be
        self._image: shared_memory.ArenaImage | shared_memory.ArenaReader | None = None
        self._segment = 0
        self._held: dict[int, Held] = {}
        self._pages: regions.HeldPages | None = None  # made with the image
        self._gone: list[int] = []
        self._is_waking = False
        self.descriptors_received: int = 0
        self.shared_received: int = 0

    # -- descriptors -------------------------------------------------------------------------

    def asked(self) -> None:
        """The other side wants to send descriptors: look for them from now on."""
        if not self._accepted:
            self._accepted = True
            self._accept()
            self._send([DESCRIPTORS, self._window])

    def put(self, descriptors: list[int], *, lost: bool) -> None:
        """Descriptors came; the frame that they belong to has begun."""
        self._came.append(descriptors)
        self._lost = self._lost or lost
        self._under_way += len(descriptors)
        self.descriptors_received += len(descriptors)

    def check_unclaimed(self, *, between_frames: bool) -> None:
        """After a read that brought descriptors.

        :raises LocalProtocolError: some were lost here
        :raises RemoteProtocolError: they are too many, or no message declares them
        """
        if self._lost:
            raise LocalProtocolError(
                "file descriptors that came were lost: this process has as many open as it may "
                "(RLIMIT_NOFILE)"
            )
        if self._under_way > self._window:
            raise RemoteProtocolError(
                f"the other side has {self._under_way} file descriptors under way, more than "
                f"{self._window} (twice Limits.max_descriptors)"
            )
        if self._came and (between_frames or len(self._came) > 1):
            raise RemoteProtocolError(
                f"the other side sent {len(self._came[0])} file descriptors with a frame that "
                "declares none"
            )

    def claim(self, count: int) -> list[int]:
        """The descriptors of a message that declares so many.

        :raises LocalProtocolError: some were lost here
        :raises RemoteProtocolError: as many did not come
        """
        came = len(self._came[0]) if self._came else 0
        if came != count or self._lost:
            self.check_unclaimed(between_frames=False)
            raise RemoteProtocolError(
                f"the other side declared {count} file descriptors, but {came} came"
            )
        return self._came.pop(0)

    def finished(self, count: int) -> None:
        """The message that had so many descriptors is complete, or dropped."""
        self._due += count
        if self._due >= self._window // (2 * WINDOW) and self._due:
            self._under_way -= self._due
            self._send([DESCRIPTORS, self._due])
            self._due = 0

    # -- messages ----------------------------------------------------------------------------

    def unload(self, lengths: list[Any]) -> tuple[list[int], Unloaded]:
        """Take what stands beside a transfer, as its `begin` declares it.

        :returns: the lengths of what comes in the stream, and the rest
        :raises RemoteProtocolError: it is not there
        """
        beside = Unloaded(self)
        entries = [(at, entry) for at, entry in enumerate(lengths) if type(entry) is not int]
        count = sum(1 for _, entry in entries if entry is None or len(entry) == 1)
        descriptors = deque(map(Fd, beside.add_descriptors(count))) if count else deque()
        try:
            for at, entry in entries:
                if entry is None:
                    beside.add_attached(at, descriptors.popleft())
                    continue
                if len(entry) == 1:
                    with descriptors.popleft() as memfd:
                        memory = self._map(memfd, entry[0])
                else:
                    memory = self.region(*entry)
                beside.attached[at] = memory
                beside.size += len(memory)
        except BaseException:
            for descriptor in descriptors:
                descriptor.close()
            beside.finish(dropped=True)
            raise
        return [entry if type(entry) is int else 0 for entry in lengths], beside

    def announced(self, segment: int, size: int, memfd: object) -> None:
        """The arena of the other side.

        :raises RemoteProtocolError: it is none, or a second one
        """
        if not isinstance(memfd, Fd) or not self._shares:
            raise RemoteProtocolError(f"the other side announced {shown(memfd)} as shared memory")
        with memfd:
            if self._image is not None:
                raise RemoteProtocolError("the other side announced a second arena")
            try:
                self._image = self._open_arena(memfd, size)
            except ValueError as error:
                raise RemoteProtocolError(f"the other side's arena: {error}") from error
        self._segment = segment
        self._pages = regions.HeldPages()

    def _open_arena(
        self, memfd: Fd, size: int
    ) -> "shared_memory.ArenaImage | shared_memory.ArenaReader":
        # Who looks into a hole of a mapping pays for the memory, so not more than this side uses.
        if size <= regions.whole_pages(self._max_mapped):
            with contextlib.suppress(OSError):  # too much is open or mapped in this process
                return shared_memory.ArenaImage(memfd.fileno(), size)
        return shared_memory.ArenaReader(memfd, size)

    def close(self) -> None:
        """The session is over. Views that are left keep the memory that they show."""
        for descriptors in self._came:
            for descriptor in descriptors:
                os.close(descriptor)
        self._came.clear()
        self._held.clear()
        self._image = None
        self._is_waking = True  # nobody is told any more

    # -- shared memory -------------------------------------------------------------------------

    def _map(self, memfd: Fd, size: int) -> "shared_memory.SharedBytes":
        if not self._shares:
            raise RemoteProtocolError("the other side sent shared memory, which was not agreed on")
        try:
            memory = shared_memory.received_memory(memfd.fileno(), size)
        except ValueError as error:
            raise RemoteProtocolError(f"the other side's shared memory: {error}") from error
        self.shared_received += size
        return memory

    def region(
        self, segment: int, number: int, offset: int, length: int
    ) -> "shared_memory.SharedBytes":
        """What the other side wrote into its arena.

        :raises RemoteProtocolError: there is no such region, or it was not given back
        """
        image, pages = self._image, self._pages
        if image is None or pages is None or segment != self._segment:
            raise RemoteProtocolError(
                f"the other side refers to segment {segment} of shared memory, which it has not "
                "announced"
            )
        if number in self._held:
            raise RemoteProtocolError(f"the other side sent region {number} twice")
        try:
            exporter = image.exporter(offset, length)
        except ValueError as error:
            raise RemoteProtocolError(f"the other side's region {number}: {error}") from error
        other = pages.hold(number, offset, length)
        if other is not None:
            # What was written to those pages here would show in it.
            raise RemoteProtocolError(
                f"the other side's region {number}, {length} bytes at {offset}, shares pages with "
                f"region {other}, which was not given back"
            )
        memory = shared_memory.SharedBytes(exporter, length)
        self.shared_received += length

        def gone(_: object) -> None:
            # At any moment, in any thread, also inside of this very class. So it only leaves a
            # note, and wakes the loop in the way in which loops are woken by finalizers
            # themselves (those of async generators).
            self._gone.append(number)
            if not self._is_waking:
                self._is_waking = True
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    self._loop.call_soon_threadsafe(self.return_regions)

        self._held[number] = Held(ref(exporter, gone), offset, length, memory.was_written)
        return memory

    def gather_regions(self) -> None:
        """What nobody looks at any more need not wake the loop: `return_regions` follows."""
        self._is_waking = True

    def return_regions(self) -> None:
        """Give back what nobody looks at any more, and be told again of what comes after."""
        image, pages = self._image, self._pages
        if image is None or pages is None:
            return
        self._is_waking = False
        if not self._gone:
            return
        numbers: list[int] = []
        while self._gone:
            number = self._gone.pop()
            held = self._held[number]
            if held.written:
                try:
                    image.forget(held.offset, held.length)
                except OSError as error:
                    # What comes there next would not be seen, so the sender does without it.
                    reason = error.strerror
                    logger.warning("a region of shared memory is lost to the session: %s", reason)
                    continue
            del self._held[number]
            pages.let_go(held.offset)
            numbers.append(number)
        if numbers:
            self._send([RELEASE, self._segment, numbers])
