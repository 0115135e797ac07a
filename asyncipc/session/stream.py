"""Stream: what a caller gets of a method that gives items; and the call behind it.

Layer 2. Above: the session, which makes them. Below: the calls, the ends of streams.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Self

from asyncipc.errors import LocalProtocolError
from asyncipc.session.calls import Calls
from asyncipc.session.context import serving
from asyncipc.session.inheritance import inherit
from asyncipc.session.item_receiver import ItemReceiver
from asyncipc.session.item_sender import CallOver, ItemSender
from asyncipc.session.params import check_timeout, normalize
from asyncipc.session.uploads import Upload, find_items

__all__ = ["Stream", "StreamedCall"]


class StreamedCall:
    """A call of this side whose handler gives items, and which may send some.

    :param sends: open the other direction, too: a channel
    :ivar receiver: from the handler, once the call has begun
    :ivar sender: to the handler, once the call has begun, where ``sends``
    """

    def __init__(
        self,
        calls: Calls,
        method: object,
        params: object,
        timeout: float | None,
        metadata: Mapping[str, Any] | None,
        *,
        sends: bool,
    ) -> None:
        self._calls = calls
        name, self._params = normalize(method, params)
        self.method: str = name
        self._timeout = check_timeout(timeout)
        self._metadata = metadata
        self._sends = sends
        self._future: asyncio.Future[Any] | None = None
        self._answer_id = 0
        self.receiver: ItemReceiver | None = None
        self.sender: ItemSender | None = None

    async def begin(self) -> None:
        """Send the request, as soon as the other side has a slot; once."""
        if self._future is not None:
            return
        calls = self._calls
        timeout, depth, extra = inherit(
            calls,
            serving.get(),
            self._timeout,
            self._metadata,
            inherits=self._timeout is not None,
        )
        self._future = asyncio.get_running_loop().create_future()
        gate = None
        try:
            gate, timeout = await calls.wait_for_slot(self.method, depth, timeout)
            self._send(self._future, timeout, extra or {}, depth)
        except BaseException:
            self._future = None
            raise
        finally:
            if gate is not None:
                gate.passed()

    def _send(
        self,
        future: asyncio.Future[Any],
        timeout: float | None,
        metadata: dict[str, Any],
        depth: int,
    ) -> None:
        calls, params = self._calls, self._params
        found = find_items(params)
        if found is not None:
            if self._sends:
                raise TypeError("a channel sends items by itself: no parameter can be an iterable")
            params = found.params
        place = True if self._sends else None if found is None else found.place
        metadata["stream"] = True
        if place is not None:
            metadata["items"] = place
        self._answer_id = answer_id = calls.begin(
            future,
            self.method,
            params,
            timeout,
            metadata=metadata,
            depth=depth,
            lasting=False,  # nobody waits for the end before using the buffers again
        )
        self.receiver = calls.streams.add_receiver(answer_id, self._broken)
        if self._sends:
            self.sender = calls.add_sender(answer_id)
        elif found is not None:
            Upload(calls, future, answer_id).start(found.items)
        future.add_done_callback(self._ended)

    def _broken(self, error: Exception) -> None:
        """Items came that cannot be understood here."""
        if self._future is not None and not self._future.done():
            self._future.set_exception(error)
            self._calls.abandon(self._answer_id)

    def _ended(self, future: asyncio.Future[Any]) -> None:
        """The call is over: say so behind the items that came."""
        assert self.receiver is not None
        self._calls.streams.remove(self._answer_id)
        error = None if future.cancelled() else future.exception()
        self.receiver.finish(error)
        if self.sender is not None:
            self.sender.close(error or CallOver())
            self.sender.retract()

    def end(self) -> None:
        """Nobody wants any more: the other side stops, if it has not ended."""
        future = self._future
        if future is not None and not future.done() and self.receiver is not None:
            future.cancel()
            self._calls.abandon(self._answer_id)
        if self.receiver is not None:
            self.receiver.close()

    async def finish(self) -> None:
        """This side has sent all, and takes no more: wait for the other side, then `end`."""
        future, receiver = self._future, self.receiver
        try:
            if future is not None and receiver is not None and not future.done():
                self._calls.when_left(self._answer_id, receiver.stop)
                await asyncio.wait([future])
        finally:
            self.end()

    def drop(self) -> None:
        """`end`, from whatever thread a finalizer runs in."""
        future, receiver = self._future, self.receiver
        if future is not None and not (future.done() and (receiver is None or receiver.is_read)):
            # RuntimeError: the loop is closed, and with it the session.
            with contextlib.suppress(RuntimeError):
                future.get_loop().call_soon_threadsafe(self.end)


class Stream(AsyncIterator[Any]):
    """The items that a method of the other side gives; made by `asyncipc.Session.stream`.

    Used as ``async with session.stream(...) as rows``, or iterated as it is. The request is sent
    at the one or the other, not before. The other side is at most its credit ahead of the reader:
    `Limits.stream_credit` of this side, in bytes.

    Leaving the ``async with``, `aclose`, and dropping the stream (as ``break`` in a plain ``async
    for`` does, and a task that is cancelled while it reads) end the call: the generator on the
    other side is closed, and what had come is thrown away. To wait for an item no longer (a
    timeout around ``anext``) ends nothing: the item comes to who asks next.
    """

    __slots__ = ("__weakref__", "_call", "_receiver")

    def __init__(self, call: StreamedCall) -> None:
        self._call = call
        self._receiver: ItemReceiver | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        """The next item, in the order in which they were given.

        Raises what `asyncipc.Session.request` raises; what ended the call comes behind the items
        before it.
        """
        receiver = self._receiver
        if receiver is None:
            await self._begin()
            receiver = self._receiver
            assert receiver is not None
        for value in receiver.ready:  # as `ItemReceiver.__anext__` does, without one more coroutine
            return value
        return await receiver.next()

    async def __aenter__(self) -> Self:
        await self._begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the call, if it has not ended. Never waits."""
        self._call.end()

    def __del__(self) -> None:
        self._call.drop()

    def __repr__(self) -> str:
        return f"<Stream {self._call.method!r}>"

    async def _begin(self) -> None:
        await self._call.begin()
        self._receiver = self._call.receiver
        if self._receiver is None:
            raise LocalProtocolError("another task is opening this stream; use async with for both")
