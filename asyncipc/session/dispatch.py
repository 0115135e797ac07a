"""Incoming: finds the handler, runs it, and answers exactly once.

A plain ``def`` handler runs inline, in the callback that read its request; an ``async def`` gets a
task; ``thread=True`` gets a thread; one that is deferred is only told of the call, and who
registered it answers later (a pool's worker, which runs one function after the other). Each runs
in a fresh context, because the reading callback has the context variables of whoever opened the
session.

Layer 2, inside the session. Below: answers, wire.
"""

import asyncio
import concurrent.futures
import inspect
import logging
import threading
from collections.abc import Awaitable, Callable, Collection
from contextvars import Context
from typing import Any, Final

from asyncipc.errors import (
    FaultCode,
    InvalidParams,
    MethodNotFound,
    RemoteProtocolError,
)
from asyncipc.session.answers import Answers
from asyncipc.session.context import Call, serving
from asyncipc.session.execution import Run, await_first, run_handlers, start_task
from asyncipc.session.handler import Handler
from asyncipc.session.handlers import HandlerChain
from asyncipc.session.outbox import Outbox
from asyncipc.session.serving_streams import STREAM_KEYS, ServedStreams, serve_streams
from asyncipc.session.settings import SessionSettings
from asyncipc.session.streams import Streams
from asyncipc.session.unread import check_answers
from asyncipc.wire.decoding import BrokenMessage
from asyncipc.wire.messages import EXTEND, check_fields, shown

__all__ = ["Dispatch", "nothing_new"]

logger: logging.Logger = logging.getLogger("asyncipc")

# Ids and timeouts of these types up to this need no closer look.
NUMBERS: Final = (float, int)
MAX_PLAIN: Final = 2**63 - 1


