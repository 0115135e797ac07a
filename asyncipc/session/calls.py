"""Outgoing: the calls this side makes, from the pending table to the answer.

Every call is registered before it is sent, and ends exactly once for its caller: with the answer,
a fault, its timeout, its cancellation, or the end of the session. On the wire it ends with the
other side's terminal message; until that comes its slot stays taken, also when the caller has
long gone.

Layer 2, inside the session. Below: wire.
"""

import asyncio
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

from asyncipc.errors import (
    EncodeError,
    FaultCode,
    IPCError,
    RemoteProtocolError,
    RequestRefused,
    RequestTimeout,
)
from asyncipc.session.context import Progress, serving
from asyncipc.session.deadlines import Deadlines
from asyncipc.session.faults import exception_of
from asyncipc.session.gate import Gate
from asyncipc.session.inheritance import inherit
from asyncipc.session.item_sender import ItemSender
from asyncipc.session.lanes import Transfer
from asyncipc.session.outbox import Outbox
from asyncipc.session.params import DefaultTimeout, check_timeout, normalize
from asyncipc.session.progress import OnProgress, ProgressRelay
from asyncipc.session.settings import SessionSettings
from asyncipc.session.slots import Slots, timed_out
from asyncipc.session.streams import Streams
from asyncipc.session.uploads import FoundItems, Upload, find_items
from asyncipc.session.waiter import NOBODY, Leftovers, Waiter
from asyncipc.wire.attachments import Attachment
from asyncipc.wire.codec import Codec
from asyncipc.wire.decoding import BrokenMessage
from asyncipc.wire.messages import CANCEL, REQUEST, check_fields

__all__ = ["Calls"]


