"""The calls of this side that have begun, and how each of them ends.

Every call ends exactly once for its caller: with the answer, a fault, its timeout, its
cancellation, or the end of the session. On the wire it ends with the other side's terminal message;
until that comes its slot stays taken, also when the caller has long gone.

Layer 2, inside the session. Above: `asyncipc.session.calls`, which begins them. Below: wire.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from asyncipc.errors import FaultCode, IPCError, RemoteProtocolError, RequestRefused
from asyncipc.session.context import Progress
from asyncipc.session.deadlines import Deadlines
from asyncipc.session.faults import exception_of
from asyncipc.session.lanes import Transfer
from asyncipc.session.outbox import Outbox
from asyncipc.session.slots import Slots, timed_out
from asyncipc.session.waiter import NOBODY, Leftovers, Waiter
from asyncipc.wire.codec import Codec
from asyncipc.wire.decoding import BrokenMessage
from asyncipc.wire.messages import CANCEL, check_fields

__all__ = ["PendingCalls"]


class PendingCalls:
    """The calls of one session that have begun; `asyncipc.session.calls.Calls` begins them.

    Not an object of its own, because each call would pay for the way to it.

    :param max_queued: how many calls may wait for a slot
    :param ended: says why no more calls are accepted
    :ivar pending: those not ended on the wire, by the id that the answer will carry
    :ivar slots: what the other side has for them
    :ivar leftovers: hears of those that nobody waits for any longer
    :ivar timeouts: how many were not answered in time
    :ivar cancelled: how many were given up while they were being served
    :ivar late_replies: answers that came when nobody waited any longer
    :ivar watched: what is called with the progress of those whose progress is wanted
    """

    __slots__ = (
        "_codec",
        "_deadlines",
        "_depths",
        "_ended",
        "_outbox",
        "_request_gate",
        "_unsent",
        "cancelled",
        "late_replies",
        "leftovers",
        "pending",
        "slots",
        "timeouts",
        "watched",
    )

    _codec: Codec  # from `Calls.open` on

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        outbox: Outbox,
        max_queued: int,
        ended: Callable[[], IPCError],
    ) -> None:
        self._outbox = outbox
        self._ended = ended
        # By the id that the answer carries; None where nobody waits for it any longer.
        self.pending: dict[int, Waiter | None] = {}
        self.leftovers: Leftovers = NOBODY
        self._deadlines = Deadlines(loop, self.pending, self._expire)
        self.watched: dict[int, Callable[[Progress], None]] = {}
        self._unsent: dict[int, Transfer | bytes] = {}  # requests that may not have left yet
        self.slots: Slots = Slots(loop, outbox, self.pending, max_queued)
        self._request_gate = self.slots.gate  # this and what follows is looked at for each call
        self._depths = self.slots.depths
        self.timeouts: int = 0
        self.cancelled: int = 0
        self.late_replies: int = 0

    def watch(self, answer_id: int, update: Callable[[Progress], None]) -> None:
        """Call ``update`` with the progress of a call that was begun, until `unwatch`."""
        self.watched[answer_id] = update

    def unwatch(self, answer_id: int) -> None:
        """The reverse of `watch`."""
        self.watched.pop(answer_id, None)

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
        update = self.watched.get(message[1])
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
