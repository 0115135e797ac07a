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
from asyncipc.wire.codec import Codec
from asyncipc.wire.messages import CREDIT

__all__ = ["ItemReceiver", "ReceivingSide"]

# Credit goes back when this share of the window may be used up: seldom enough to cost little,
# early enough that a steady sender never stops.
CREDIT_SHARE: Final = 4


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
    """

    __slots__ = (
        "_due",
        "_error",
        "_finished",
        "_finished_cost",
        "_lane",
        "_messages",
        "_ready",
        "_side",
        "_taken",
        "_under_way",
        "_waiting",
        "broken",
        "convert",
        "ended",
        "over",
    )

    def __init__(
        self, side: ReceivingSide, lane: int, broken: Callable[[DecodeError], None]
    ) -> None:
        self._side = side
        self._lane = lane
        # Values, the largest they may have cost their sender, the least, and what drops them.
        self._messages: deque[tuple[list[Any], int, int, Callable[[], None] | None]] = deque()
        self._ready: Iterator[Any] = iter(())  # what is left of the first message
        self._taken: tuple[int, int] | None = None  # what that message cost
        self._finished = 0  # messages, since credit was last given; they cost ...
        self._finished_cost = 0  # ... at least this
        self._due = 0  # ... at most this
        self._under_way = 0  # the least that all messages without credit cost
        self._waiting: list[asyncio.Future[None]] = []
        self._error: BaseException | None = None
        self.ended: bool = False
        self.over: bool = False
        self.convert: Callable[[Any], Any] | None = None
        self.broken: Callable[[DecodeError], None] = broken

    # -- what comes ------------------------------------------------------------------------

    def receive(
        self, values: list[Any], size: int, drop: Callable[[], None] | None, *, alone: bool
    ) -> None:
        """Items came.

        :param size: bytes of the frame, or of the transfer
        :param drop: closes the file descriptors among them, if there are any
        :param alone: nothing else was in it, so that this is what the message cost
        :raises RemoteProtocolError: there was no credit for them, or they stand behind the end
        """
        if self.ended:
            raise RemoteProtocolError("the other side sent items behind their end")
        if self.over:
            if drop is not None:
                drop()
            return
        if self._under_way >= self._side.granted:
            raise RemoteProtocolError(
                f"the other side sent items while at least {self._under_way} bytes of them were "
                f"under way; Limits.stream_credit is {self._side.granted}"
            )
        size = max(size, SMALLEST_COST)
        least = size if alone else SMALLEST_COST
        self._under_way += least
        self._messages.append((values, size, least, drop))
        if self._waiting:
            self._wake()

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
        self._ready = iter(())
        self._taken = None
        self._wake()

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
        for value in self._ready:  # the shortest way to the next, if there is one
            return value
        return await self.next()

    async def next(self) -> Any:
        """The next item, which may have to be waited for; see `__anext__`."""
        while True:
            for value in self._ready:  # another reader was faster, and left some
                return value
            if self._taken is not None:
                self._settle(*self._taken)
                self._taken = None
            if self._messages:
                values, most, least, _ = self._messages.popleft()
                self._taken = most, least
                self._ready = iter(values if self.convert is None else map(self.convert, values))
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

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)
