"""Notifications in both directions, and the credit that keeps their sender from running away.

The receiver grants a window in bytes in its hello. The sender counts what each notification
costs, remembers the costs in order, and waits when the window is used up. The receiver says how
many notifications it has finished with; their costs, oldest first, are free again. So only one
side ever counts bytes, and the two cannot drift apart.

Layer 2, inside the session. Below: wire.
"""

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import Context
from typing import Any, Final

from asyncipc.config import Limits
from asyncipc.errors import IPCError, RemoteProtocolError
from asyncipc.session.context import Call, CallOwner, serving
from asyncipc.session.execution import Run, await_first, run_handlers, start_task
from asyncipc.session.frame_writer import NOTIFICATION_BATCH
from asyncipc.session.gate import Gate
from asyncipc.session.handler import Handler
from asyncipc.session.handlers import HandlerChain
from asyncipc.session.outbox import Outbox
from asyncipc.session.params import normalize
from asyncipc.wire.attachments import Attachment
from asyncipc.wire.codec import Codec
from asyncipc.wire.decoding import BrokenMessage
from asyncipc.wire.messages import CREDIT, NOTIFY, check_fields

__all__ = ["NotificationReceiver", "NotificationSender"]

logger: logging.Logger = logging.getLogger("asyncipc")

# A notification costs at least this many bytes, so that credit bounds their number too.
SMALLEST_COST: Final = 64

# Credit goes back when this share of the window may be used up: seldom enough to cost little,
# early enough that a steady sender never stops.
CREDIT_SHARE: Final = 4

# After so many warnings about notifications that nobody handles, they are only counted.
MAX_UNHANDLED_REPORTS: Final = 100


class NotificationSender:
    """The notifications of one session that this side sends.

    :param ended: says why no more notifications are accepted
    """

    __slots__ = ("_codec", "_costs", "_credit", "_ended", "_loop", "_outbox", "gate", "sent")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        outbox: Outbox,
        ended: Callable[[], IPCError],
    ) -> None:
        self._loop = loop
        self._outbox = outbox
        self._ended = ended
        self._costs: deque[int] | None = None  # made for the first notification
        self._credit = 0
        self.gate: Gate = Gate(loop, self._has_credit)
        self.sent: int = 0

    def open(self, codec: Codec, credit: int) -> None:
        """Begin to send, with the window that the other side grants."""
        self._codec = codec
        self._credit = credit

    async def notify(self, method: Any, params: Any, metadata: Mapping[str, Any] | None) -> None:
        """Send a notification; see `asyncipc.Session.notify`."""
        if params.__class__ is not dict or method.__class__ is not str:
            method, params = normalize(method, params)
        outbox = self._outbox
        waits = self.gate.waiting or self._credit <= 0 or outbox.size >= outbox.limit
        if waits and outbox.accepts_calls:
            await self.gate.enter()
        else:
            waits = False
        try:
            if not outbox.accepts_calls:
                raise self._ended()
            message = [NOTIFY, method, params]
            if metadata is not None:
                message.append(dict(metadata))
            attachments: list[Attachment] = []
            data = self._codec.encode(message, attachments)
            if attachments or len(data) > outbox.inline_size:
                self._send_large(message, data, attachments)
            else:
                outbox.put(data, 0, NOTIFICATION_BATCH)
                self._charge(len(data))
        finally:
            if waits:
                self.gate.passed()

    def post(self, method: str, params: Any) -> bool:
        """`notify` for who cannot wait: without credit or room nothing is sent, and False returned.

        :raises EncodeError: the parameters cannot be sent
        """
        outbox = self._outbox
        if self._credit <= 0 or self.gate.waiting or outbox.full or not outbox.accepts_calls:
            return False
        message = [NOTIFY, method, params]
        attachments: list[Attachment] = []
        data = self._codec.encode(message, attachments)
        if attachments or len(data) > outbox.inline_size:
            self._send_large(message, data, attachments)
        else:
            outbox.put(data, 0, NOTIFICATION_BATCH)
            self._charge(len(data))
        return True

    def credited(self, count: int) -> None:
        """The other side has finished with so many notifications.

        :raises RemoteProtocolError: more than were under way
        """
        costs = self._costs if self._costs is not None else deque()
        if count > len(costs):
            raise RemoteProtocolError(
                f"the other side gave credit for {count} notifications, "
                f"but {len(costs)} were under way"
            )
        for _ in range(count):
            self._credit += costs.popleft()
        if self.gate.waiting:
            self.gate.update()

    def _has_credit(self, passing: int) -> bool:
        return self._credit > passing * SMALLEST_COST and not self._outbox.full

    def _charge(self, size: int) -> None:
        cost = size if size > SMALLEST_COST else SMALLEST_COST  # noqa: FURB136 - for each one sent
        self._credit -= cost
        if self._costs is None:
            self._costs = deque()
        self._costs.append(cost)
        self.sent += 1

    def _send_large(self, message: list[Any], data: bytes, attachments: list[Attachment]) -> None:
        """Send in parts.

        Nobody waits until they have left, so what the caller could change meanwhile is copied.
        """
        size = self._outbox.check_size(data, attachments, message)
        self._outbox.put_large([data, *attachments], 0, lasting=False)
        self._charge(size)


