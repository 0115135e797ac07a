"""Session: the public face of one connection. Thin: what it does, its parts do.

Layer 2. Above: the peer. Below: everything else in this package.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from asyncipc.callbacks import check_callback
from asyncipc.errors import SessionClosed
from asyncipc.lazy import LazyModule
from asyncipc.session.companion import Companion
from asyncipc.session.connection import Connection
from asyncipc.session.context import serving
from asyncipc.session.handlers import (
    HandlerChain,
    HandlerDecorator,
    HandlerProvider,
    Handlers,
)
from asyncipc.session.params import DEFAULT_TIMEOUT, DefaultTimeout, check_timeout
from asyncipc.session.progress import OnProgress
from asyncipc.session.settings import SessionSettings
from asyncipc.session.statistics import Statistics
from asyncipc.transport.base import Credentials, Transport
from asyncipc.wire.handshake import Role

if TYPE_CHECKING:  # most sessions have none of these, and their process need not know of them
    from asyncipc.process.child import ChildProcess
    from asyncipc.session import channel, stream
else:
    channel = LazyModule("asyncipc.session.channel")
    stream = LazyModule("asyncipc.session.stream")

__all__ = ["Session"]


class Session:
    """A connection to another `Peer`. Both ends are equal: either may ask, notify and serve.

    Sessions are made by a `Peer` (``connect``, ``spawn``, ``stdio``, ``wrap``, ``serve``), belong
    to one event loop, and are used from its thread. ``async with`` closes the session at the end.
    """

    __slots__ = ("__weakref__", "_connection", "_handlers", "_peer_handlers", "process")

    def __init__(
        self,
        transport: Transport,
        role: Role,
        settings: SessionSettings,
        handlers: Handlers,
        *,
        token: bytes | None = None,
    ) -> None:
        self._peer_handlers = handlers
        self._handlers: Handlers | None = None  # made for the first of this session's own
        self._connection = Connection(
            transport,
            role,
            settings,
            handlers.chain(),
            self,
            token=token,
        )
        self.process: ChildProcess | None = None
        """The child process at the other end, where this side spawned it; else None."""

    async def start(self, on_open: Callable[["Session"], object] | None = None) -> None:
        """Open the session; for the peer layer. What it raises is told at `asyncipc.Peer.connect`.

        When it fails or is cancelled, the transport is closed, and a companion ended.

        :param on_open: called when the session stands, before any message is served
        """
        connection = self._connection
        established = connection.established
        assert established is not None, "a session is started once"
        try:
            connection.start(None if on_open is None else partial(on_open, self))
            await established
        except BaseException:
            await connection.close()
            raise

    def accompany(self, process: "ChildProcess", companion: Companion) -> None:
        """The session and a child process end together; for the peer layer, before `start`."""
        self.process = process
        self._connection.companion = companion
        process.on_exit(lambda _: self._connection.companion_exited())

    @property
    def connection(self) -> Connection:
        """What the session is made of; for the layers above, which may need more of it."""
        return self._connection

    # -- asking ----------------------------------------------------------------------------

    def request(
        self,
        method: object,
        params: object = None,
        *,
        timeout: float | DefaultTimeout | None = DEFAULT_TIMEOUT,
        on_progress: OnProgress | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """Call a method of the other side and wait for its result.

        :param method: a name; or an object of a class registered with ``@message``, which is then
            the one parameter
        :param params: a mapping binds by name, a list by position, None is no parameters, and
            anything else is the one argument. One of them may be an async iterable: its items
            follow the request, as fast as the handler takes them. What it raises ends the call,
            and is raised here; the call's end stops it.
        :param timeout: seconds; not given: the peer's default; None: no limit. Covers the time
            in which the request waits to be sent. Inside a handler the call gets at most the time
            that the handler's own caller still waits, unless it is None.
        :param on_progress: called with a `Progress` for each update that comes, in order and
            before the result; an ``async def`` is awaited, and the result waits for it, beyond the
            timeout if need be. Of updates that it is too slow for, the oldest wait (1 MiB of them,
            some 4,000 short ones) and beyond those only the latest; ``statistics`` counts the
            others. What it raises ends the call.
        :param metadata: travels along; the handler finds it in ``call.metadata``
        :returns: the result
        :raises RemoteError: the handler raised; its subclasses say what was wrong. Exceptions of
            registered types come back as themselves.
        :raises RequestTimeout: no answer in time; the other side was told to stop
        :raises RequestCancelled: it was cancelled on the other side
        :raises RequestRefused: it was not started; repeating it is safe
        :raises SessionClosed: the session has ended, or ended before the answer came; `PeerDied`
            where the other side did not say goodbye
        :raises EncodeError: the parameters cannot be sent; the session goes on
        :raises FrameTooLarge: the request is larger than the other side takes, or has more file
            descriptors; the session goes on
        :raises DecodeError: the result cannot be understood here; the session goes on
        :raises CallDepthExceeded: calls within calls are nested too deeply

        If the waiting task is cancelled, the other side is told to stop.
        """
        if on_progress is not None:
            check_callback("on_progress", on_progress, is_awaited=True)
        return self._connection.exchange.calls.request(
            method, params, timeout, on_progress, metadata
        )

    def stream(
        self,
        method: object,
        params: object = None,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> "stream.Stream":
        """Call a method of the other side that gives items, a generator.

        Used as ``async with session.stream(...) as rows``, or iterated as it is; see `Stream`.
        For ``method``, ``params``, ``metadata`` and the errors see `request`; a method that gives
        one result is `InvalidParams`.

        :param timeout: seconds until the last item must have come; None: no limit, also in a
            handler. `RequestTimeout` is raised behind the items that came in time.
        """
        calls = self._connection.exchange.calls
        call = stream.StreamedCall(calls, method, params, timeout, metadata, sends=False)
        return stream.Stream(call)

    def channel(
        self,
        method: object,
        params: object = None,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> "channel.Channel":
        """Call a method of the other side that talks through ``call.channel()``.

        Used as ``async with session.channel(...) as channel``; see `Channel`. The parameters are
        those of `stream`; the timeout is one for the whole call.
        """
        calls = self._connection.exchange.calls
        call = stream.StreamedCall(calls, method, params, timeout, metadata, sends=True)
        return channel.Channel(call)

    def notify(
        self,
        method: object,
        params: object = None,
        *,
        metadata: Mapping[str, Any] | None = None,
    ) -> Coroutine[Any, Any, None]:
        """Send a message that has no answer; for ``method`` and ``params`` see `request`.

        Returns when it is on its way, which may be before it has left. Waits while the other side
        has too much to do (its ``Limits.notification_credit``) or the outbox is full.

        :raises SessionClosed: the session has ended
        :raises RequestRefused: the other side is closing the session
        :raises EncodeError: the parameters cannot be sent; the session goes on
        :raises FrameTooLarge: it is larger than the other side takes; the session goes on
        """
        return self._connection.exchange.notifications.notify(method, params, metadata)

    async def ping(self, *, timeout: float | DefaultTimeout | None = DEFAULT_TIMEOUT) -> float:
        """Ask for a sign of life, past everything that waits; the round trip in seconds.

        :raises RequestTimeout: none came in time
        :raises RequestRefused: the other side is closing the session
        :raises SessionClosed: the session has ended
        """
        connection = self._connection
        if isinstance(timeout, DefaultTimeout):
            timeout = connection.settings.timeout
        timeout = check_timeout(timeout)
        if not connection.exchange.outbox.accepts_calls:
            raise connection.ended()
        return await connection.exchange.pings.ping(timeout)

    # -- serving ---------------------------------------------------------------------------

    @property
    def on_request(self) -> HandlerDecorator:
        """`Peer.on_request`, for this session alone; asked before the peer's handlers."""
        return self._own_handlers().on_request

    @property
    def on_notification(self) -> HandlerDecorator:
        """`Peer.on_notification`, for this session alone; asked before the peer's handlers."""
        return self._own_handlers().on_notification

    def register(self, provider: HandlerProvider) -> None:
        """`Peer.register`, for this session alone."""
        self._own_handlers().register(provider)

    def remove(self, target: object) -> None:
        """Take handlers of this session alone off again; see `Peer.remove`."""
        self._own_handlers().remove(target)

    def _own_handlers(self) -> Handlers:
        if self._handlers is None:
            self._handlers = Handlers()
            chain = HandlerChain(self._handlers, self._peer_handlers)
            self._connection.exchange.serve_with(chain)
        return self._handlers

    # -- life ------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """True when the session has ended, in whichever way."""
        return self._connection.closed.done()

    @property
    def close_reason(self) -> SessionClosed | None:
        """Why the session ended; None while it has not, or where it ended in good order."""
        return self._connection.close_reason

    async def wait_closed(self) -> None:
        """Wait until the session has ended, in whichever way; see `close_reason`."""
        await _wait(self._connection.closed)

    async def aclose(self) -> None:
        """End the session in good order.

        Calls of this side fail with `SessionClosed`, and are cancelled on the other side. What
        this side serves may finish within ``Timeouts.goodbye``; new requests are refused. A
        spawned child is ended for sure. May be called by several tasks, twice, and while
        cancelled; the closing goes on then. Called by a handler of this session it only begins the
        closing, which waits for that handler.
        """
        call = serving.get()
        if call is not None and call.session is self and not call.finished:
            self._connection.begin_close()
            return
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def on_close(self, callback: Callable[[SessionClosed | None], object]) -> None:
        """Call ``callback`` when the session has ended.

        It gets the reason, or None where the session ended in good order. At once, in the next
        turn of the loop, if it has ended already. What it raises is logged.

        :param callback: a plain function; one that has to wait starts a task
        :raises TypeError: it is no function, or an ``async def``
        """
        check_callback("on_close", callback)
        connection = self._connection
        if connection.closed.done():
            connection.loop.call_soon(connection.call_back, callback, connection.close_reason)
        else:
            connection.on_close += (callback,)

    def on_noise(self, callback: Callable[[bytes], object]) -> None:
        """Call ``callback`` with bytes that came between frames, instead of logging them.

        Each piece has at most ``Limits.max_noise`` bytes. Only pipes and stdio tolerate noise.

        :param callback: a plain function
        :raises TypeError: it is no function, or an ``async def``
        """
        check_callback("on_noise", callback)
        self._connection.on_noise += (callback,)

    # -- what is known ---------------------------------------------------------------------

    @property
    def description(self) -> str:
        """What the session runs over, for messages to people."""
        return self._connection.transport.description

    @property
    def credentials(self) -> Credentials | None:
        """Process, user and group at the other end of a unix socket; None elsewhere.

        Authorise by ``uid``, never by ``pid``. Of a socketpair, the kernel knows only who made it:
        a child finds its parent here, a parent that made the pair finds None (see `process`).
        """
        return self._connection.transport.credentials

    def statistics(self) -> Statistics:
        """Counters since the session began, and how it stands now."""
        connection = self._connection
        exchange = connection.exchange
        calls, dispatch, router = exchange.calls, exchange.dispatch, exchange.router
        sender, receiver = exchange.notifications, exchange.incoming_notifications
        sideband = exchange.sideband
        placing = sideband.placing if sideband is not None else None
        arrivals = sideband.arrivals if sideband is not None else None
        return Statistics(
            requests_sent=calls.requests,
            requests_served=dispatch.requests,
            requests_refused=dispatch.refused,
            notifications_sent=sender.sent,
            notifications_received=receiver.received,
            notifications_unhandled=receiver.unhandled,
            faults_sent=dispatch.faults,
            timeouts=calls.timeouts,
            cancels_sent=calls.cancelled,
            late_replies=calls.late_replies,
            ignored_messages=router.ignored if router is not None else 0,
            bytes_sent=exchange.outbox.bytes_sent,
            bytes_received=connection.bytes_received,
            noise_received=connection.noise_received,
            items_sent=exchange.streams.items_sent,
            items_received=exchange.streams.items_received,
            stalls=exchange.streams.stalls,
            pending=len(calls.pending),
            queued=calls.slots.queued + sender.gate.waiting,
            running=len(dispatch.running) + len(receiver.running),
            outbox_size=exchange.outbox.size,
            descriptors_sent=0 if placing is None else placing.descriptors_sent,
            descriptors_received=0 if arrivals is None else arrivals.descriptors_received,
            shared_bytes_sent=0 if placing is None else placing.shared_sent,
            shared_bytes_received=0 if arrivals is None else arrivals.shared_received,
            arena_used=0 if placing is None else placing.arena_used,
            progress_dropped=calls.progress_dropped + dispatch.progress.dropped,
        )

    def __repr__(self) -> str:
        return f"<Session {self.description} {self._connection.state.value}>"


async def _wait(future: Awaitable[None]) -> None:
    """Wait for a future that others wait for too: being cancelled must not cancel it."""
    await asyncio.shield(future)
