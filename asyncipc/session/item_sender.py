"""One direction of a stream, at the end that sends: gathering items, and the credit they cost.

The receiver grants a window in bytes. The sender counts what each message of items costs, and
waits when the window is used up; the receiver says how many messages it has finished with. So
only one side ever counts bytes, and the two cannot drift apart; see also
`asyncipc.session.notifications`.

Layer 2, inside the session. Below: the outbox, wire.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from asyncipc.errors import EncodeError, FrameTooLarge, RemoteProtocolError
from asyncipc.session.frame_writer import NOTIFICATION_BATCH
from asyncipc.session.lending import HARMLESS, holds_lent
from asyncipc.session.outbox import Outbox
from asyncipc.session.placing import close_given, has_descriptors
from asyncipc.wire.attachments import Attachment
from asyncipc.wire.codec import Codec
from asyncipc.wire.messages import END, ITEMS

__all__ = ["SMALLEST_COST", "CallOver", "ItemSender", "SendingSide", "descriptors_cost"]

# A message of items costs at least this many bytes, so that credit bounds their number too.
SMALLEST_COST: Final = 64

# Items that are ready together travel in one message of about this many bytes: enough that what a
# message costs does not count beside its items, and a small part of any window.
MESSAGE_SIZE: Final = 16 * 1024

# A message that came out larger than this is made again, of fewer items.
LARGEST_MESSAGE: Final = 2 * MESSAGE_SIZE

# Items of one message. More gain nothing; and what they weigh is known only once they are encoded.
MOST_ITEMS: Final = 512

# How many are tried first, while nothing is known of their size.
FIRST_ITEMS: Final = 32

# Text or bytes of this length are sent without waiting for more. (So is what holds something lent.)
LARGE_ITEM: Final = 4 * 1024
SIZED: Final = frozenset({str, bytes})


class CallOver(Exception):
    """Nothing can be sent any longer: the call has ended in good order, or nobody takes more."""


class SendingSide(Protocol):
    """What a sender needs of its session."""

    loop: asyncio.AbstractEventLoop
    outbox: Outbox
    codec: Codec
    window: int
    items_sent: int
    stalls: int

    def wait_for_room(self, sender: "ItemSender") -> None:
        """Call the sender's `wake` when the outbox is no longer full."""


