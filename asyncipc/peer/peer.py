"""Peer: one side of any number of sessions; its handlers serve them all.

Layer 3. Above: pools, services' daemons, the command line. Below: session, transport, process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Self

from asyncipc.callbacks import check_callback
from asyncipc.config import NETWORK_LIMITS, Limits, Timeouts
from asyncipc.errors import AddressError
from asyncipc.lazy import LazyModule
from asyncipc.peer.address import (
    ExecAddress,
    FdAddress,
    TcpAddress,
    UnixAddress,
    parse_address,
)
from asyncipc.peer.opening import Opening
from asyncipc.peer.options import (
    allowed_users,
    check_client_tls,
    check_connecting,
    check_kind,
    check_listening,
    check_network_security,
    check_seconds,
    check_server_tls,
    file_mode,
    id_source,
    token_bytes,
)
from asyncipc.peer.sessions import Sessions
from asyncipc.session.handlers import Handlers
from asyncipc.session.params import check_timeout
from asyncipc.wire.handshake import Role

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from types import TracebackType

    from asyncipc.peer import companion, connecting, listening, resolving, spawning, wrapping
    from asyncipc.peer.options import RequestIds, Users
    from asyncipc.peer.server import Server
    from asyncipc.peer.spawning import Channel
    from asyncipc.peer.wrapping import Readable, Writable
    from asyncipc.process import lifeline
    from asyncipc.process.stderr import StderrMode
    from asyncipc.session.session import Session
    from asyncipc.transport import memory, sockets, stdio
    from asyncipc.transport.base import Transport
    from asyncipc.wire.codec import Codec
else:  # a peer needs few of these: each is imported by the first session that does
    companion = LazyModule("asyncipc.peer.companion")
    connecting = LazyModule("asyncipc.peer.connecting")
    listening = LazyModule("asyncipc.peer.listening")
    resolving = LazyModule("asyncipc.peer.resolving")
    spawning = LazyModule("asyncipc.peer.spawning")
    wrapping = LazyModule("asyncipc.peer.wrapping")
    lifeline = LazyModule("asyncipc.process.lifeline")
    memory = LazyModule("asyncipc.transport.memory")
    sockets = LazyModule("asyncipc.transport.sockets")
    stdio = LazyModule("asyncipc.transport.stdio")

__all__ = ["Peer", "memory_pair"]


class Peer(Handlers):
    """One side of any number of sessions: its handlers serve them all, its settings hold for all.

    ``async with Peer() as peer`` closes what it opened. A peer may be made anywhere, also at
    module level; its sessions belong to the event loop in which they are opened.

    :param codec: ``"msgpack"``, ``"json"``, or an object with the methods of `Codec`; asked for
        when this side connects. A listening side speaks all three.
    :param timeout: seconds that a request waits for its answer by default; None for no limit
    :param limits: what sessions accept and hold. By default `Limits`, and `NETWORK_LIMITS` for
        sessions that come in over TCP.
    :param timeouts: how long the steps of opening and closing may take
    :param request_ids: an iterator, or a function without parameters, that gives each request an
        id for logs and traces; the handler finds it as ``call.metadata["request_id"]``
    :param tracebacks: send the tracebacks of failed handlers to their callers
    """

    def __init__(
        self,
        *,
        codec: str | Codec = "msgpack",
        timeout: float | None = 30.0,
        limits: Limits | None = None,
        timeouts: Timeouts | None = None,
        request_ids: RequestIds | None = None,
        tracebacks: bool = True,
    ) -> None:
        super().__init__()
        if limits is not None:
            check_kind("limits", limits, Limits)
        if timeouts is not None:
            check_kind("timeouts", timeouts, Timeouts)
        check_kind("tracebacks", tracebacks, bool)
        self._limits = limits
        self._timeouts = timeouts if timeouts is not None else Timeouts()
        self._sessions = Sessions(
            self,
            codec=codec,
            timeout=check_timeout(timeout),
            timeouts=self._timeouts,
            request_ids=id_source(request_ids),
            tracebacks=tracebacks,
        )

    # -- opening ---------------------------------------------------------------------------

    def connect(
        self,
        address: str,
        *,
        tls: ssl.SSLContext | None = None,
        token: str | bytes | None = None,
        users: Users = "any",
        retry_for: float = 0,
    ) -> Opening[Session]:
        """Connect to a listening peer.

        :param address: ``unix:/run/app.sock``, ``tcp:host:port``, ``fd:3`` (a connected stream
            socket, which is taken over), or ``exec:program arguments`` (as `spawn`)
        :param tls: a client-side context, for TCP
        :param token: the secret that the listener asks for
        :param users: whose listener it may be, on a unix socket: ``"any"``, ``"same"`` as this
            process, or user ids. Give it where others may listen too: for ``unix:@name``, and for
            a path in a directory that is not yours, such as /tmp.
        :param retry_for: seconds for which to try again while nobody listens yet, or who does goes
            in the handshake. The last attempt may take ``Timeouts.handshake`` more.
        :returns: to be awaited for a `Session`, or used as ``async with ... as session``
        :raises AddressError: the address cannot be understood
        :raises OSError: nobody listens there; `TimeoutError` where it takes too long to find out
        :raises RemoteProtocolError: who listens there does not speak this protocol, or no common
            version of it; `HandshakeTimeout` where no hello came in time
        :raises AuthenticationError: the token was not accepted, or is missing; or another user
            listens than ``users`` admits, who was sent nothing then
        :raises SessionClosed: the other side hung up, or had too many sessions
        :raises ssl.SSLError: TLS could not be agreed on
        """
        parsed = parse_address(address)
        check_seconds("retry_for", retry_for)
        check_client_tls(tls)
        secret = token_bytes(token)
        admitted = allowed_users(users)
        check_connecting(parsed, tls=tls, token=secret, users=users, retry_for=retry_for)
        if isinstance(parsed, ExecAddress):
            return self.spawn(parsed.argv)
        return Opening(self._connect(parsed, tls, secret, admitted, retry_for))

    def spawn(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        stderr: StderrMode = None,
        channel: Channel = "stdio",
    ) -> Opening[Session]:
        """Start a program and speak to it; see ``docs/stdio.md``.

        The child is ended for sure with the session: goodbye, its input closed, SIGTERM, SIGKILL,
        ``Timeouts.terminate`` apart, to its whole process group; and when this process dies.

        :param argv: the program and its arguments
        :param env: its whole environment; None: this process's
        :param cwd: its working directory
        :param stderr: None: as this process's; ``"capture"``: kept, a bounded end of it, for error
            messages; a function: called with each line; a logger: gets each line
        :param channel: ``"stdio"`` for programs in any language, or ``"socketpair"``, which only
            a child that uses this library finds; its output is that of this process then, and its
            input is empty
        :returns: to be awaited for a `Session` with a ``process``, or used in ``async with``
        :raises FileNotFoundError: there is no such program
        :raises PermissionError: it may not be executed
        :raises PeerDied: it exited before a session stood; with its exit code and stderr
        :raises RemoteProtocolError: it does not speak this protocol; `HandshakeTimeout` where it
            said nothing. What it wrote to stderr is in the error's notes.
        """
        return Opening(self._spawn(argv, env, cwd, stderr, channel))

    def stdio(self) -> Opening[Session]:
        """Speak to the program that started this one; see ``docs/stdio.md``.

        Takes standard input and output for itself, so that ``print`` goes to stderr from here on;
        or the socketpair that the parent passed. If the parent dies, this process dies.

        :returns: to be awaited for a `Session`, or used as ``async with ... as session``
        :raises AddressError: standard input or output is closed, or open the wrong way round
        :raises LocalProtocolError: they are taken already
        """
        return Opening(self._stdio())

    def wrap(self, reader: Readable, writer: Writable | None = None) -> Opening[Session]:
        """Speak over a pair of byte streams that exists already.

        Both ends wrap theirs; neither is the listener. The session owns the streams from now on.

        :param reader: an asyncio ``StreamReader``, an anyio ``ByteStream`` or receive half, a
            socket, a file descriptor, or a file, pipe end or other object with ``fileno()`` and
            ``close()`` (it is closed; the session has a copy of its descriptor, and what the file
            has read ahead; of a text file, not what it has decoded)
        :param writer: its counterpart; None where ``reader`` goes both ways
        :returns: to be awaited for a `Session`, or used as ``async with ... as session``
        :raises TypeError: the two do not make a pair of byte streams
        :raises OSError: a descriptor is not open
        :raises RemoteProtocolError: the other side does not speak this protocol, and so on as for
            `connect`
        """
        return Opening(self._wrap(reader, writer))

    def serve(
        self,
        address: str,
        *,
        tls: ssl.SSLContext | None = None,
        token: str | bytes | None = None,
        insecure: bool = False,
        users: Users = "same",
        mode: int | None = None,
        on_session: Callable[[Session], object] | None = None,
    ) -> Opening[Server]:
        """Listen for sessions.

        :param address: ``unix:/run/app.sock``, ``unix:@name`` or ``tcp:host:port`` (port 0: any;
            of the addresses that a name has, the first that this machine can use)
        :param tls: a server-side context, for TCP
        :param token: a secret that who connects must know; it never crosses the wire
        :param insecure: listen on TCP to whoever can reach the port. Otherwise TCP needs a token
            or a TLS context that requires client certificates, and TLS beyond the loopback.
        :param users: who may connect to a unix socket: ``"same"`` as this process, ``"any"``, or
            user ids
        :param mode: permissions of the socket's file; by default 0o600, or 0o666 where others than
            the user of this process are to connect
        :param on_session: called with each new session; an ``async def`` is awaited. If it raises,
            the session is closed. A session that should have handlers of its own gets them in a
            plain function, before its first message is served.
        :returns: to be awaited for a `Server`, or used as ``async with ... as server``
        :raises AddressError: the address cannot be listened on, or not without more security
        :raises AddressInUse: a live server is there
        :raises OSError: the directory or the host is not there, or not ours
        """
        parsed = parse_address(address)
        check_server_tls(tls)
        check_kind("insecure", insecure, bool)
        secret = token_bytes(token)
        allowed = allowed_users(users)
        permissions = file_mode(mode, users)
        if on_session is not None:
            check_callback("on_session", on_session, is_awaited=True)
        if isinstance(parsed, FdAddress | ExecAddress):
            raise AddressError(f"unix: and tcp: addresses can be listened on, {parsed} cannot")
        check_listening(parsed, tls=tls, users=users, mode=mode)
        if isinstance(parsed, TcpAddress):
            return Opening(self._serve_tcp(parsed, tls, secret, insecure, on_session))
        return Opening(self._serve_unix(parsed, secret, allowed, permissions, on_session))

    # -- life ------------------------------------------------------------------------------

    @property
    def sessions(self) -> frozenset[Session]:
        """All sessions of this peer that stand now, in any loop, those of its servers included."""
        return self._sessions.standing()

    async def aclose(self) -> None:
        """Close all servers and sessions that this peer has in the running event loop.

        They close together and in good order; goes on when the caller is cancelled. The peer may
        be used again.
        """
        await self._sessions.here().aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    # -- private ---------------------------------------------------------------------------

    async def _connect(
        self,
        address: UnixAddress | TcpAddress | FdAddress,
        tls: ssl.SSLContext | None,
        token: bytes | None,
        users: frozenset[int] | None,
        retry_for: float,
    ) -> Session:
        async def attempt() -> Session:
            patience = self._timeouts.handshake
            transport = await connecting.open_transport(address, tls, users, patience)
            return await self._sessions.open(transport, Role.CONNECTING, self._own_limits(), token)

        return await connecting.retry(attempt, connecting.NOT_THERE_YET, retry_for)

    async def _spawn(
        self,
        argv: Sequence[str | os.PathLike[str]],
        env: Mapping[str, str] | None,
        cwd: str | os.PathLike[str] | None,
        stderr: StderrMode,
        channel: Channel,
    ) -> Session:
        limits = self._own_limits()
        spawned = spawning.spawn_child(
            argv,
            env=env,
            cwd=cwd,
            stderr=stderr,
            channel=channel,
            stderr_tail=limits.stderr_tail,
        )
        child = companion.ChildCompanion(spawned.process, spawned.stderr, self._timeouts.terminate)
        return await self._sessions.open_child(
            spawned.transport, Role.CONNECTING, limits, spawned.process, child
        )

    async def _stdio(self) -> Session:
        lifeline.arm_inherited_lifeline()
        channel = stdio.inherited_socketpair()
        transport: Transport
        if channel is not None:
            transport = sockets.SocketTransport(channel, description="inherited socketpair")
        else:
            transport = stdio.claim()
        return await self._open(transport, Role.LISTENING)

    async def _wrap(self, reader: Readable, writer: Writable | None) -> Session:
        return await self._open(wrapping.wrap_streams(reader, writer), Role.EITHER)

    async def _serve_unix(
        self,
        address: UnixAddress,
        token: bytes | None,
        users: frozenset[int] | None,
        mode: int,
        on_session: Callable[[Session], object] | None,
    ) -> Server:
        socket = listening.listen_unix(address, mode)
        return self._sessions.serve(
            socket, address, self._own_limits(), token, on_session, users=users
        )

    async def _serve_tcp(
        self,
        address: TcpAddress,
        tls: ssl.SSLContext | None,
        token: bytes | None,
        insecure: bool,
        on_session: Callable[[Session], object] | None,
    ) -> Server:
        resolved = await resolving.resolve(address)
        if not insecure:
            check_network_security(address, resolved, tls, token)
        limits = self._limits or NETWORK_LIMITS
        socket = listening.listen_tcp(address, resolved)
        address = TcpAddress(address.host, socket.sock.getsockname()[1])
        return self._sessions.serve(socket, address, limits, token, on_session, tls=tls)

    async def _open(self, transport: Transport, role: Role) -> Session:
        return await self._sessions.open(transport, role, self._own_limits())

    def _own_limits(self) -> Limits:
        return self._limits or Limits()


@contextlib.asynccontextmanager
async def memory_pair(first: Peer, second: Peer) -> AsyncIterator[tuple[Session, Session]]:
    """Two connected sessions in one process, for tests and for embedding.

    :returns: a context manager for the session of ``first`` and that of ``second``; both are
        closed at the end
    """
    ours, theirs = memory.memory_transports()
    session, other = await asyncio.gather(
        first._open(ours, Role.CONNECTING),  # noqa: SLF001 - for who knows transports
        second._open(theirs, Role.LISTENING),  # noqa: SLF001 - likewise
    )
    async with session, other:
        yield session, other