class NotificationReceiver:
    """The notifications of one session that the other side sends."""

    __slots__ = (
        "_codec",
        "_due",
        "_finished",
        "_handlers_of",
        "_max_running",
        "_on_idle",
        "_outbox",
        "_owner",
        "_settling",
        "_share",
        "received",
        "running",
        "unhandled",
    )

    def __init__(
        self,
        owner: CallOwner,
        outbox: Outbox,
        handlers: HandlerChain,
        limits: Limits,
        on_idle: Callable[[], None],
    ) -> None:
        self._owner = owner
        self._outbox = outbox
        self._handlers_of = handlers.for_notification
        self._share = limits.notification_credit // CREDIT_SHARE
        self._max_running = limits.notification_credit // SMALLEST_COST + 1
        self._on_idle = on_idle
        self._finished = 0  # since credit was last given
        self._settling = False  # as soon as this turn of the loop is over
        self._due = 0  # bytes of frames since then: never less than what the sender counted
        self.running: dict[Call, None] = {}  # as a set, and smaller while it is empty
        self.received: int = 0
        self.unhandled: int = 0

    def open(self, codec: Codec) -> None:
        """Begin to give credit."""
        self._codec = codec

    def serve_with(self, handlers: HandlerChain) -> None:
        """From now on, ask these."""
        self._handlers_of = handlers.for_notification

    def receive(self, message: list[Any]) -> None:
        """A notification came."""
        if len(message) == 3:
            _, method, params = message
            metadata = None
        else:
            check_fields(message)
            _, method, params, metadata = [*message, None, None][:4]
        if method.__class__ is not str:
            check_fields(message)
        self.received += 1
        handlers = self._handlers_of(method)
        if not handlers or message.__class__ is BrokenMessage:
            self._drop(message)
            self._finished += 1
            return
        call = Call(self._owner, 0, method, None, {} if metadata is None else metadata)
        if handlers[0].is_inline:
            Context().run(self._serve_inline, call, handlers, params)
        else:
            self._start(call, handlers, params)

    def settle(self, size: int) -> None:
        """A frame of ``size`` bytes was looked at: give credit back when enough has come."""
        self._due += size
        if self._finished and self._due + self._finished * SMALLEST_COST >= self._share:
            self._outbox.respond(self._codec.encode([CREDIT, 0, self._finished], []))
            self._finished = 0
            if not self.running:
                self._due = 0
            # Otherwise the sum stays: those still running may be the ones that cost most, and
            # their credit has to go back as soon as they end.

    def close(self) -> None:
        """The session is over: cancel what runs."""
        for call in list(self.running):
            call.given_up = True
            if call.task is not None:
                call.task.cancel()

    def _serve_inline(self, call: Call, handlers: tuple[Handler, ...], params: Any) -> None:
        serving.set(call)
        try:
            result = handlers[0].invoke(params, call)
        except BaseException:
            logger.exception("the handler for the notification %r failed", call.method)
        else:
            if result is NotImplemented:
                self._start(call, handlers[1:], params)  # those behind it may take time
                return
            if result is not None and inspect.isawaitable(result):
                self._start(call, handlers[1:], params, await_first(result))
                return
        call.finished = True
        self._finished += 1

    def _start(
        self, call: Call, handlers: tuple[Handler, ...], params: Any, run: Run = run_handlers
    ) -> None:
        if len(self.running) >= self._max_running:
            raise RemoteProtocolError(
                f"the other side sent a notification while {len(self.running)} were under way, "
                "more than Limits.notification_credit allows"
            )
        self.running[call] = None
        task = start_task(self._owner.loop, call, self._serve(call, handlers, params, run))
        if task.done():
            self._finish(call)
        else:
            # Not in `_serve`: a task that is cancelled before its first step never gets there.
            task.add_done_callback(lambda _: self._finish(call))

    async def _serve(
        self, call: Call, handlers: tuple[Handler, ...], params: Any, run: Run
    ) -> None:
        try:
            if await run(handlers, params, call) is NotImplemented:
                self._report_unhandled(call.method)
        except asyncio.CancelledError:
            logger.debug("the handler for the notification %r was cancelled", call.method)
        except BaseException:
            logger.exception("the handler for the notification %r failed", call.method)
        call.finished = True

    def _finish(self, call: Call) -> None:
        call.finished = True
        call.task = None  # see `Dispatch`
        self.running.pop(call, None)
        self._finished += 1
        if not self._settling:
            self._settling = True
            self._owner.loop.call_soon(self._settle_finished)  # one message for all of this turn
        if not self.running:
            self._on_idle()

    def _settle_finished(self) -> None:
        self._settling = False
        self.settle(0)

    def _drop(self, message: list[Any]) -> None:
        if isinstance(message, BrokenMessage):
            logger.warning("the notification %r was dropped: %s", message[1], message.error)
        else:
            self._report_unhandled(message[1])

    def _report_unhandled(self, method: str) -> None:
        if self.unhandled < MAX_UNHANDLED_REPORTS:
            logger.warning("no handler takes the notification %r; it was dropped", method)
        self.unhandled += 1
