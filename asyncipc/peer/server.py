"""Server: accepts connections and makes sessions of them.

Layer 3, inside the peer. Below: transport, session.
"""

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias

from asyncipc.errors import IPCError
from asyncipc.peer.address import TcpAddress, UnixAddress
from asyncipc.peer.listening import ListeningSocket
from asyncipc.session.session import Session
from asyncipc.transport.base import Transport
from asyncipc.transport.sockets import SocketTransport
from asyncipc.transport.tls import accept as accept_tls
from asyncipc.wire.framing import frame_header
from asyncipc.wire.handshake import encode_goodbye
from asyncipc.wire.messages import GoodbyeCode

__all__ = ["Server", "Users"]

logger = logging.getLogger("asyncipc")

# Who may connect to a unix socket: the user of this process, anybody, or these user ids.
Users: TypeAlias = Literal["same", "any"] | Collection[int]

# Connections taken in one turn of the loop, so that a flood of them does not stop everything else.
ACCEPT_BATCH: Final = 64

# When no descriptor is left, the next connection is taken after this many seconds.
ACCEPT_PAUSE: Final = 0.2


class Server:
    """A listening socket and the sessions that came in on it; made by ``peer.serve``."""

    def __init__(
        self,
        listening: ListeningSocket,
        address: UnixAddress | TcpAddress,
        make_session: Callable[[Transport], Session],
        *,
        tls: ssl.SSLContext | None,
        users: Users,
        max_sessions: int,
        handshake_timeout: float,
        on_session: Callable[[Session], object] | None,
    ) -> None:
        self._listening = listening
        self._address = address
        self._make_session = make_session
        self._tls = tls
        self._users = users
        self._max_sessions = max_sessions
        self._handshake_timeout = handshake_timeout
        self._on_session = on_session
        self._loop = asyncio.get_running_loop()
        self._sessions: set[Session] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None
        self._closed = asyncio.Event()
        self._on_close: list[Callable[[], object]] = []
        self._loop.add_reader(listening.sock, self._accept)

    @property
    def address(self) -> str:
        """Where to connect to, with the port that the kernel chose if it was 0."""
        return str(self._address)

    @property
    def sessions(self) -> frozenset[Session]:
        """The sessions that stand now."""
        return frozenset(self._sessions)

    def on_close(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` when the server is closed."""
        self._on_close.append(callback)

    async def wait_closed(self) -> None:
        """Wait until `aclose` is done."""
        await self._closed.wait()

    async def aclose(self) -> None:
        """Stop listening, give the path back, and end all sessions in good order, together.

        May be called twice and by several tasks; goes on when the caller is cancelled.
        """
        if self._closing is None:
            self._stop_listening()
            self._closing = self._loop.create_task(self._close())
        await asyncio.shield(self._closing)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<Server {self.address} with {len(self._sessions)} sessions>"

    async def _close(self) -> None:
        try:
            for task in self._opening:
                task.cancel()
            sessions = list(self._sessions)
            await asyncio.gather(
                *self._opening,
                *(session.aclose() for session in sessions),
                return_exceptions=True,
            )
        finally:
            self._closed.set()
            for callback in self._on_close:
                callback()

    def _stop_listening(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listening.sock)
        self._listening.close()

    def _accept(self) -> None:
        for _ in range(ACCEPT_BATCH):
            try:
                sock, _ = self._listening.sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:
                logger.exception("cannot accept on %s; trying again soon", self.address)
                self._loop.remove_reader(self._listening.sock)
                self._pause = self._loop.call_later(ACCEPT_PAUSE, self._accept_again)
                return
            self._take(sock)

    def _accept_again(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listening.sock, self._accept)

    def _take(self, sock: socket.socket) -> None:
        if len(self._sessions) + len(self._opening) >= self._max_sessions:
            reason = (
                f"{self._max_sessions} sessions are open here; Limits.max_sessions allows no more"
            )
            logger.warning("%s: a connection was refused: %s", self.address, reason)
            goodbye = encode_goodbye(GoodbyeCode.OVERLOADED, reason)
            with sock:
                sock.setblocking(False)
                try:
                    sock.send(frame_header(len(goodbye)) + goodbye)
                except OSError as error:
                    logger.debug("%s: it could not be told: %s", self.address, error)
            return
        task = self._loop.create_task(self._open(sock))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, sock: socket.socket) -> None:
        try:
            if self._tls is None:
                transport: Transport = SocketTransport(
                    sock, description=f"{self.address} (accepted)"
                )
            else:
                transport = await accept_tls(
                    sock, self._tls, handshake_timeout=self._handshake_timeout
                )
        except (OSError, ssl.SSLError, TimeoutError) as error:
            logger.warning("%s: a connection failed: %s", self.address, error)
            return
        if not self._is_welcome(transport):
            transport.close()
            return
        session = self._make_session(transport)
        try:
            await session.start()
        except IPCError as error:
            logger.warning("%s: no session came of a connection: %s", self.address, error)
            return
        self._sessions.add(session)
        session.on_close(lambda _: self._sessions.discard(session))
        if self._on_session is not None:
            self._on_session(session)

    def _is_welcome(self, transport: Transport) -> bool:
        if isinstance(self._address, TcpAddress) or self._users == "any":
            return True
        allowed = (os.geteuid(),) if self._users == "same" else self._users
        credentials = transport.credentials
        if credentials is not None and credentials.uid in allowed:
            return True
        who = f"user {credentials.uid}" if credentials is not None else "an unknown user"
        logger.warning("%s: refused a connection of %s; users= admits others", self.address, who)
        return False
