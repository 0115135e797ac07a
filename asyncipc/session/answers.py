"""How the calls of the other side are answered, each exactly once.

This module is the one boundary at which exceptions become faults: nothing that a handler raises
gets further.

Layer 2, inside the session. Above: `asyncipc.session.dispatch`, which takes the calls. Below: wire.
"""

import abc
import asyncio
import inspect
import logging
from collections.abc import Awaitable
from typing import Any

from asyncipc.errors import EncodeError, FaultCode, FrameTooLarge
from asyncipc.session.context import Call
from asyncipc.session.faults import fault_reports
from asyncipc.session.handler import Handler
from asyncipc.session.lanes import Transfer
from asyncipc.session.outbox import Outbox
from asyncipc.session.reporting import ProgressSender
from asyncipc.wire.attachments import Attachment
from asyncipc.wire.codec import Codec
from asyncipc.wire.messages import FAULT, REPLY

__all__ = ["Answers"]

logger: logging.Logger = logging.getLogger("asyncipc")


class Answers(abc.ABC):
    """The answers of one session; `asyncipc.session.dispatch.Dispatch` adds the calls.

    Not an object of its own, because each answer would pay for the way to it.

    :param tracebacks: faults carry the traceback of the handler
    :ivar faults: how many calls ended in a fault
    :ivar progress: what handlers tell before they answer
    """

    __slots__ = ("_codec", "_outbox", "_replies", "_tracebacks", "faults", "progress")

    _codec: Codec  # from `open` on

    def __init__(
        self, loop: asyncio.AbstractEventLoop, outbox: Outbox, *, tracebacks: bool
    ) -> None:
        self._outbox = outbox
        self._tracebacks = tracebacks
        self._replies: dict[int, Transfer | bytes] = {}  # on their way, in the lane of their call
        self.progress: ProgressSender = ProgressSender(loop, outbox)
        self.faults: int = 0

    def open(self, codec: Codec) -> None:
        """Begin to answer."""
        self._codec = codec
        self.progress.open(codec)

    def _reply(
        self, call: Call, result: Any, asked: tuple[Handler, ...] = (), params: Any = None
    ) -> None:
        """Answer a call.

        :param asked: the first of them, a plain function, gave the result at once; its ``params``
        """
        call.finished = True
        lane = call.wire_id + 1
        if self.progress.held:
            self.progress.release(call)
        message = [REPLY, lane, result]
        attachments: list[Attachment] = []
        try:
            data = self._codec.encode(message, attachments)
        except Exception as error:  # noqa: BLE001 - also what a codec of the user's raises
            # Only here, so that it costs nothing where a plain function gives a plain result.
            if asked and inspect.isawaitable(result):
                self._await(call, result, asked[1:], params)
            else:
                self._fail(call, error)
            return
        if not attachments and len(data) <= self._outbox.inline_size:
            if self._outbox.put(data, lane):
                self._keep(call.wire_id, data)
            elif self._outbox.is_blocked:
                self._outbox.note_answer()
            return
        try:
            self._outbox.check_size(data, attachments, message)
            transfer = self._outbox.put_large(
                [data, *attachments],
                lane,
                lasting=False,  # the handler may be called again, and change its buffer
            )
        except (EncodeError, FrameTooLarge) as error:
            self._fail(call, error)
            return
        self._keep(call.wire_id, transfer)

    @abc.abstractmethod
    def _await(
        self, call: Call, result: Awaitable[Any], others: tuple[Handler, ...], params: Any
    ) -> None:
        """A plain function returned something to be awaited before the call can be answered.

        :param others: the handlers behind it
        """

    def _fail(self, call: Call, error: BaseException) -> None:
        """The one place where an exception becomes a fault."""
        call.finished = True
        if self.progress.held:
            self.progress.release(call)
        if issubclass(type(error), asyncio.CancelledError):
            reason = "cancelled by the caller" if call.given_up else "cancelled where it was served"
            self.send_fault(call.wire_id, FaultCode.CANCELLED, reason)
            return
        for code, message, details in fault_reports(error, with_traceback=self._tracebacks):
            try:
                self.send_fault(call.wire_id, code, message, details)
            except (EncodeError, FrameTooLarge) as failure:
                logger.debug("a fault of %r has to say less: %s", call.method, failure)
            else:
                break
        logger.debug("the handler for %r failed", call.method, exc_info=error)

    def send_fault(
        self, wire_id: int, code: int, message: str, details: dict[str, Any] | None = None
    ) -> None:
        """End a call with a fault.

        :raises EncodeError: the details cannot be sent
        :raises FrameTooLarge: they are larger than the other side takes
        """
        attachments: list[Attachment] = []
        fault = [FAULT, wire_id + 1, int(code), message, details]
        data = self._codec.encode(fault, attachments)
        if attachments or len(data) > self._outbox.inline_size:
            self._outbox.check_size(data, attachments, fault)
            transfer = self._outbox.put_large([data, *attachments], wire_id + 1, lasting=False)
            self._keep(wire_id, transfer)
        elif code == FaultCode.REFUSED:
            self._outbox.respond(data)
            return
        elif self._outbox.put(data, wire_id + 1):
            self._keep(wire_id, data)
        elif self._outbox.is_blocked:
            self._outbox.note_answer()
        self.faults += 1

    def _keep(self, wire_id: int, answer: Transfer | bytes) -> None:
        """An answer that is large, or stands behind something large, until it has left."""
        self._replies[wire_id] = answer
        self._outbox.when_left(answer, wire_id + 1, lambda: self._replies.pop(wire_id, None))
