"""One direction of a stream, at the end that receives: what has come, and giving credit for it.

Holds what the window allows the other side to have under way, and no more. Credit goes back when
items are taken, in portions: a reader that stops stops its producer, and nothing else.

Layer 2, inside the session. Below: the outbox, wire.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final, Protocol, Self

from asyncipc.errors import DecodeError, RemoteProtocolError
from asyncipc.session.item_sender import SMALLEST_COST
from asyncipc.session.outbox import Outbox
from asyncipc.session.placing import measure
from asyncipc.wire.attachments import Attachment
from asyncipc.wire.codec import Codec
from asyncipc.wire.messages import CREDIT, ITEMS, STOP

__all__ = ["ItemReceiver", "ReceivingSide"]

# Credit goes back when this share of the window may be used up: seldom enough to cost little,
# early enough that a steady sender never stops.
CREDIT_SHARE: Final = 4


# The other side may encode the same values in fewer bytes than this one. Not in half as many.
UNSURE: Final = 2


# Values, the most that they cost their sender, the least, whether that is still to be looked at,
# and what drops them.
_Message = tuple[list[Any], int, int, bool, Callable[[], None] | None]


class ReceivingSide(Protocol):
    """What a receiver needs of its session."""

    loop: asyncio.AbstractEventLoop
    outbox: Outbox
    codec: Codec
    granted: int


class ItemReceiver(AsyncIterator[Any]):
    """The items that the other side sends for one call; iterating takes them.

    :param lane: the id of the call, as it stands in messages of this side
    :param broken: called when items came that cannot be understood here
    :ivar convert: makes of an item what the reader takes
    :ivar ended: the other side has said that it sends no more
    :ivar over: nothing more will come, for whatever reason
    :ivar ready: what is left of the first message
    """

    __slots__ = (
        "_doubtful",
        "_due",
        "_error",
        "_finished",
        "_finished_cost",
        "_lane",
        "_messages",
        "_side",
        "_taken",
        "_under_way",
        "_unweighed",
        "_waiting",
        "broken",
        "convert",
        "ended",
        "over",
        "ready",
    )

    def __init__(
        self, side: ReceivingSide, lane: int, broken: Callable[[DecodeError], None]
    ) -> None:
        self._side = side
        self._lane = lane
        self._messages: deque[_Message] = deque()
        self.ready: Iterator[Any] = iter(())
        self._taken: tuple[int, int] | None = None  # what that message cost
        self._finished = 0  # messages, since credit was last given; they cost ...
        self._finished_cost = 0  # ... at least this
        self._due = 0  # ... at most this
        self._under_way = 0  # the least that all messages without credit cost
        self._unweighed = 0  # how many came last, and ...
        self._doubtful = 0  # ... how much more these may have cost
        self._waiting: list[asyncio.Future[None]] = []
        self._error: BaseException | None = None
        self.ended: bool = False
        self.over: bool = False
        self.convert: Callable[[Any], Any] | None = None
        self.broken: Callable[[DecodeError], None] = broken

    # -- what comes ------------------------------------------------------------------------

    def receive(
        self,
        values: list[Any],
        most: int,
        least: int,
        doubt: int | None,
        drop: Callable[[], None] | None,
    ) -> None:
        """Items came.

        :param most: what the message may have cost its sender, in bytes
        :param least: what it did cost
        :param doubt: how much more those of its frame may have cost, if they are to be looked at
            before the credit counts as overrun; else None
        :param drop: closes the file descriptors among them, if there are any
        :raises RemoteProtocolError: there was no credit for them, or they stand behind the end
        """
        if self.ended:
            raise RemoteProtocolError("the other side sent items behind their end")
        if self.over:
            if drop is not None:
                drop()
            return
        if self._doubtful and self._under_way + self._doubtful >= self._side.granted:
            self._weigh()
        if self._under_way >= self._side.granted:
            raise RemoteProtocolError(
                f"the other side sent items while at least {self._under_way} bytes of them were "
                f"under way; Limits.stream_credit is {self._side.granted}"
            )
        least = max(least, SMALLEST_COST)
        self._under_way += least
        if doubt is not None or self._unweighed:
            self._unweighed += 1
            self._doubtful += doubt or 0
        self._messages.append((values, max(most, least), least, doubt is not None, drop))
        if self._waiting:
            self._wake()

    def received_together(self, count: int, beyond: int) -> None:
        """The last messages came in one frame, and cost that much more.

        It is put down to the first of them, so that it is gone with the first credit: which of them
        cost it is not known.
        """
        if not self.over and len(self._messages) >= count:
            values, most, least, is_doubtful, drop = self._messages[-count]
            self._messages[-count] = values, most, least + beyond, is_doubtful, drop
            self._under_way += beyond

    def end(self) -> None:
        """The other side has said that it sends no more.

        :raises RemoteProtocolError: it had said so before
        """
        if self.ended:
            raise RemoteProtocolError("the other side ended the items of one call twice")
        self.ended = True
        self.finish(None)

    def finish(self, error: BaseException | None) -> None:
        """Nothing more will come; the reader hears of it behind what has come before.

        :param error: why; None for an end in good order
        """
        if not self.over:
            self.over = True
            self._error = error
            self._wake()

    def close(self) -> None:
        """Nobody reads any longer: what has come is dropped, and so is what comes."""
        self.over = True
        for *_, drop in self._messages:
            if drop is not None:
                drop()
        self._messages.clear()
        self.ready = iter(())
        self._taken = None
        self._wake()

    def stop(self) -> None:
        """`close`, and tell the other side, which may be waiting for credit."""
        if not self.over:
            self._side.outbox.put(self._side.codec.encode([STOP, self._lane], []))
        self.close()

    @property
    def is_read(self) -> bool:
        """There is nothing left of what has come that `close` would have to drop."""
        return not self._messages

    # -- reading ---------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        """The next item.

        :raises Exception: what ended the stream, if it did not end in good order
        """
        for value in self.ready:  # the shortest way to the next, if there is one
            return value
        return await self.next()

    async def next(self) -> Any:
        """The next item, which may have to be waited for; see `__anext__`."""
        while True:
            for value in self.ready:  # another reader was faster, and left some
                return value
            if self._taken is not None:
                self._settle(*self._taken)
                self._taken = None
            if self._messages:
                values, most, least, *_ = self._messages.popleft()
                self._taken = most, least
                self.ready = iter(values if self.convert is None else map(self.convert, values))
            elif self.over:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            else:
                future = self._side.loop.create_future()
                self._waiting.append(future)
                await future

    def _settle(self, most: int, least: int) -> None:
        """A message was taken: give credit when enough were."""
        self._finished += 1
        self._finished_cost += least
        self._due += most
        if self._due * CREDIT_SHARE >= self._side.granted and not self.over:
            credit = [CREDIT, self._lane, self._finished]
            self._side.outbox.respond(self._side.codec.encode(credit, []))
            self._under_way -= self._finished_cost
            self._finished = self._finished_cost = self._due = 0

    def _weigh(self) -> None:
        """Look closer at what came in batches with others, of which that much is not credited."""
        messages = self._messages
        for at in range(max(0, len(messages) - self._unweighed), len(messages)):
            values, most, least, is_doubtful, drop = messages[at]
            if is_doubtful:
                weighed = max(least, self._weight(values, most) // UNSURE)
                self._under_way += weighed - least
                messages[at] = values, most, weighed, False, drop
        self._unweighed = self._doubtful = 0

    def _weight(self, values: list[Any], most: int) -> int:
        attachments: list[Attachment] = []
        try:
            data = self._side.codec.encode([ITEMS, self._lane, values], attachments)
        except Exception:  # noqa: BLE001 - so this side would never have sent it, and cannot tell
            return most
        return min(most, len(data) + measure(attachments)[0])

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)
