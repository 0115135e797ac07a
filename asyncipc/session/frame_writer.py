"""Writing frames: the messages that wait, as many in each as fit, and how much of it all there is.

Layer 2, inside the session. Above: the outbox, which decides when. Below: lanes, wire, transport.
"""

from typing import Final

from asyncipc.session.busy_poll import BusyPoll
from asyncipc.session.lanes import Lanes
from asyncipc.session.sinks import Sink
from asyncipc.session.unread import Unread
from asyncipc.wire.codec import Codec
from asyncipc.wire.framing import frame_header

__all__ = ["BATCH_COUNT", "BATCH_SIZE", "NOTIFICATION_BATCH", "FrameWriter"]

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

# Bytes of a frame that are kept free for what makes one envelope of several messages.
BATCH_HEADER: Final = 16


class FrameWriter:
    """Writes what waits to a transport, a frame at a time.

    :param busy_poll: is told when something has left alone
    :ivar is_blocked: the transport keeps what it was given last, because the other side does not
        read, or not as fast
    :ivar inline_size: bytes above which a message does not wait here, but travels in parts
    :ivar size: bytes that wait, those of large messages included
    :ivar bytes_sent: bytes of the frames written
    """

    __slots__ = (
        "_asides",
        "_busy_poll",
        "_codec",
        "_lanes",
        "_max_batch",
        "_max_frame",
        "_max_message",
        "_queue",
        "_raw",
        "_sink",
        "_taken",
        "_unread",
        "bytes_sent",
        "inline_size",
        "is_blocked",
        "size",
    )

    def __init__(self, sink: Sink, busy_poll: BusyPoll) -> None:
        self._sink = sink
        self._busy_poll = busy_poll
        self._queue: list[bytes] = []
        self._lanes = Lanes()  # large messages, and what stands behind them: not written here
        self._asides = 0  # messages in the queue that have no answer, and are none
        self._taken = 0  # messages that have left the queue
        self._unread: Unread | None = None  # made when the transport is blocked
        self._raw: tuple[bytes, ...] = ()
        self.is_blocked: bool = False
        self.size: int = 0
        self.bytes_sent: int = 0

    def open(self, codec: Codec, *, max_frame: int, max_message: int) -> None:
        """Begin to write messages, in the codec and within the limits that were agreed on."""
        self._codec = codec
        self._max_frame = max_frame
        self._max_message = max_message
        self._max_batch = min(BATCH_SIZE + INLINE_SIZE, max_frame - BATCH_HEADER)
        self.inline_size: int = min(INLINE_SIZE, max_frame // 2, max_message)

    def send_raw(self, envelope: bytes) -> None:
        """Send an envelope of the handshake, before `open` or instead of it."""
        frame = frame_header(len(envelope)) + envelope
        self.bytes_sent += len(frame)
        if self.is_blocked:
            self._raw += (frame,)
        else:
            self.is_blocked = not self._sink.write((frame,))

    def note_answer(self) -> None:
        """The last message put is an answer, and the transport is blocked."""
        self._noted().note_answer(self._taken + len(self._queue))

    def count_answers(self) -> int:
        """Of the answers noted, those that have not left."""
        return 0 if self._unread is None else self._unread.count_answers(self._taken)

    def _noted(self) -> Unread:
        if self._unread is None:
            self._unread = Unread()
        return self._unread

    def _write_alone(self, message: bytes) -> None:
        """Write one message that nothing stands before or behind."""
        frame = frame_header(len(message)) + message
        self.bytes_sent += len(frame)
        self.is_blocked = not self._sink.write((frame,))
        self._busy_poll.sent()

    def _next_frame(self) -> bytes:
        """All that waits, or as much of it as one frame may hold."""
        queue = self._queue
        self._asides = 0
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
