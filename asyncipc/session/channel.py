"""Channel: items both ways within one call, each direction with an end of its own.

The exceptions of its state are anyio's, too, so that code written for any anyio stream works.
They stand here because anyio is a large import that few processes need.

Layer 2. Above: the session and the context of handlers, which make channels. Below: the ends of
streams.
"""

from types import TracebackType
from typing import Any, Protocol, Self

import anyio
from anyio.abc import ObjectStream

from asyncipc.errors import IPCError, LocalProtocolError
from asyncipc.session.item_receiver import ItemReceiver
from asyncipc.session.item_sender import CallOver, ItemSender

__all__ = ["Channel", "ChannelBroken", "ChannelCall", "ChannelClosed", "ChannelEnded"]


class ChannelClosed(LocalProtocolError, anyio.ClosedResourceError):
    """This side has closed the channel, or said with ``send_eof`` that it sends no more."""


class ChannelEnded(IPCError, anyio.EndOfStream):
    """The other side has said that it sends no more, and everything it sent was received."""


class ChannelBroken(IPCError, anyio.BrokenResourceError):
    """The other side has closed its end or ended the call: nothing can be sent any longer."""


class ChannelCall(Protocol):
    """The call behind a channel, on either side.

    :ivar sender: to the other side, once the call has begun
    :ivar receiver: from the other side, once the call has begun
    """

    sender: ItemSender | None
    receiver: ItemReceiver | None

    async def begin(self) -> None:
        """Send the request, if this side makes the call and has not."""

    def end(self) -> None:
        """This side closes its end."""

    async def finish(self) -> None:
        """`end` in good order: this side has said that it sends no more."""

    def drop(self) -> None:
        """Nobody has the channel any longer."""


class Channel(ObjectStream[Any]):
    """One end of a channel; made by `asyncipc.Session.channel` and `asyncipc.Call.channel`.

    Implements anyio's ``ObjectStream``. Iterating receives until the other side sends no more. Each
    direction has its own credit: `send` waits while the other side does not receive.

    The call is over when the handler returns; the caller hears of it behind the last item. How the
    caller leaves (`aclose`, the end of ``async with``) tells what becomes of a handler that has not
    returned:

    - After `send_eof` it may finish: leaving waits until it has returned, or its timeout is over.
      It receives all that was sent; its own `send` raises `ChannelBroken`. How it ended is not
      told: who wants to know receives until `ChannelEnded`.
    - Without, by an exception, or when the leaving is cancelled, it is cancelled.

    A handler that leaves says that it sends and receives no more, and may go on. The caller's
    `send` raises `ChannelBroken` then.
    """

    def __init__(self, call: ChannelCall) -> None:
        self._call = call
        self._closed = False

    async def send(self, item: Any) -> None:
        """Send an item; returns when it is on its way, which may be before it has left.

        :raises ChannelClosed: this side has closed the channel or its sending direction
        :raises ChannelBroken: the other side has closed its end, or ended the call
        :raises EncodeError: it cannot be sent; the channel goes on
        :raises FrameTooLarge: it is larger than the other side takes; the channel goes on
        :raises IPCError: the call has failed, in the ways in which `asyncipc.Session.request` does
        """
        sender = self._sender()
        try:
            if not sender.ended:
                await sender.send(item)
                return
        except CallOver:
            if not (self._closed or sender.ended):
                raise ChannelBroken(
                    "the other side takes no more: it has closed its end, or ended the call"
                ) from None
        raise ChannelClosed("this side has said that it sends no more")

    async def receive(self) -> Any:
        """The next item; items come in the order in which they were sent.

        :raises ChannelEnded: no more will come
        :raises ChannelClosed: this side has closed the channel
        :raises IPCError: the call has failed, in the ways in which `asyncipc.Session.request` does
        """
        receiver = self._receiver()
        try:
            return await receiver.__anext__()
        except StopAsyncIteration:
            if self._closed:
                raise ChannelClosed("this side has closed the channel") from None
            raise ChannelEnded("the other side sends no more") from None

    async def send_eof(self) -> None:
        """Say that this side sends no more; it goes on receiving. Nothing happens twice.

        :raises ChannelClosed: this side has closed the channel
        """
        self._sender().end()

    async def aclose(self) -> None:
        """Close this end; see `Channel`. Waits only for a handler that may finish."""
        self._closed = True
        sender = self._call.sender
        if sender is not None and sender.ended:
            await self._call.finish()
        else:
            self._call.end()

    async def __aenter__(self) -> Self:
        await self._call.begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            await self.aclose()
        else:
            self._closed = True
            self._call.end()

    def __del__(self) -> None:
        self._call.drop()

    def _sender(self) -> ItemSender:
        if self._closed:
            raise ChannelClosed("this side has closed the channel")
        if self._call.sender is None:
            raise ChannelClosed("the channel is not open yet: use it within async with")
        return self._call.sender

    def _receiver(self) -> ItemReceiver:
        if self._closed:
            raise ChannelClosed("this side has closed the channel")
        if self._call.receiver is None:
            raise ChannelClosed("the channel is not open yet: use it within async with")
        return self._call.receiver
