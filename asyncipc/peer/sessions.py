"""How a peer opens sessions and servers, and which it has open in each event loop.

Layer 3, inside the peer. Above: the peer. Below: holdings, session.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from asyncipc.lazy import LazyModule
from asyncipc.peer.holdings import Holdings
from asyncipc.peer.options import codec_choice
from asyncipc.session.session import Session
from asyncipc.session.settings import SessionSettings
from asyncipc.wire.framing import new_read_buffer
from asyncipc.wire.handshake import Role

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from asyncipc.config import Limits, Timeouts
    from asyncipc.peer import listening
    from asyncipc.peer import server as serving
    from asyncipc.peer.address import TcpAddress, UnixAddress
    from asyncipc.peer.companion import ChildCompanion
    from asyncipc.peer.server import Server
    from asyncipc.process.child import ChildProcess
    from asyncipc.session.handlers import Handlers
    from asyncipc.transport.base import Transport
    from asyncipc.wire.codec import Codec
else:
    serving = LazyModule("asyncipc.peer.server")

__all__ = ["Sessions"]


class Sessions:
    """The sessions of one peer, in any number of event loops.

    :param handlers: those of the peer, which serve all sessions
    :param codec: see `asyncipc.Peer` for this and the rest
    :raises ValueError: there is no codec of that name
    """

    def __init__(
        self,
        handlers: Handlers,
        *,
        codec: str | Codec,
        timeout: float | None,
        timeouts: Timeouts,
        request_ids: Callable[[], object] | None,
        tracebacks: bool,
    ) -> None:
        codec_choice(codec)  # an unknown name is an error here, not at the first session
        self._handlers = handlers
        self._codec = codec
        self._timeout = timeout
        self._timeouts = timeouts
        self._request_ids = request_ids
        self._tracebacks = tracebacks
        self._holdings: dict[asyncio.AbstractEventLoop, Holdings] = {}

    def standing(self) -> frozenset[Session]:
        """Those that stand now, in any loop."""
        holdings = tuple(self._holdings.values())
        return frozenset[Session]().union(*(here.sessions for here in holdings))

    def here(self) -> Holdings:
        """What there is in the running loop. Each loop's thread sees to its own."""
        loop = asyncio.get_running_loop()
        here = self._holdings.get(loop)
        if here is None:
            # What was left open in a loop that is closed cannot be closed any more.
            for other in tuple(self._holdings):
                if other.is_closed():
                    self._holdings.pop(other, None)
            here = self._holdings[loop] = Holdings()
        return here

    async def open(
        self, transport: Transport, role: Role, limits: Limits, token: bytes | None = None
    ) -> Session:
        """Open a session over a transport."""
        session = self._session(transport, role, limits, token)
        return await self.here().open_session(session)

    async def open_child(
        self,
        transport: Transport,
        role: Role,
        limits: Limits,
        process: ChildProcess,
        child: ChildCompanion,
    ) -> Session:
        """Open the session with a child, which ends with it."""
        session = self._session(transport, role, limits)
        session.accompany(process, child)
        return await self.here().open_session(session)

    def serve(
        self,
        socket: listening.ListeningSocket,
        address: UnixAddress | TcpAddress,
        limits: Limits,
        token: bytes | None,
        on_session: Callable[[Session], object] | None,
        *,
        tls: ssl.SSLContext | None = None,
        users: frozenset[int] | None = None,
    ) -> Server:
        """Open a session with each that connects to a socket."""
        here = self.here()

        async def open_session(
            transport: Transport, on_open: Callable[[Session], object]
        ) -> Session:
            session = self._session(transport, Role.LISTENING, limits, token)
            return await here.open_session(session, on_open)

        server = serving.Server(
            socket,
            address,
            open_session,
            tls=tls,
            users=users,
            max_sessions=limits.max_sessions,
            handshake_timeout=self._timeouts.handshake,
            on_session=on_session,
        )
        here.add_server(server)
        return server

    def _session(
        self, transport: Transport, role: Role, limits: Limits, token: bytes | None = None
    ) -> Session:
        return Session(transport, role, self._settings(limits), self._handlers, token=token)

    def _settings(self, limits: Limits) -> SessionSettings:
        """Settings with what the sessions of one loop share and those of another must not."""
        of_loop = self.here().settings
        settings = of_loop.get(limits)
        if settings is None:
            codec, codecs = codec_choice(self._codec)
            settings = of_loop[limits] = SessionSettings(
                codec=codec,
                codecs=codecs,
                limits=limits,
                timeouts=self._timeouts,
                timeout=self._timeout,
                request_ids=self._request_ids,
                tracebacks=self._tracebacks,
                read_buffer=new_read_buffer(),
            )
        return settings
