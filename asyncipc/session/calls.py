"""Outgoing: the calls this side makes.

Every call is registered before it is sent. How it ends is the business of
`asyncipc.session.pending`.

Layer 2, inside the session. Below: pending, the outbox, wire.
"""

import asyncio
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

from asyncipc.errors import (
    EncodeError,
    IPCError,
    RequestTimeout,
)
from asyncipc.session.context import serving
from asyncipc.session.gate import Gate
from asyncipc.session.inheritance import inherit
from asyncipc.session.item_sender import ItemSender
from asyncipc.session.outbox import Outbox
from asyncipc.session.params import DefaultTimeout, check_timeout, normalize
from asyncipc.session.pending import PendingCalls
from asyncipc.session.progress import OnProgress, ProgressRelay
from asyncipc.session.settings import SessionSettings
from asyncipc.session.streams import Streams
from asyncipc.session.uploads import FoundItems, Upload, find_items
from asyncipc.session.waiter import Waiter
from asyncipc.wire.attachments import Attachment
from asyncipc.wire.codec import Codec
from asyncipc.wire.messages import REQUEST

__all__ = ["Calls"]


class Calls(PendingCalls):
    """The calls of one session that this side makes.

    :param session: used to recognise calls made while one of this very session is being served
    :param ended: says why no more calls are accepted
    :ivar requests: how many were sent
    """

    __slots__ = (
        "_create_future",
        "_max_requests",
        "_next_id",
        "_request_ids",
        "_timeout",
        "progress_dropped",
        "requests",
        "session",
        "settings",
        "streams",
    )

    timeouts: int  # counted here, too
    streams: Streams  # set by the exchange

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        outbox: Outbox,
        session: object,
        settings: SessionSettings,
        ended: Callable[[], IPCError],
    ) -> None:
        super().__init__(loop, outbox, settings.limits.max_queued, ended)
        self._timeout = check_timeout(settings.timeout)
        self._request_ids = settings.request_ids
        self.session: object = session
        self.settings: SessionSettings = settings
        self._create_future = loop.create_future
        self._next_id = 0
        self._max_requests = 0
        self.requests: int = 0
        self.progress_dropped: int = 0

    def open(self, codec: Codec, max_requests: int) -> None:
        """Begin to send, within what the other side allows."""
        self._codec = codec
        self._max_requests = self.slots.count = max_requests

    async def request(  # noqa: PLR0912 - the hot path stays in one piece
        self,
        method: Any,
        params: Any,
        timeout: float | DefaultTimeout | None,
        on_progress: OnProgress | None,
        metadata: Mapping[str, Any] | None,
    ) -> Any:
        """Make a call and wait for its end; see `asyncipc.Session.request`."""
        if params.__class__ is not dict or method.__class__ is not str:
            method, params = normalize(method, params)
        if isinstance(timeout, DefaultTimeout):
            timeout = self._timeout
            inherits = True
        else:
            inherits = timeout is not None
            timeout = check_timeout(timeout)
        parent = serving.get()
        if parent is not None or metadata is not None or self._request_ids is not None:
            timeout, depth, extra = inherit(self, parent, timeout, metadata, inherits=inherits)
        else:
            depth, extra = 0, None
        gate = None
        pending = self.pending
        outbox = self._outbox
        if (
            depth
            or self._request_gate.waiting
            or len(pending) >= self._max_requests
            or outbox.size >= outbox.limit
        ):
            gate, timeout = await self.wait_for_slot(method, depth, timeout)
        future = self._create_future()
        try:
            answer_id = self.begin(future, method, params, timeout, metadata=extra, depth=depth)
        except EncodeError:
            found = find_items(params)
            if found is None:
                raise
            answer_id = self._begin_upload(
                future, method, found, timeout, metadata=extra, depth=depth
            )
        finally:
            if gate is not None:
                gate.passed()
        if on_progress is not None:
            return await self._await_with_progress(answer_id, future, on_progress)
        try:
            return await future
        except asyncio.CancelledError:
            self.abandon(answer_id)
            raise
        finally:
            del future  # else its error, by its traceback, would hold itself and the params

    def begin(
        self,
        waiter: Waiter,
        method: str,
        params: Any,
        timeout: float | None,
        *,
        metadata: dict[str, Any] | None = None,
        depth: int = 0,
        lasting: bool = True,
    ) -> int:
        """Send a request for which the other side has a slot.

        :param waiter: is told how the call ends
        :param lasting: the buffers in it do not change before that; else they are copied
        :returns: the id of the answer
        """
        outbox = self._outbox
        if not outbox.accepts_calls:
            raise self._ended()
        wire_id = self._next_id + 2
        message = [REQUEST, wire_id, method, params, timeout]
        if metadata is not None:
            message.append(metadata)
        attachments: list[Attachment] = []
        data = self._codec.encode(message, attachments)
        is_large = attachments or len(data) > outbox.inline_size
        if is_large:
            outbox.check_size(data, attachments, message)
        pending = self.pending
        alone = not pending
        answer_id = wire_id + 1
        pending[answer_id] = waiter
        self._next_id = wire_id
        if depth:
            self._depths[answer_id] = depth
        if is_large:
            try:
                self._unsent[answer_id] = outbox.put_large(
                    [data, *attachments], 0, lasting=lasting, alone=alone
                )
            except EncodeError:  # no descriptor was left to copy one that is to be sent
                del pending[answer_id]
                self._depths.pop(answer_id, None)
                raise
        elif outbox.put_now(data, 0) if alone else outbox.put(data, 0):
            self._unsent[answer_id] = data
        self.requests += 1
        if timeout is not None:
            self._deadlines.add(answer_id, monotonic() + timeout, method, timeout)
        return answer_id

    def _begin_upload(
        self,
        future: asyncio.Future[Any],
        method: str,
        found: FoundItems,
        timeout: float | None,
        *,
        metadata: dict[str, Any] | None,
        depth: int,
    ) -> int:
        """`begin` with a parameter whose items follow."""
        extra = {**(metadata or {}), "items": found.place}
        answer_id = self.begin(future, method, found.params, timeout, metadata=extra, depth=depth)
        Upload(self, future, answer_id).start(found.items)
        return answer_id

    def add_sender(self, answer_id: int) -> ItemSender:
        """The sending end for a call that was begun; it waits until the request has left."""
        sender = self.streams.add_sender(answer_id)
        if answer_id in self._unsent:
            self.when_left(answer_id, sender.hold())
        return sender

    def when_left(self, answer_id: int, callback: Callable[[], None]) -> None:
        """Call back when the request of a call that was begun has left; never if it is dropped."""

        def left_or_dropped() -> None:
            if unsent is None or answer_id in self._unsent:
                callback()

        unsent = self._unsent.get(answer_id)
        self._outbox.when_left(unsent or b"", 0, left_or_dropped)

    def may_come_late(self, answer_id: int) -> bool:
        """Whether a call was made and is over, so that what comes for it only crossed its end."""
        return answer_id <= self._next_id + 1 and self.pending.get(answer_id) is None

    async def wait_for_slot(
        self, method: str, depth: int, timeout: float | None
    ) -> tuple[Gate | None, float | None]:
        """Wait until a call may `begin`; see `asyncipc.session.slots.Slots.wait`."""
        try:
            return await self.slots.wait(method, depth, timeout)
        except RequestTimeout:
            self.timeouts += 1
            raise

    async def _await_with_progress(
        self, answer_id: int, future: asyncio.Future[Any], on_progress: OnProgress
    ) -> Any:
        relay = ProgressRelay(future, on_progress, self)
        self.watched[answer_id] = relay.update
        try:
            return await relay.run()
        except BaseException:
            self.abandon(answer_id)  # cancelled, or on_progress itself failed
            await relay.stop()
            raise
        finally:
            del self.watched[answer_id]
