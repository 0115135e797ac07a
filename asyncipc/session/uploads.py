"""Uploads: an async iterable among the parameters of a call, whose items follow the request.

Layer 2, inside the session. Above: the calls. Below: the sending end of a stream.
"""

import asyncio
from collections.abc import AsyncIterable
from typing import Any, NamedTuple, Protocol

from asyncipc.session.item_sender import CallOver, ItemSender
from asyncipc.session.producing import send_all
from asyncipc.session.streams import Streams
from asyncipc.wire.registry import is_message

__all__ = ["FoundItems", "Upload", "find_items"]


class FoundItems(NamedTuple):
    """An async iterable that was found among the parameters of a call.

    :ivar items: it
    :ivar place: the name or the position of its parameter
    :ivar params: the parameters, with None in its place
    """

    items: AsyncIterable[Any]
    place: str | int
    params: Any


def find_items(params: Any) -> FoundItems | None:
    """The async iterable among params, if there is one.

    :raises TypeError: there are several
    """
    places = params.items() if params.__class__ is dict else enumerate(params or ())
    found = [(place, value) for place, value in places if _gives_items(value)]
    if not found:
        return None
    if len(found) > 1:
        names = " and ".join(repr(place) for place, _ in found[:2])
        raise TypeError(f"only one parameter can be an async iterable, but {names} are")
    [(place, items)] = found
    params = params.copy()
    params[place] = None
    return FoundItems(items, place, params)


def _gives_items(value: Any) -> bool:
    return hasattr(type(value), "__aiter__") and not is_message(value)


class UploadingCalls(Protocol):
    """What an upload needs of the calls of its session."""

    streams: Streams

    def add_sender(self, answer_id: int) -> ItemSender:
        """The sending end for a call."""
        ...

    def abandon(self, answer_id: int) -> None:
        """Tell the other side to stop."""


class Upload:
    """Sends the items of a call, until there are no more or the call is over.

    :param future: the end of the call
    """

    def __init__(self, calls: UploadingCalls, future: asyncio.Future[Any], answer_id: int) -> None:
        self._calls = calls
        self._future = future
        self._answer_id = answer_id
        self._sender = calls.add_sender(answer_id)

    def start(self, items: AsyncIterable[Any]) -> None:
        """Begin, in a task of its own, which sees the context of the caller."""
        task = self._future.get_loop().create_task(self._send(items))
        self._future.add_done_callback(lambda _: self._stop(task))

    async def _send(self, items: AsyncIterable[Any]) -> None:
        try:
            await send_all(items, self._sender)
        except BaseException as error:
            # A CancelledError may be the iterable's own: nobody but `_stop` cancels this task.
            if not (self._future.done() or isinstance(error, CallOver)):
                self._future.set_exception(_carried(error))
                self._calls.abandon(self._answer_id)
            if not isinstance(error, Exception):
                raise
        else:
            self._sender.end()

    def _stop(self, task: asyncio.Task[None]) -> None:
        """The call is over: nobody wants the rest."""
        task.cancel()
        self._sender.close(CallOver())
        self._sender.retract()
        self._calls.streams.remove(self._answer_id)


def _carried(error: BaseException) -> Exception:
    """The error of a caller's own iterable, as something that a future can carry."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    failure = RuntimeError(f"the async iterable raised {type(error).__name__}")
    failure.__cause__ = error
    return failure
