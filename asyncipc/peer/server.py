"""Server: accepts connections and makes sessions of them.

Layer 3, inside the peer. Below: transport, session.
"""

import asyncio
import inspect
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from functools import partial
from types import TracebackType
from typing import Any, Final, Protocol, Self

from asyncipc.callbacks import call_back, check_callback
from asyncipc.errors import IPCError, SessionClosed
from asyncipc.peer.address import TcpAddress, UnixAddress
from asyncipc.peer.listening import ListeningSocket
from asyncipc.session.context import serving
from asyncipc.session.session import Session
from asyncipc.transport.base import Transport
from asyncipc.transport.sockets import SocketTransport, peer_credentials
from asyncipc.transport.tls import accept as accept_tls
from asyncipc.wire.framing import frame_header
from asyncipc.wire.handshake import encode_goodbye
from asyncipc.wire.messages import GoodbyeCode

__all__ = ["Server"]

logger: logging.Logger = logging.getLogger("asyncipc")

# Connections taken in one turn of the loop, so that a flood of them does not stop everything else.
ACCEPT_BATCH: Final = 64

# When no descriptor is left, the next connection is taken after this many seconds: the kernel has
# no event for a descriptor that was closed.
ACCEPT_PAUSE: Final = 0.2

# A session that its owner could not take is of no use to the other side either.
ON_SESSION_FAILED: Final = "%s: on_session failed, so the session is closed"


class OpenSession(Protocol):
    """Makes a session of a connection."""

    def __call__(
        self, transport: Transport, on_open: Callable[[Session], object]
    ) -> Awaitable[Session]:
        """Call ``on_open`` when it stands; return when it has."""
        ...


