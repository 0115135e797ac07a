"""What waits to be sent: coalescing, interleaving, and the bound on it all.

Messages written in one turn of the loop leave in one frame and one system call. A message that is
too large for that leaves in parts, between which everything else may pass. Order is kept only
where it means something: within a *lane*. Lane 0 holds requests and notifications, whose handlers
start in the order sent; every answered call has a lane of its own for its progress and its
terminal message. Cancels, pings, credit and goodbye have no lane and never wait behind anything.

Nothing here is a limit on its own: `Outbox.full` tells senders to wait, and what must never be
held back (replies, cancels, pings) is taken regardless, and counted where the other side asks for
it.

Layer 2, inside the session. Below: wire, transport.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, cast

from asyncipc.errors import FrameTooLarge
from asyncipc.session.busy_poll import BusyPoll
from asyncipc.session.frame_writer import BATCH_COUNT, BATCH_SIZE, FrameWriter
from asyncipc.session.lanes import Transfer
from asyncipc.session.placing import measure, owned
from asyncipc.session.sideband import Sideband
from asyncipc.session.sinks import NOWHERE, DescriptorSink, Sink
from asyncipc.wire.attachments import Attachment, Buffer, NoDescriptors
from asyncipc.wire.codec import Codec
from asyncipc.wire.messages import RETRACT

__all__ = ["Outbox"]

# What one turn of the loop may write before others get their turn.
TURN_SIZE: Final = 2 * 1024 * 1024


class Outbox(FrameWriter):
    """Gathers what a session sends and writes it to its transport.

    :param limit: bytes waiting above which `full` is true
    :param on_room: called when the outbox is no longer full
    :param busy_poll: see `FrameWriter`
    :ivar accepts_calls: the session is open for new requests and notifications
    :ivar sideband: what can go beside the stream, where the two sides have agreed on that
    :ivar corked: set while a read is being looked at: what is put gathers until `uncork`
    """

    __slots__ = (
        "_loop",
        "_on_room",
        "_on_written",
        "_scheduled",
        "_was_full",
        "accepts_calls",
        "corked",
        "limit",
        "sideband",
    )

    # Those of the frame writer that change here, too.
    is_blocked: bool
    size: int
    bytes_sent: int

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sink: Sink,
        limit: int,
        on_room: Callable[[], None],
        *,
        busy_poll: BusyPoll,
    ) -> None:
        super().__init__(sink, busy_poll)
        self._loop = loop
        self.limit: int = limit
        self._on_room = on_room
        self._on_written: tuple[Callable[[], object], ...] = ()
        self._scheduled = False
        self._was_full = False
        self.accepts_calls: bool = False
        self.corked: bool = False
        self.sideband: Sideband | None = None

    def open(
        self,
        codec: Codec,
        *,
        max_frame: int,
        max_message: int,
    ) -> None:
        """Begin to send in the codec and within the limits that the handshake settled."""
        super().open(codec, max_frame=max_frame, max_message=max_message)
        self.accepts_calls = True

    @property
    def full(self) -> bool:
        """More waits than the limit: senders that can wait should."""
        if self.size < self.limit:
            return False
        self._was_full = True
        return True

    @property
    def empty(self) -> bool:
        """Everything has been handed to the kernel."""
        return not (self.is_blocked or self._queue or self._lanes)

    def check_size(
        self, data: bytes, attachments: Sequence[Attachment], message: list[Any] | None = None
    ) -> int:
        """The size in bytes of an encoded message with what is attached.

        :param message: where it has attachments
        :raises FrameTooLarge: the other side would not take it
        :raises EncodeError: it holds a file descriptor, and cannot be sent one
        """
        size, descriptors = measure(attachments)
        if descriptors:
            if self.sideband is None:
                self._codec.encode(cast("list[Any]", message), NoDescriptors())  # knows the path
            else:
                self.sideband.outgoing().check_count(descriptors)
        size += len(data)
        if size > self._max_message:
            raise FrameTooLarge(
                f"the message has {size} bytes; "
                f"the other side's Limits.max_message is {self._max_message}"
            )
        return size

    def put(self, message: bytes, lane: int = -1, batch: int = BATCH_COUNT) -> bool:
        """Send an encoded message at the end of this turn of the loop.

        :param batch: or earlier, when so many messages have gathered
        :returns: True if it stands behind a large one of its lane, and may still be retracted
        """
        self.size += len(message)
        if self._lanes and lane in self._lanes:
            self._lanes[lane].append(message)
            return True
        self._queue.append(message)
        if self.size > BATCH_SIZE or len(self._queue) >= batch:
            self.flush()
        elif not (self._scheduled or self.corked):
            self._scheduled = True
            self._loop.call_soon(self._flush_scheduled)
        return False

    def put_now(self, message: bytes, lane: int = -1) -> bool:
        """`put` without waiting for the end of the turn: for whoever is alone and waits."""
        if not (self.is_blocked or self._queue or self._lanes):
            self._write_alone(message)
            return False
        waits = self.put(message, lane)
        self.flush()
        return waits

    def respond(self, message: bytes) -> None:
        """`put` what the other side causes as often as it likes, and is no answer to a call."""
        self._asides += 1
        self.put(message)
        if self.is_blocked:
            self._noted().note_response(self._taken + len(self._queue))

    def put_large(
        self,
        segments: Sequence[Attachment],
        lane: int,
        *,
        lasting: bool = True,
        alone: bool = False,
    ) -> Transfer:
        """Send a message in parts: the encoded message, then its attachments.

        :param lasting: the buffers do not change until it has left or was retracted; else they are
            copied
        :param alone: whoever waits for what it brings has nothing else under way
        :raises EncodeError: a file descriptor cannot be copied
        """
        if self.sideband is not None and len(segments) > 1:
            buffers, cargo = self.sideband.outgoing().place(segments, lasting=lasting)
        else:
            buffers, cargo = cast("Sequence[Buffer]", segments), None
            if not lasting:
                buffers = list(map(owned, buffers))
        transfer = Transfer(lane, buffers, cargo)
        self.size += transfer.outgoing.size
        self._lanes.add(transfer)
        self.flush()
        if alone and self.empty:
            self._busy_poll.sent()
        return transfer

    def retract(self, item: Transfer | bytes, lane: int) -> bool:
        """Drop what has not left of a message. Its buffers may change from now on.

        :returns: False if all of it has left already, so that the other side will get it
        """
        if isinstance(item, bytes):
            if not self._lanes.drop(item, lane):
                return False
            self.size -= len(item)
            return True
        if self.is_blocked and item.number:
            self._sink.copy_kept()
        item.outgoing.forget()
        if item.outgoing.finished or item.retracted:
            return item.retracted
        item.retracted = True
        self.size -= item.outgoing.size - item.outgoing.taken
        if item.number:
            # Not by `put`: that may write at once, and the transfer stands in its lane still.
            message = self._codec.encode([RETRACT, item.number], [])
            self._queue.append(message)
            self.size += len(message)
        if item is self._lanes[lane][0]:
            self._finish(item)
        else:
            item.end()  # `_finish` passes over it when its turn comes
        self.flush()
        return True

    def retract_lane(self, lane: int) -> None:
        """Drop what waits in a lane behind a large message, and what has not left of that."""
        for item in list(self._lanes.get(lane, ()))[::-1]:
            self.retract(item, lane)

    def when_left(self, item: Transfer | bytes, lane: int, callback: Callable[[], object]) -> None:
        """See `Lanes.when_left`."""
        self._lanes.when_left(item, lane, callback)

    def written(self) -> None:
        """The transport has taken what it kept."""
        self.is_blocked = False
        if self._raw:
            frames, self._raw = self._raw, ()
            self.is_blocked = not self._sink.write(frames)
        if not self.is_blocked:
            self._call_written()
        self.flush()

    def uncork(self) -> None:
        """Send what was gathered while `corked` was true.

        :raises RemoteProtocolError: the other side sends on and on, but does not read
        """
        self.corked = False
        queue = self._queue
        if len(queue) == 1 and not (self._lanes or self.is_blocked or self._was_full):
            self._queue = []
            self._asides = 0
            self._taken += 1
            self.size = 0
            self._write_alone(queue[0])
        elif queue or self._lanes:
            alone = len(queue) == 1 + self._asides and not self._lanes
            self.flush()
            if alone and self.empty:
                self._busy_poll.sent()
            if self._unread is not None:
                self._unread.check_responses(self._taken)

    async def drained(self) -> None:
        """Wait until everything has been handed to the kernel, or the session is over."""
        while not self.empty:
            future = self._loop.create_future()
            self._on_written += (partial(_resolve, future),)
            await future

    def flush(self) -> None:
        """Write until nothing is left, the transport is full, or others should have a turn."""
        written = copied = 0
        while not self.is_blocked:
            if self._queue:
                frame = self._next_frame()
                written += len(frame)
                self.is_blocked = not self._sink.write((frame,))
            elif self._lanes:
                if written + copied >= TURN_SIZE:
                    self._schedule()
                    break
                transfer = self._lanes.next_transfer(self._max_message)
                if transfer is None:
                    break  # the other side will say when it takes what goes beside it
                placing = None if self.sideband is None else self.sideband.placing
                size, region = transfer.share_some(placing)
                copied += size
                if region is not None or not size:
                    written += self._write_part(transfer, region, size)
            else:
                break
        self.bytes_sent += written
        if not self.is_blocked:
            self._unread = None
            if self._on_written:
                self._call_written()
        if self._was_full and self.size < self.limit:
            self._was_full = False
            self._on_room()

    def flush_last(self) -> None:
        """`flush` where nothing else is about to be sent, as far as is known."""
        alone = len(self._queue) == 1 and not self._lanes
        self.flush()
        if alone and not self._queue:
            self._busy_poll.sent()

    def close(self) -> None:
        """The session is over: nothing more is sent, and nothing is kept alive."""
        self.accepts_calls = False
        self._raw = ()
        self._queue.clear()
        transfers = list(self._lanes.transfers())
        self._lanes.clear()
        self.size = 0
        for transfer in transfers:
            transfer.end()
        self._sink = NOWHERE
        self._busy_poll.stop()
        self.written()
        if self.sideband is not None:
            self.sideband.close_outgoing()

    def _call_written(self) -> None:
        callbacks, self._on_written = self._on_written, ()
        for callback in callbacks:
            callback()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush_scheduled)

    def _flush_scheduled(self) -> None:
        self._scheduled = False
        self.flush()

    def _write_part(self, transfer: Transfer, region: list[int] | None, shared: int) -> int:
        """Write the next part of a transfer; return its size in bytes.

        :param region: where the next ``shared`` bytes are, if not in the stream
        """
        frame, size, descriptors = self._lanes.next_frame(
            transfer, region, self._codec.encode, self._max_frame
        )
        self.size -= size + shared
        if descriptors:
            sink = cast("DescriptorSink", self._sink)
            self.is_blocked = not sink.write_with_descriptors(frame, descriptors)
        else:
            self.is_blocked = not self._sink.write(frame)
        if transfer.outgoing.finished:
            self._finish(transfer)
        return len(frame[0]) + size

    def _finish(self, transfer: Transfer) -> None:
        """A transfer has left or was dropped: what stands behind it in its lane may go."""
        self._queue += self._lanes.leave(transfer)
        if self.is_blocked and transfer.number:
            self._on_written += (transfer.end,)  # the transport still has what belongs to it
        else:
            transfer.end()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
