"""What waits to be sent: coalescing, interleaving, and the bound on it all.

Messages written in one turn of the loop leave in one frame and one system call. A message that is
too large for that leaves in parts, between which everything else may pass. Order is kept only
where it means something: within a *lane*. Lane 0 holds requests and notifications, whose handlers
start in the order sent; every answered call has a lane of its own for its progress and its
terminal message. Cancels, pings, credit and goodbye have no lane and never wait behind anything.

Nothing here is a limit on its own: `Outbox.full` tells senders to wait, and what must never be
held back (replies, cancels, pings) is taken regardless.

Layer 2, inside the session. Below: wire, transport.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, cast

from asyncipc.errors import FrameTooLarge, RemoteProtocolError
from asyncipc.session.busy_poll import BusyPoll
from asyncipc.session.lanes import Lanes, Transfer
from asyncipc.session.placing import measure, owned
from asyncipc.session.sideband import Sideband
from asyncipc.session.sinks import NOWHERE, DescriptorSink, Sink
from asyncipc.wire.attachments import Attachment, Buffer, NoDescriptors
from asyncipc.wire.codec import Codec
from asyncipc.wire.framing import frame_header
from asyncipc.wire.messages import RETRACT

__all__ = ["Outbox"]

# A message above this travels as a transfer. Below, copying it into a common frame is cheaper.
INLINE_SIZE: Final = 32 * 1024

# A batch that has grown this far is sent at once, without waiting for the end of the turn: the
# other side can begin, and the frame still fits its read buffer.
BATCH_SIZE: Final = 64 * 1024

# So is one of this many calls or answers: with all of them in one frame, the two sides would work
# in turns instead of side by side. Measured: with 64 calls in flight about 1.5 times as many are
# answered; smaller batches cost more system calls than they gain.
BATCH_COUNT: Final = 16

# Nobody waits for notifications, so more of them gather. Not as many as would fit: measured, what a
# batch of 256 unpacks to is still in the cache when it is served, which makes serving a tenth
# cheaper than with thousands.
NOTIFICATION_BATCH: Final = 256

# What one turn of the loop may write before others get their turn.
TURN_SIZE: Final = 2 * 1024 * 1024

# Bytes of a frame that are kept free for what makes one envelope of several messages.
BATCH_HEADER: Final = 16

# Messages that wait for a side which goes on sending. What is never held back (answers, pongs) is
# bounded by what a well-behaved side asks for at once; this is far above.
MAX_UNREAD: Final = 100_000


class Outbox:
    """Gathers what a session sends and writes it to its transport.

    :param limit: bytes waiting above which `full` is true
    :param on_room: called when the outbox is no longer full
    :param busy_poll: is told when something has left alone
    :ivar accepts_calls: the session is open for new requests and notifications
    :ivar is_blocked: the transport keeps what it was given last, because the other side does not
        read, or not as fast
    :ivar sideband: what can go beside the stream, where the two sides have agreed on that
    :ivar corked: set while a read is being looked at: what is put gathers until `uncork`
    """

    __slots__ = (
        "_answers",
        "_busy_poll",
        "_codec",
        "_lanes",
        "_loop",
        "_max_batch",
        "_max_frame",
        "_max_message",
        "_on_room",
        "_on_written",
        "_queue",
        "_raw",
        "_scheduled",
        "_sink",
        "_taken",
        "_was_full",
        "accepts_calls",
        "bytes_sent",
        "corked",
        "inline_size",
        "is_blocked",
        "limit",
        "sideband",
        "size",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sink: Sink,
        limit: int,
        on_room: Callable[[], None],
        *,
        busy_poll: BusyPoll,
    ) -> None:
        self._loop = loop
        self._sink = sink
        self.limit: int = limit
        self._on_room = on_room
        self._busy_poll = busy_poll
        self._queue: list[bytes] = []
        self._lanes = Lanes()
        self._on_written: tuple[Callable[[], object], ...] = ()
        self._scheduled = False
        self.is_blocked: bool = False
        self._taken = 0  # messages that have left the queue
        self._answers: deque[int] | None = None  # where answers stand, counted like `_taken`
        self._raw: tuple[bytes, ...] = ()
        self._was_full = False
        self.accepts_calls: bool = False
        self.corked: bool = False
        self.sideband: Sideband | None = None
        self.size: int = 0
        self.bytes_sent: int = 0

    def open(
        self,
        codec: Codec,
        *,
        max_frame: int,
        max_message: int,
    ) -> None:
        """Begin to send in the codec and within the limits that the handshake settled."""
        self._codec = codec
        self._max_frame = max_frame
        self._max_message = max_message
        self._max_batch = min(BATCH_SIZE + INLINE_SIZE, max_frame - BATCH_HEADER)
        self.inline_size: int = min(INLINE_SIZE, max_frame // 2, max_message)
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

    def send_raw(self, envelope: bytes) -> None:
        """Send an envelope of the handshake, before `open` or instead of it."""
        frame = frame_header(len(envelope)) + envelope
        self.bytes_sent += len(frame)
        if self.is_blocked:
            self._raw += (frame,)
        else:
            self.is_blocked = not self._sink.write((frame,))

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

    def note_answer(self) -> None:
        """The last message put is an answer, and the transport is blocked."""
        if self._answers is None:
            self._answers = deque()
        self._answers.append(self._taken + len(self._queue))

    def count_answers(self) -> int:
        """Of the answers noted, those that have not left."""
        answers = self._answers
        if answers is None:
            return 0
        while answers and answers[0] <= self._taken:
            answers.popleft()
        return len(answers)

    def put_large(
        self,
        segments: Sequence[Attachment],
        lane: int,
        done: Callable[[], object] | None = None,
        *,
        lasting: bool = True,
    ) -> Transfer:
        """Send a message in parts: the encoded message, then its attachments.

        :param lasting: the buffers do not change until ``done`` is called; else they are copied
        :raises EncodeError: a file descriptor cannot be copied
        """
        if self.sideband is not None and len(segments) > 1:
            buffers, cargo = self.sideband.outgoing().place(segments, lasting=lasting)
        else:
            buffers, cargo = cast("Sequence[Buffer]", segments), None
            if not lasting:
                buffers = list(map(owned, buffers))
        transfer = Transfer(lane, buffers, cargo, done)
        self.size += transfer.outgoing.size
        self._lanes.add(transfer)
        self.flush()
        if self.empty:
            self._busy_poll.sent()
        return transfer

    def retract(self, item: Transfer | bytes, lane: int) -> bool:
        """Drop what has not left of a message.

        :returns: False if all of it has left already, so that the other side will get it
        """
        if isinstance(item, bytes):
            if not self._lanes.drop(item, lane):
                return False
            self.size -= len(item)
            return True
        if item.outgoing.finished or item.retracted:
            return item.retracted
        item.retracted = True
        self.size -= item.outgoing.size - item.outgoing.taken
        if item.number:
            self.put(self._codec.encode([RETRACT, item.number], []))
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

    def when_left(self, item: Transfer | bytes, lane: int, callback: Callable[[], None]) -> None:
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
            self._taken += 1
            self.size = 0
            self._write_alone(queue[0])
        elif queue or self._lanes:
            self.flush()
            if self.is_blocked and len(self._queue) + len(self._lanes) > MAX_UNREAD:
                raise RemoteProtocolError(
                    f"the other side keeps asking but reads no answers: {len(self._queue)} "
                    f"messages wait for it, more than {MAX_UNREAD} allowed"
                )

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
            self._answers = None
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

    def _write_alone(self, message: bytes) -> None:
        """Write one message that nothing stands before or behind."""
        frame = frame_header(len(message)) + message
        self.bytes_sent += len(frame)
        self.is_blocked = not self._sink.write((frame,))
        self._busy_poll.sent()

    def _next_frame(self) -> bytes:
        """All that waits, or as much of it as one frame may hold."""
        queue = self._queue
        if len(queue) == 1:
            envelope = queue[0]
            self._queue = []
            self._taken += 1
            self.size -= len(envelope)
        elif self.size <= self._max_batch and not self._lanes:
            self._queue = []
            self._taken += len(queue)
            self.size = 0
            envelope = self._codec.join(queue)
        else:
            envelope = self._join_some()
        return frame_header(len(envelope)) + envelope

    def _join_some(self) -> bytes:
        """The first messages of a queue that may be too long for one frame."""
        queue = self._queue
        size = taken = 0
        for message in queue:
            if size and size + len(message) > min(BATCH_SIZE, self._max_batch):
                break
            size += len(message)
            taken += 1
        self._queue = queue[taken:]
        self._taken += taken
        self.size -= size
        return queue[0] if taken == 1 else self._codec.join(queue[:taken])

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
        if self.is_blocked:
            self._on_written += (transfer.end,)  # the transport still reads the buffers
        else:
            transfer.end()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