class ItemSender:
    """Sends items.

    :param lane: the id of the call, as it stands in messages of this side
    :ivar batch: how many items go into one message, as far as their size is known
    :ivar ended: this side has said that it sends no more
    """

    __slots__ = (
        "_costs",
        "_credit",
        "_error",
        "_is_held",
        "_lane",
        "_scheduled",
        "_side",
        "_values",
        "_waiting",
        "batch",
        "ended",
    )

    def __init__(self, side: SendingSide, lane: int) -> None:
        self._side = side
        self._lane = lane
        self._credit = side.window
        self._costs: deque[int] = deque()  # of the messages under way, in the order sent
        self._values: list[Any] = []  # gathered, not encoded yet
        self.batch: int = FIRST_ITEMS
        self._scheduled = False
        self._is_held = False
        self._waiting: list[asyncio.Future[None]] = []
        self._error: BaseException | None = None  # why nothing more can be sent
        self.ended: bool = False

    def hold(self) -> Callable[[], None]:
        """Send nothing yet; returns what is to be called when sending may begin."""
        window, self._credit = self._credit, 0
        self._is_held = True

        def release() -> None:
            self._is_held = False
            if self._error is None:
                self._credit += window
                self._go_on()
                if self.ended:
                    self._put_end()

        return release

    # -- many items, from one producer -----------------------------------------------------

    def gather(self, value: Any) -> bool:
        """Send an item, together with those that follow before the end of this turn of the loop.

        :returns: True if the producer should `pause` before its next
        """
        values = self._values
        values.append(value)
        kind = type(value)
        if kind is dict:  # the commonest by far, and so looked into here
            for each in value.values():
                if type(each) not in HARMLESS and holds_lent(each):
                    self.flush()
                    return True
        elif (
            len(value) >= LARGE_ITEM
            if kind in SIZED
            else kind not in HARMLESS and holds_lent(value)
        ):
            self.flush()
            return True
        if len(values) >= self.batch:
            self.flush()
            return True
        if not self._scheduled:
            self._scheduled = True
            self._side.loop.call_soon(self._flush_scheduled)
        return self._credit <= 0

    async def pause(self) -> None:
        """Give others a turn, and wait until the next item may be sent.

        :raises Exception: nothing more can be sent, or an item that was gathered cannot be
        """
        await asyncio.sleep(0)
        await self.ready()

    async def drain(self) -> None:
        """Wait until everything gathered is on its way.

        :raises Exception: as `pause`
        """
        self.flush()
        while self._values:
            await self.ready()
            self.flush()
        if self._error is not None:
            raise self._error

    def flush(self) -> None:
        """Send what was gathered, as far as there is credit."""
        while self._values and self._credit > 0 and self._error is None:
            values = self._values[: self.batch]
            try:
                data, attachments = self._encoded(values)
                if len(data) > LARGEST_MESSAGE and len(values) > 1:
                    self.batch = max(1, len(values) * MESSAGE_SIZE // len(data))
                    continue
                if len(values) > 1 and has_descriptors(attachments):
                    self.batch = 1  # so that who does not read a message knows what to close
                    continue
                self._put(values, data, attachments)
            except (EncodeError, FrameTooLarge) as error:
                if len(values) > 1:
                    self.batch = 1  # those before the culprit are sent
                    continue
                self.close(error)
                return
            del self._values[: len(values)]
            room = MESSAGE_SIZE * len(values) // len(data)
            self.batch = min(room or 1, 2 * self.batch, MOST_ITEMS)

    def _flush_scheduled(self) -> None:
        self._scheduled = False
        self.flush()

    # -- single items ----------------------------------------------------------------------

    async def send(self, value: Any) -> None:
        """Wait until it may be sent, and send one item.

        :raises EncodeError: it cannot be sent
        :raises FrameTooLarge: it is larger than the other side takes
        :raises CallOver: nobody takes it any longer, or the end was sent meanwhile
        :raises Exception: what else ended it
        """
        await self.ready()
        if self.ended:
            raise CallOver
        data, attachments = self._encoded([value])
        self._put([value], data, attachments)

    async def ready(self) -> None:
        """Wait until there is credit, and room in the outbox.

        :raises Exception: nothing more can be sent
        """
        stalled = False
        while self._error is None:
            if self._credit > 0:
                if not self._side.outbox.full:
                    return
                self._side.wait_for_room(self)
            elif not stalled:
                stalled = True
                self._side.stalls += 1
            future = self._side.loop.create_future()
            self._waiting.append(future)
            await future
        raise self._error

    def end(self) -> None:
        """Say that no more items come; everything was sent before."""
        if not self.ended and self._error is None:
            self.ended = True
            if not self._is_held:
                self._put_end()

    # -- what comes back -------------------------------------------------------------------

    def credited(self, count: int) -> None:
        """The other side has finished with so many messages.

        :raises RemoteProtocolError: more than were under way
        """
        if self._error is not None:
            return
        costs = self._costs
        if count > len(costs):
            raise RemoteProtocolError(
                f"the other side gave credit for {count} messages of items, "
                f"but {len(costs)} were under way"
            )
        for _ in range(count):
            self._credit += costs.popleft()
        self._go_on()

    def close(self, error: BaseException) -> None:
        """Send nothing more, and tell all who want to why."""
        if self._error is None:
            self._error = error
        self._credit = 0
        if self._values and self._side.outbox.sideband is not None:
            self._give_away()
        self._values.clear()
        self.wake()

    def retract(self) -> None:
        """Drop what has not left."""
        self._side.outbox.retract_lane(self._lane)

    def wake(self) -> None:
        """Something changed: those who wait look again."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def _go_on(self) -> None:
        if self._credit > 0:
            self.flush()
            self.wake()

    def _put_end(self) -> None:
        if self._error is None:
            self._side.outbox.put(self._side.codec.encode([END, self._lane], []), self._lane)

    def _give_away(self) -> None:
        """What was gathered is the other side's to close, and will not get there."""
        with contextlib.suppress(EncodeError):
            close_given(self._encoded(self._values)[1])

    def _encoded(self, values: list[Any]) -> tuple[bytes, list[Attachment]]:
        attachments: list[Attachment] = []
        return self._side.codec.encode([ITEMS, self._lane, values], attachments), attachments

    def _put(self, values: list[Any], data: bytes, attachments: list[Attachment]) -> None:
        """Send items, encoded.

        :raises EncodeError: there is a file descriptor among them that cannot be sent
        :raises FrameTooLarge: they are larger than the other side takes
        """
        outbox = self._side.outbox
        cost = len(data)
        if attachments or cost > outbox.inline_size:
            cost = outbox.check_size(data, attachments, [ITEMS, self._lane, values])
            # Nobody waits until it has left, so what its owner could change meanwhile is copied.
            transfer = outbox.put_large([data, *attachments], self._lane, lasting=False)
            if transfer.descriptors and outbox.sideband is not None:
                most = outbox.sideband.max_descriptors
                cost = max(cost, descriptors_cost(transfer.descriptors, self._side.window, most))
        else:
            outbox.put(data, self._lane, NOTIFICATION_BATCH)
        cost = max(cost, SMALLEST_COST)
        self._credit -= cost
        self._costs.append(cost)
        self._side.items_sent += len(values)


def descriptors_cost(count: int, window: int, most: int) -> int:
    """What a message of items costs at least for the descriptors that go with it.

    So a reader that stops holds about as many as one message may have, and not thousands.

    :param window: bytes of items that may be under way
    :param most: descriptors that one message may have
    """
    return count * window // max(1, most)
