"""The side that serves a call with streams: its generator, its parameter, its end of the channel.

Layer 2, inside the session. Above: dispatch. Below: the streams, and what runs handlers.
"""

import contextlib
from typing import TYPE_CHECKING, Any, Final

from asyncipc.errors import DecodeError, InvalidParams, RemoteProtocolError
from asyncipc.lazy import LazyModule
from asyncipc.session.context import Call
from asyncipc.session.execution import run_handlers
from asyncipc.session.handler import Handler
from asyncipc.session.item_receiver import ItemReceiver
from asyncipc.session.item_sender import CallOver, ItemSender
from asyncipc.session.streams import Streams
from asyncipc.wire.messages import shown

if TYPE_CHECKING:
    from asyncipc.session import channel
else:  # brings anyio along
    channel = LazyModule("asyncipc.session.channel")

__all__ = ["STREAM_KEYS", "ServedStreams", "serve_streams"]


# The metadata of a request that has streams.
STREAM_KEYS: Final = frozenset({"items", "stream"})


class ServedStreams:
    """The streams of a call that this side serves.

    :ivar sender: to the caller, if it takes items
    :ivar receiver: from the caller, if it sends any
    """

    def __init__(self, streams: Streams, call: Call) -> None:
        self._streams = streams
        self._wire_id = call.wire_id
        self._place = call.metadata.pop("items", None)
        takes = call.metadata.pop("stream", None)
        if not (takes is None or takes is True) or not _is_place(self._place):
            raise RemoteProtocolError(
                "the other side sent a request whose stream should be true, and whose items true, "
                f"a name or a position, not {shown(takes)} and {shown(self._place)}"
            )
        self._channel: channel.Channel | None = None
        self.method: str = call.method
        self.sender: ItemSender | None = None
        self.receiver: ItemReceiver | None = None
        if takes:
            self.sender = streams.add_sender(self._wire_id)
        if self._place is not None:
            self.receiver = streams.add_receiver(self._wire_id, self._broken)

    def bind(self, params: Any) -> Any:
        """The params, with the caller's items in their place.

        :raises InvalidParams: there is no such place
        """
        place = self._place
        if place is None or place is True:
            return params
        if params.__class__ is dict and place in params:
            return {**params, place: self.receiver}
        if params.__class__ is list and place.__class__ is int and place < len(params):
            return [*params[:place], self.receiver, *params[place + 1 :]]
        raise InvalidParams(
            f"{self.method}() has items for parameter {shown(place)}, which is not there"
        )

    def open_channel(self) -> "channel.Channel":
        """This side's end of a channel.

        :raises InvalidParams: the caller opened none
        """
        if self.sender is None or self.receiver is None:
            raise InvalidParams(
                f"{self.method}() talks through a channel: call it with session.channel()"
            )
        if self._channel is None:
            self._channel = channel.Channel(self)
        return self._channel

    @property
    def used(self) -> bool:
        """The handler has its end of the channel."""
        return self._channel is not None

    async def begin(self) -> None:
        """Nothing to begin; see `asyncipc.session.channel.ChannelCall`."""

    def flush(self) -> None:
        """Send the items that were gathered."""
        if self.sender is not None:
            self.sender.flush()

    def end(self) -> None:
        """The handler closes its end: it sends and reads no more. The call goes on."""
        if self.sender is not None:
            self.sender.end()
        if self.receiver is not None:
            self.receiver.stop()

    async def finish(self) -> None:
        """`end`: who serves a call has nobody to wait for."""
        self.end()

    def drop(self) -> None:
        """Nothing to do: the call ends with its handler."""

    def close(self) -> None:
        """The call is over."""
        self._streams.remove(self._wire_id)
        if self.receiver is not None:
            self.receiver.close()
        if self.sender is not None:
            self.sender.close(CallOver())

    def _broken(self, error: DecodeError) -> None:
        assert self.receiver is not None
        self.receiver.finish(InvalidParams(f"{self.method}() {error}"))


async def serve_streams(handlers: tuple[Handler, ...], params: Any, call: Call) -> Any:
    """`run_handlers` for a call with streams. When it is over, all items are on their way."""
    streams: ServedStreams = call.streams
    sender = streams.sender
    if sender is None:
        return await run_handlers(handlers, streams.bind(params), call)
    try:
        if handlers[0].is_inline:
            raise _gives_one_result(call)
        result = await run_handlers(handlers, streams.bind(params), call)
    except CallOver:
        return None  # the caller takes no more items, and gets no error for that
    except Exception:
        with contextlib.suppress(Exception):
            await sender.drain()  # the error comes behind the items before it
        raise
    except BaseException:
        if call.given_up:
            sender.retract()
        else:
            sender.flush()
        raise
    finally:
        sender.close(CallOver())  # nothing follows the terminal message
    if result is not None and result is not NotImplemented and not streams.used:
        raise _gives_one_result(call)
    return result


def _is_place(place: Any) -> bool:
    return (
        place is None
        or place is True
        or place.__class__ is str
        or (place.__class__ is int and place >= 0)
    )


def _gives_one_result(call: Call) -> InvalidParams:
    return InvalidParams(f"{call.method}() gives one result: ask for it with session.request()")