class Dispatch(Answers):
    """The calls of one session that the other side makes.

    :ivar running: the calls being served in tasks and threads, by their id
    :ivar requests: how many were started; ``refused``: how many were not
    :ivar not_found: how many had no handler
    :ivar look: sees what has come, for code that keeps the loop from reading; see `Call.cancelled`
    """

    __slots__ = (
        "_handlers_of",
        "_idle",
        "_last_refused",
        "_max_depth",
        "_max_requests",
        "_threads",
        "also_running",
        "last_accepted",
        "look",
        "loop",
        "not_found",
        "now",
        "refusal",
        "refused",
        "requests",
        "running",
        "session",
        "streams",
        "thread_id",
    )

    streams: Streams  # set by the exchange

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        outbox: Outbox,
        session: Any,
        handlers: HandlerChain,
        settings: SessionSettings,
    ) -> None:
        super().__init__(loop, outbox, tracebacks=settings.tracebacks)
        self.loop: asyncio.AbstractEventLoop = loop
        self.session: Any = session
        self.thread_id: int = threading.get_ident()
        self._handlers_of = handlers.for_request
        self._max_requests = settings.limits.max_requests
        self._max_depth = settings.limits.max_depth
        self.running: dict[int, Call] = {}
        self.also_running: Collection[Call] = ()  # notifications
        self.last_accepted: int = 0
        self._last_refused = 0
        self.refusal: str | None = None  # why no more requests are started
        self.now: float = 0.0  # when the bytes being looked at were read
        self._idle: asyncio.Future[None] | None = None
        self._threads: concurrent.futures.ThreadPoolExecutor | None = None
        self.look: Callable[[], None] = nothing_new
        self.requests: int = 0
        self.refused: int = 0
        self.not_found: int = 0

    def serve_with(self, handlers: HandlerChain) -> None:
        """From now on, ask these."""
        self._handlers_of = handlers.for_request

    # -- requests --------------------------------------------------------------------------

    def request(self, message: list[Any]) -> None:  # noqa: C901, PLR0912 - hot path
        """A request came."""
        if len(message) == 5:
            _, wire_id, method, params, timeout = message
            metadata = None
        else:
            check_fields(message)
            _, wire_id, method, params, timeout, metadata = [*message, None, None, None][:6]
        if wire_id.__class__ is not int or method.__class__ is not str or wire_id > MAX_PLAIN:
            check_fields(message)
        if wire_id & 1 or wire_id <= self.last_accepted:
            raise RemoteProtocolError(
                f"the other side sent a request with the id {wire_id} after {self.last_accepted}; "
                "ids are even and count up"
            )
        if timeout is not None:
            if timeout.__class__ not in NUMBERS or not 0 <= timeout <= MAX_PLAIN:
                check_fields(message)
            timeout += self.now
        call = Call(self, wire_id, method, timeout, {} if metadata is None else metadata)
        has_streams = self._take_metadata(call) if metadata else False
        if (
            self.refusal is not None or len(self.running) >= self._max_requests
        ) and not self._accepts(call):
            return
        if self._outbox.is_blocked:
            unread = self._outbox.count_answers() + len(self._replies)
            check_answers(unread, self._max_requests)
        self.last_accepted = wire_id
        self.requests += 1
        if message.__class__ is BrokenMessage or call.depth > self._max_depth:
            self._object(call, message)
            return
        handlers = self._handlers_of(method)
        if not handlers:
            self.not_found += 1
            self._fail(call, _not_found(method))
        elif handlers[0].is_inline and not has_streams:
            Context().run(self._serve_inline, call, handlers, params)
        else:
            self.running[wire_id] = call
            if handlers[0].is_deferred:
                handlers[0].invoke(params, call)
            elif has_streams:
                self._start_with_streams(call, handlers, params)
            else:
                start_task(self.loop, call, self._serve(call, handlers, params))

    def cancel(self, wire_id: int) -> None:
        """The caller gave a call up; one that has ended already is ignored."""
        call = self.running.get(wire_id)
        if call is not None:
            call.given_up = True
            task = call.task
            if task is None or call.in_thread:
                return
            if not call.started:
                self._finish(call)  # a task cancelled before its first step never gets to answer
                self.send_fault(wire_id, FaultCode.CANCELLED, "cancelled by the caller")
            task.cancel()
            return
        reply = self._replies.pop(wire_id, None)
        if reply is not None and self._outbox.retract(reply, wire_id + 1):
            self.send_fault(wire_id, FaultCode.CANCELLED, "cancelled by the caller")

    def not_understood(self, wire_id: int, kind: int) -> None:
        """Something unknown came for a call of the other side: that ends it, here and there."""
        call = self.running.get(wire_id)
        if call is not None:
            task = call.task
            self._finish(call)  # so that it gives no other answer
            if task is not None and not call.in_thread:
                task.cancel()
        self.send_fault(
            wire_id, FaultCode.UNSUPPORTED, f"messages of kind {kind} are not known here"
        )

    def _serve_inline(self, call: Call, handlers: tuple[Handler, ...], params: Any) -> None:
        serving.set(call)
        try:
            result = handlers[0].invoke(params, call)
            if result is NotImplemented:
                # Those behind it may take time.
                self.running[call.wire_id] = call
                start_task(self.loop, call, self._serve(call, handlers[1:], params))
                return
        except BaseException as error:  # noqa: BLE001 - SystemExit is the caller's news, not ours
            self._fail(call, error)
            return
        self._reply(call, result, handlers, params)

    def _await(
        self, call: Call, result: Awaitable[Any], others: tuple[Handler, ...], params: Any
    ) -> None:
        call.finished = False
        self.running[call.wire_id] = call
        work = self._serve(call, others, params, await_first(result))
        task = start_task(self.loop, call, work)
        if inspect.iscoroutine(result):  # a task that is cancelled before its first step leaves it
            task.add_done_callback(lambda _: result.close())

    def _start_with_streams(self, call: Call, handlers: tuple[Handler, ...], params: Any) -> None:
        call.streams = streams = ServedStreams(self.streams, call)
        work = self._serve(call, handlers, params, serve_streams)
        # Not in `_serve`: a task that is cancelled before its first step never gets there.
        start_task(self.loop, call, work).add_done_callback(lambda _: streams.close())

    async def _serve(
        self, call: Call, handlers: tuple[Handler, ...], params: Any, run: Run = run_handlers
    ) -> None:
        call.started = True
        try:
            result = await run(handlers, params, call)
            if result is NotImplemented:
                raise _not_found(call.method)
        except BaseException as error:  # noqa: BLE001 - see _serve_inline
            if not call.finished:
                self._finish(call)
                self._fail(call, error)
            return
        if call.finished:
            return
        self._finish(call)
        self._reply(call, result)
        if not (self.running or self._outbox.corked):
            self._outbox.flush_last()  # nobody else is about to add to this turn's frame

    def _finish(self, call: Call) -> None:
        call.finished = True
        # Its task has a context with the call: what belongs to the call would go with the next
        # collection only, shared memory among it.
        call.task = None
        if self.running.pop(call.wire_id, None) is not None and not self.running:
            self.set_idle()

    def _accepts(self, call: Call) -> bool:
        """Whether one more request may start; if not, it is refused."""
        if self.refusal is None:
            at_depth = sum(1 for running in self.running.values() if running.depth == call.depth)
            if at_depth < self._max_requests:
                return True
            reason = (
                f"{at_depth} requests are being served; Limits.max_requests is {self._max_requests}"
            )
        else:
            reason = self.refusal
        self.refused += 1
        self._last_refused = call.wire_id
        self.send_fault(call.wire_id, FaultCode.REFUSED, reason)
        return False

    def _take_metadata(self, call: Call) -> bool:
        """Take the depth of a call; return whether it has streams."""
        metadata = call.metadata
        if "depth" in metadata:
            depth = metadata.pop("depth")
            if depth.__class__ is not int or depth < 1:
                raise RemoteProtocolError(
                    f"the other side sent a request whose depth should be a positive integer, "
                    f"not {shown(depth)}"
                )
            call.depth = depth
        return not STREAM_KEYS.isdisjoint(metadata)

    def may_come_late(self, wire_id: int) -> bool:
        """Whether a call was made and is over, so that what comes for it only crossed its end."""
        last = max(self.last_accepted, self._last_refused)
        return wire_id <= last and wire_id not in self.running

    def _object(self, call: Call, message: list[Any]) -> None:
        """Answer a request that no handler can serve."""
        if isinstance(message, BrokenMessage):
            self._fail(call, InvalidParams(str(message.error)))
            return
        reason = (
            f"the request is nested {shown(call.depth)} deep; Limits.max_depth is {self._max_depth}"
        )
        self.send_fault(call.wire_id, FaultCode.TOO_DEEP, reason)

    # -- deferred handlers -----------------------------------------------------------------

    def complete(self, call: Call, result: Any, *, more: bool = False) -> None:
        """Answer a call whose handler is deferred; the answer leaves at once.

        :param more: it was one of many, so that nobody is about to ask just because of it
        """
        if not call.finished:
            self._finish(call)
            self._reply(call, result)
            if more or self.running:
                self._outbox.flush()
            else:
                self._outbox.flush_last()

    def fail(self, call: Call, error: BaseException) -> None:
        """`complete` for a call that failed."""
        if not call.finished:
            self._finish(call)
            self._fail(call, error)
            self._outbox.flush()

    def extend(self, call: Call, seconds: float) -> None:
        """Tell the caller to wait longer."""
        if not call.finished:
            self._outbox.put(self._codec.encode([EXTEND, call.wire_id + 1, seconds], []))
            self._outbox.flush()

    # -- the session -------------------------------------------------------------------------

    async def drain(self) -> None:
        """Wait until no handler runs."""
        while self.running or self.also_running:
            if self._idle is None or self._idle.done():
                self._idle = self.loop.create_future()
            await asyncio.shield(self._idle)

    def close(self) -> None:
        """The session is over: nobody waits for what still runs."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        self.progress.room_again()
        for call in self.running.values():
            call.given_up = True
            if call.task is not None:
                call.task.cancel()

    def threads(self) -> concurrent.futures.Executor:
        """The session's own threads: made as they are needed, as many as requests may run.

        Those of the loop are few, and calls that wait for calls would use them up.
        """
        if self._threads is None:
            self._threads = concurrent.futures.ThreadPoolExecutor(
                self._max_requests, "asyncipc-handler"
            )
        return self._threads

    def set_idle(self) -> None:
        """Something that `drain` may wait for has ended."""
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)


def nothing_new() -> None:
    """While a handler of a session runs in a thread or a task, the loop reads."""


def _not_found(method: str) -> MethodNotFound:
    return MethodNotFound(f"no handler takes the method {method!r}")