class Calls:
    """The calls of one session that this side makes.

    :param session: used to recognise calls made while one of this very session is being served
    :param ended: says why no more calls are accepted
    :ivar pending: those not ended on the wire, by the id that the answer will carry
    :ivar slots: what the other side has for them
    :ivar leftovers: hears of those that nobody waits for any longer
    :ivar requests: how many were sent; of these ...
    :ivar timeouts: ... were not answered in time
    :ivar cancelled: ... were given up while they were being served
    :ivar late_replies: answers that came when nobody waited any longer
    """

    __slots__ = (
        "_codec",
        "_create_future",
        "_deadlines",
        "_depths",
        "_ended",
        "_max_requests",
        "_next_id",
        "_outbox",
        "_progress",
        "_request_gate",
        "_request_ids",
        "_timeout",
        "_unsent",
        "cancelled",
        "late_replies",
        "leftovers",
        "pending",
        "progress_dropped",
        "requests",
        "session",
        "settings",
        "slots",
        "streams",
        "timeouts",
    )

    streams: Streams  # set by the exchange

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        outbox: Outbox,
        session: object,
        settings: SessionSettings,
        ended: Callable[[], IPCError],
    ) -> None:
        self._outbox = outbox
        self._timeout = check_timeout(settings.timeout)
        self._request_ids = settings.request_ids
        self.session: object = session
        self.settings: SessionSettings = settings
        self._ended = ended
        self._create_future = loop.create_future
        # By the id that the answer carries; None where nobody waits for it any longer.
        self.pending: dict[int, Waiter | None] = {}
        self.leftovers: Leftovers = NOBODY
        self._next_id = 0
        self._deadlines = Deadlines(loop, self.pending, self._expire)
        self._progress: dict[int, Callable[[Progress], None]] = {}
        self._unsent: dict[int, Transfer | bytes] = {}  # requests that may not have left yet
        self.slots: Slots = Slots(loop, outbox, self.pending, settings.limits.max_queued)
        self._request_gate = self.slots.gate  # this and what follows is looked at for each call
        self._depths = self.slots.depths
        self._max_requests = 0
        self.requests: int = 0
        self.timeouts: int = 0
        self.cancelled: int = 0
        self.late_replies: int = 0
        self.progress_dropped: int = 0

    def open(self, codec: Codec, max_requests: int) -> None:
        """Begin to send, within what the other side allows."""
        self._codec = codec
        self._max_requests = self.slots.count = max_requests

    async def request(
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
                self._unsent[answer_id] = outbox.put_large([data, *attachments], 0, lasting=lasting)
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

    def watch(self, answer_id: int, update: Callable[[Progress], None]) -> None:
        """Call ``update`` with the progress of a call that was begun, until `unwatch`."""
        self._progress[answer_id] = update

    def unwatch(self, answer_id: int) -> None:
        """The reverse of `watch`."""
        self._progress.pop(answer_id, None)

    def answered(self, message: list[Any]) -> None:
        """A reply came."""
        if len(message) < 3 or message[1].__class__ is not int:
            check_fields(message)
        answer_id = message[1]
        future = self.pending.pop(answer_id, None)
        if future is None or future.done():
            self.late_replies += 1
            self.leftovers.over(answer_id)
        elif message.__class__ is BrokenMessage:
            future.set_exception(message.error)
        else:
            future.set_result(message[2])
        if self._unsent or self._depths or self._request_gate.waiting:
            self._release(answer_id)

    def failed(self, message: list[Any]) -> None:
        """A fault came."""
        answer_id = message[1]
        future = self.pending.pop(answer_id, None)
        if future is not None and not future.done():
            future.set_exception(exception_of(message))
        else:
            self.late_replies += message[2] != FaultCode.CANCELLED  # as a cancel is to be answered
            self.leftovers.over(answer_id)
        self._release(answer_id)

    def progressed(self, message: list[Any]) -> None:
        """Progress came; late or unasked for, it is dropped."""
        update = self._progress.get(message[1])
        if update is not None:
            _, _, done, total, text = [*message, None, None][:5]
            update(Progress(done, total, text))

    def extended(self, answer_id: int, seconds: float) -> None:
        """The handler of a call asks for more time; late or unasked for, it is ignored."""
        if answer_id in self.pending:
            self._deadlines.extend(answer_id, seconds)

    def refuse_after(self, last_id: int) -> None:
        """The other side says goodbye: it does not start what came after ``last_id``."""
        for answer_id in [key for key in self.pending if key > last_id + 1]:
            future = self.pending.pop(answer_id)
            if future is not None and not future.done():
                future.set_exception(
                    RequestRefused("the other side closed the session before it took the request")
                )
            else:
                self.leftovers.over(answer_id)
            unsent = self._unsent.pop(answer_id, None)
            if unsent is not None:
                self._outbox.retract(unsent, 0)
            self._release(answer_id)
        self.slots.fail_waiting(self._ended)

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
        self._progress[answer_id] = relay.update
        try:
            return await relay.run()
        except BaseException:
            self.abandon(answer_id)  # cancelled, or on_progress itself failed
            await relay.stop()
            raise
        finally:
            del self._progress[answer_id]

    def _expire(self, answer_id: int, method: str, timeout: float) -> None:
        future = self.pending[answer_id]
        if future is not None and not future.done():
            self.timeouts += 1
            future.set_exception(timed_out(method, timeout))
            self.abandon(answer_id)

    def abandon(self, answer_id: int) -> None:
        """The caller waits no longer: stop the work on the other side."""
        waiter = self.pending.get(answer_id)
        if waiter is None:
            return  # it has ended, or was given up before
        unsent = self._unsent.pop(answer_id, None)
        if unsent is not None and self._outbox.retract(unsent, 0):
            del self.pending[answer_id]  # it never arrived, so no answer will come
            if not waiter.done():
                waiter.set_exception(RequestRefused("the request was retracted before it was sent"))
            self._release(answer_id)
            return
        if waiter.done():
            self.pending[answer_id] = None
            self.leftovers.given_up(answer_id)
        self.cancelled += 1
        self._outbox.put(self._codec.encode([CANCEL, answer_id - 1], []))

    def _release(self, answer_id: int) -> None:
        """A call is over on the wire: its slot is free."""
        self._unsent.pop(answer_id, None)
        self.slots.release(answer_id)

    def not_understood(self, answer_id: int, kind: int) -> None:
        """Something unknown came for a call of this side: its caller must not wait for ever."""
        future = self.pending.get(answer_id)
        if future is not None and not future.done():
            future.set_exception(
                RemoteProtocolError(
                    f"the other side answered with a message of kind {kind}, unknown here"
                )
            )
            self.abandon(answer_id)

    def abandon_all(self, make_error: Callable[[], Exception]) -> None:
        """This side is closing: nobody waits for an answer any longer."""
        for answer_id, future in list(self.pending.items()):
            if future is not None and not future.done():
                future.set_exception(make_error())
                self.abandon(answer_id)
        self.slots.fail_waiting(make_error)

    def close(self, make_error: Callable[[], Exception]) -> None:
        """The session is over: every waiter gets an error of its own, at once."""
        self._deadlines.close()
        pending, unsent = dict(self.pending), list(self._unsent.values())
        self.pending.clear()
        self._unsent.clear()
        for item in unsent:
            self._outbox.retract(item, 0)  # its caller hears of the end, and may change its buffers
        self._depths.clear()
        for answer_id, future in pending.items():
            if future is not None and not future.done():
                future.set_exception(make_error())
            else:
                self.leftovers.over(answer_id)
        self.slots.fail_waiting(make_error)