class Server:
    """A listening socket and the sessions that came in on it; made by ``peer.serve``."""

    def __init__(
        self,
        listening: ListeningSocket,
        address: UnixAddress | TcpAddress,
        open_session: OpenSession,
        *,
        tls: ssl.SSLContext | None,
        users: frozenset[int] | None,
        max_sessions: int,
        handshake_timeout: float,
        on_session: Callable[[Session], object] | None,
    ) -> None:
        """Begin to listen.

        :param open_session: makes a session of a connection
        :param users: ids of who may connect to a unix socket; None: everybody
        """
        self._listening = listening
        self._address = address
        self._open_session = open_session
        self._tls = tls
        self._users = users if isinstance(address, UnixAddress) else None
        self._max_sessions = max_sessions
        self._handshake_timeout = handshake_timeout
        self._on_session = on_session
        self._loop = asyncio.get_running_loop()
        self._sessions: set[Session] = set()
        self._in_handshake: set[socket.socket] = set()
        self._tasks: set[asyncio.Task[None]] = set()  # of connections that are new
        self._pause: asyncio.TimerHandle | None = None
        self._accept_fails = False
        self._closing: asyncio.Task[None] | None = None
        self._closed = asyncio.Event()
        self._on_close: list[Callable[[], object]] = []
        # What the loop calls serves nobody's call, whoever opened the server.
        Context().run(self._loop.add_reader, listening.sock, self._accept)

    @property
    def address(self) -> str:
        """Where to connect to, with the port that the kernel chose if it was 0."""
        return str(self._address)

    @property
    def sessions(self) -> frozenset[Session]:
        """The sessions that stand now."""
        return frozenset(self._sessions)

    def on_close(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` when the server is closed; in the next turn of the loop, if it is.

        :param callback: a plain function; one that has to wait starts a task. What it raises is
            logged.
        :raises TypeError: it is no function, or an ``async def``
        """
        check_callback("on_close", callback)
        if self._closed.is_set():
            self._loop.call_soon(self._call_back, callback)
        else:
            self._on_close.append(callback)

    async def wait_closed(self) -> None:
        """Wait until `aclose` is done."""
        await self._closed.wait()

    async def aclose(self) -> None:
        """Stop listening, give the path back, and end all sessions in good order, together.

        Connections that are no sessions yet are dropped. May be called twice and by several
        tasks; goes on when the caller is cancelled. Called by a handler of one of its sessions it
        only begins the closing, which waits for that handler.
        """
        if self._closing is None:
            self._stop_listening()
            self._closing = self._loop.create_task(self._close())
        call = serving.get()
        if call is not None and not call.finished and call.session in self._sessions:
            return  # the closing waits for this very handler
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
        state = "open" if self._closing is None else "closed"
        return f"<Server {self.address} {state} with {len(self._sessions)} sessions>"

    # -- closing ---------------------------------------------------------------------------

    def _stop_listening(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listening.sock)
        self._listening.close()

    async def _close(self) -> None:
        try:
            # This task was made after all of them, so each has begun and owns its socket.
            for task in self._tasks:
                task.cancel()
            closings = [session.aclose() for session in self._sessions]
            await asyncio.gather(*self._tasks, *closings, return_exceptions=True)
        finally:
            self._closed.set()
            for callback in self._on_close:
                self._call_back(callback)

    def _call_back(self, callback: Callable[[], object]) -> None:
        call_back(callback, source=f"the server on {self.address}")

    # -- accepting -------------------------------------------------------------------------

    def _accept(self) -> None:
        for _ in range(ACCEPT_BATCH):
            try:
                sock, _ = self._listening.sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._accept_later(error)
                return
            self._accept_fails = False
            self._take(sock)

    def _accept_later(self, error: OSError) -> None:
        """The connection stays in the kernel's queue until descriptors are free again."""
        if not self._accept_fails:
            self._accept_fails = True
            logger.error("%s: cannot accept, and tries again until it can: %s", self.address, error)
        self._loop.remove_reader(self._listening.sock)
        self._pause = self._loop.call_later(ACCEPT_PAUSE, self._accept_again)

    def _accept_again(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listening.sock, self._accept)

    def _take(self, sock: socket.socket) -> None:
        refusal = self._refusal(sock)
        if refusal is not None:
            logger.warning("%s: a connection was refused: %s", self.address, refusal[1])
            self._refuse(sock, *refusal)
            return
        self._in_handshake.add(sock)
        self._start(self._serve(sock))

    def _refusal(self, sock: socket.socket) -> tuple[GoodbyeCode, str] | None:
        """Why a connection is not taken, if it is not."""
        if len(self._sessions) + len(self._in_handshake) >= self._max_sessions:
            reason = f"Limits.max_sessions, which is {self._max_sessions}, allows no more sessions"
            return GoodbyeCode.OVERLOADED, reason
        if self._users is not None:
            credentials = peer_credentials(sock)
            if credentials is None or credentials.uid not in self._users:
                who = f"user {credentials.uid}" if credentials is not None else "an unknown user"
                return GoodbyeCode.AUTHENTICATION, f"{who} may not connect; users= admits others"
        return None

    def _refuse(self, sock: socket.socket, code: GoodbyeCode, reason: str) -> None:
        """Tell the other side, unless it speaks TLS, and hang up."""
        goodbye = encode_goodbye(code, reason)
        with sock:
            sock.setblocking(False)
            if self._tls is None:
                try:
                    sock.send(frame_header(len(goodbye)) + goodbye)
                except OSError as error:
                    logger.debug("%s: it could not be told: %s", self.address, error)

    async def _serve(self, sock: socket.socket) -> None:
        """A connection from its first byte on, until it is a session, or none."""
        try:
            transport = await self._secure(sock)
            await self._open_session(transport, partial(self._present, sock))
        except (IPCError, OSError) as error:
            logger.warning("%s: no session came of a connection: %s", self.address, error)
        except Exception:
            logger.exception("%s: no session came of a connection", self.address)
        finally:
            self._in_handshake.discard(sock)

    async def _secure(self, sock: socket.socket) -> Transport:
        if self._tls is not None:
            timeout = self._handshake_timeout
            return await accept_tls(sock, self._tls, handshake_timeout=timeout)
        try:
            return SocketTransport(sock, description=f"{self.address} (accepted)")
        except BaseException:
            sock.close()
            raise

    def _present(self, sock: socket.socket, session: Session) -> None:
        """The session stands: show it to its owner before its first message is served."""
        self._in_handshake.discard(sock)
        self._sessions.add(session)
        session.on_close(lambda _: self._sessions.discard(session))
        if self._on_session is None or self._closing is not None:
            return
        try:
            result = self._on_session(session)
        except Exception:
            logger.exception(ON_SESSION_FAILED, self.address)
            self._start(session.aclose())
        else:
            if inspect.isawaitable(result):
                self._start(self._finish_presenting(session, result))

    async def _finish_presenting(self, session: Session, result: Awaitable[object]) -> None:
        try:
            await result
        except Exception as error:
            if isinstance(error, SessionClosed) and session.closed:
                return  # it ended on its own meanwhile
            logger.exception(ON_SESSION_FAILED, self.address)
            await session.aclose()

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
