"""What a peer has open in one event loop, and what its sessions there share.

Layer 3, inside the peer. Below: session.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncipc.config import Limits
    from asyncipc.peer.server import Server
    from asyncipc.session.session import Session
    from asyncipc.session.settings import SessionSettings

__all__ = ["Holdings"]


class Holdings:
    """The servers and sessions of a peer in one loop; used from that loop's thread alone.

    :ivar sessions: those that stand
    :ivar settings: of the sessions, by their limits
    """

    __slots__ = ("_servers", "_unclosed", "sessions", "settings")

    def __init__(self) -> None:
        self.sessions: set[Session] = set()
        self.settings: dict[Limits, SessionSettings] = {}
        self._servers: set[Server] = set()
        self._unclosed: set[Session] = set()  # those in their handshake too

    def add_server(self, server: Server) -> None:
        """Hold a server until it is closed."""
        self._servers.add(server)
        server.on_close(lambda: self._servers.discard(server))

    async def open_session(
        self, session: Session, on_open: Callable[[Session], object] | None = None
    ) -> Session:
        """Start a session and hold it until it is closed; see `Session.start`."""

        def stands(session: Session) -> None:
            self.sessions.add(session)
            if on_open is not None:
                on_open(session)

        self._unclosed.add(session)
        session.on_close(partial(self._forget, session))
        await session.start(stands)
        return session

    async def aclose(self) -> None:
        """Close everything, together; goes on when the caller is cancelled."""
        servers = [server.aclose() for server in self._servers]
        sessions = [session.aclose() for session in self._unclosed]
        await asyncio.shield(asyncio.gather(*servers, *sessions))

    def _forget(self, session: Session, _reason: object) -> None:
        self._unclosed.discard(session)
        self.sessions.discard(session)
