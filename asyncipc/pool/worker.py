"""A worker: a process with a loop and one session, that runs what the application sends.

It imports little: the session and below. It ends when the session does, by SIGTERM, and with the
application, whatever it is doing (its lifeline).

Layer 4, inside the pool. Above: the zygote, which forks it; or it is a program of its own. Below:
jobs, outside, logs, main_module, session, transport.
"""

import asyncio
import contextlib
import inspect
import os
import pickle
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from types import FrameType
from typing import Any, Final, NoReturn

from asyncipc.config import Limits, Timeouts
from asyncipc.errors import DecodeError
from asyncipc.pool import logs, stages
from asyncipc.pool.generating import Generators
from asyncipc.pool.jobs import Jobs
from asyncipc.pool.ledger import Ledger
from asyncipc.pool.main_module import clear_main, import_main
from asyncipc.pool.outside import call_outside
from asyncipc.pool.payload import dump_failure, function_name
from asyncipc.pool.protocol import BUNDLE, FAILURE, MAP, RESULT, RUN, STREAM
from asyncipc.process.fork import run_and_exit
from asyncipc.process.lifeline import arm_inherited_lifeline
from asyncipc.process.scheduling import become_batch
from asyncipc.runner import run
from asyncipc.session.context import Call
from asyncipc.session.handler import Handler
from asyncipc.session.handlers import HandlerChain, Handlers
from asyncipc.session.session import Session
from asyncipc.session.settings import SessionSettings
from asyncipc.transport.fd import Fd
from asyncipc.transport.sockets import SocketTransport
from asyncipc.wire.framing import new_read_buffer
from asyncipc.wire.handshake import Role
from asyncipc.wire.msgpack_codec import MessagePack

__all__ = [
    "AWAITING",
    "BEGIN",
    "LOG",
    "STAGE",
    "TOO_LARGE",
    "WorkerSetup",
    "main",
    "new_settings",
    "serve",
]

# The request that makes a worker ready, and the notifications it sends.
BEGIN: Final = "asyncipc/begin"
OWN_METHODS: Final = frozenset({BEGIN, RUN, MAP, STREAM, BUNDLE})
LOG: Final = "asyncipc/log"
STAGE: Final = "asyncipc/stage"
TOO_LARGE: Final = "asyncipc/too_large"
AWAITING: Final = "asyncipc/awaiting"

# Log records of threads that may wait for the main thread.
MAX_FROM_THREADS: Final = 10_000

# Both ends are our own: nothing to protect from the other. The application may be busy for long.
LIMITS: Final = Limits(max_message=2**40, max_requests=2**20, max_depth=2**20)
TIMEOUTS: Final = Timeouts(handshake=120.0)


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """What a worker is told first.

    :ivar initializer: called before anything else is run, with ``initargs``; plain or ``async def``
    :ivar service: an object with ``__handlers__``, or what returns one when it is called
    :ivar niceness: added to that of the process
    :ivar max_memory: bytes of private memory above which the application is told
    :ivar log_levels: see `asyncipc.pool.logs.logger_levels`
    """

    initializer: Callable[..., object] | None = None
    initargs: tuple[Any, ...] = ()
    service: Any = None
    niceness: int = 0
    max_memory: int | None = None
    log_levels: dict[str, int] = field(default_factory=dict)


def new_settings() -> SessionSettings:
    """The settings of a session between application and worker, on either side."""
    return SessionSettings(
        codec="msgpack",
        codecs={"msgpack": MessagePack},
        limits=LIMITS,
        timeouts=TIMEOUTS,
        timeout=None,
        request_ids=None,
        tracebacks=True,
        read_buffer=new_read_buffer(),
    )


def serve(end: socket.socket, application: int | None = None) -> int:
    """Run a worker; returns its exit code.

    :param end: its end of a socket pair
    :param application: a pidfd: the worker ends with that process
    """
    worker = _Worker()
    become_batch()
    signal.signal(signal.SIGTERM, worker.terminate)
    os.register_at_fork(after_in_child=partial(_hang_up, end))
    try:
        run(worker.serve(end, application))
    finally:
        if worker.is_terminating:
            # So that it shows who ended this process.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
    return 0


def main(descriptor: int) -> NoReturn:
    """The program of a worker that is not forked from a zygote."""
    arm_inherited_lifeline()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the application's to hear
    clear_main()
    # Not by sys.exit: it would wait for threads that a task has left running.
    run_and_exit(partial(serve, socket.socket(fileno=descriptor)))


def _hang_up(end: socket.socket) -> None:
    """In a process that a task forks: it has no part in what the worker and the application say.

    So it cannot keep the worker's end open, nor answer for it if it returns from the task.
    """
    with contextlib.suppress(OSError):  # there is no connection any more
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, end.fileno(), inheritable=False)
        os.close(nowhere)


def _die() -> None:
    os.killpg(0, signal.SIGKILL)


class _Worker:
    def __init__(self) -> None:
        self.is_terminating = False
        self._is_looking = False
        self._thread = threading.get_ident()
        self._from_threads: deque[bytes] = deque()  # log records

    def terminate(self, _number: int, _frame: FrameType | None) -> None:
        """SIGTERM came: end what runs as ``sys.exit`` does, so that it may clean up."""
        self.is_terminating = True
        raise SystemExit(128 + signal.SIGTERM)

    def _look(self, transport: SocketTransport) -> None:
        """Read what has come, for what keeps the loop from reading.

        Not while it is being read: a handler of the service that is served meanwhile may look too,
        and what comes later would be served before the rest of what is being looked through.
        """
        if self._is_looking:
            return
        self._is_looking = True
        try:
            transport.read_available()
        finally:
            self._is_looking = False

    async def serve(self, end: socket.socket, application: int | None) -> None:
        self._loop = asyncio.get_running_loop()
        if application is not None:
            # Its death ends the session too, unless some fork of it holds the other end.
            self._loop.add_reader(application, _die)
        self._handlers = Handlers()
        transport = SocketTransport(end, description="the application")
        session = Session(transport, Role.LISTENING, new_settings(), self._handlers)
        exchange = session.connection.exchange
        look = partial(self._look, transport)
        self._jobs = Jobs(exchange.dispatch, exchange.outbox, look, self._is_ending)
        generators = Generators(
            exchange.dispatch,
            exchange.outbox,
            look,
            self._is_ending,
            unpack=self._jobs.unpack,
        )
        generators.on_end = self._jobs.look_at_memory
        self._notifications = exchange.notifications
        self._outbox = exchange.outbox
        self._jobs.before_answer = self._post_from_threads
        self._jobs.bundles.on_await = partial(self._post, AWAITING)
        for method in (RUN, MAP, BUNDLE):
            self._handlers.requests.add(Handler(method, self._jobs.receive, deferred=True))
        self._handlers.requests.add(Handler(STREAM, generators.stream))
        os.register_at_fork(after_in_child=self._jobs.disown)
        self._dispatch = exchange.dispatch
        self._handlers.requests.add(Handler(BEGIN, self._begin, deferred=True))
        await session.start()
        await session.wait_closed()

    def _is_ending(self) -> bool:
        return self.is_terminating

    def _begin(self, params: list[Any], call: Call) -> None:
        """Get ready, in a task: an initializer may be async."""
        self._beginning: asyncio.Task[None] = self._loop.create_task(self._get_ready(params, call))

    async def _get_ready(self, params: list[Any], call: Call) -> None:
        """Answers like a job does: what fails may be any code of the user's.

        (Parameters are not bound by annotation: what that takes to import, few workers need.)

        :param params: how to import the main module and what else to import, both empty where the
            zygote has done it, between them ``sys.argv``; a `WorkerSetup`, pickled; and the memory
            of the `Ledger`, where there is any
        """
        main, argv, preload, setup, memory = params
        try:
            self._open_ledger(memory)
            sys.argv[:] = argv
            if main:
                self._enter(stages.IMPORTING_MAIN)
                call_outside(self._loop, import_main, main)
            self._preload(preload)
            await self._set_up(setup)
        except BaseException as error:
            if self.is_terminating or self._beginning.cancelling():
                raise  # not by what it runs: the loop is being left
            self._dispatch.complete(call, [FAILURE, 0.0, *dump_failure(error)])
        else:
            self._dispatch.complete(call, [RESULT, 0.0])

    def _open_ledger(self, memory: Fd | None) -> None:
        if memory is not None:
            with memory:
                self._jobs.bundles.ledger = Ledger(memory.fileno())

    def _find(self, find: Callable[[str], tuple[Handler, ...]], method: str) -> tuple[Handler, ...]:
        """The handlers for a request; those of the service may take memory too, and keep it."""
        if method not in OWN_METHODS:
            self._loop.call_soon(self._jobs.look_at_memory)
        return find(method)

    def _enter(self, stage: str) -> None:
        """What comes next may hang, and the application can say what it was."""
        self._post(STAGE, stage)

    def _preload(self, modules: list[str]) -> None:
        for module in modules:
            self._enter(stages.preloading(module))
            try:
                call_outside(self._loop, import_module, module)
            except Exception as error:
                raise ImportError(f"preloading {module!r} failed: {error!r}") from error

    async def _set_up(self, pickled: bytes) -> None:
        self._enter("unpickling the initializer and the service")
        try:
            setup: WorkerSetup = pickle.loads(pickled)  # noqa: S301 - see `payload`
        except Exception as error:
            raise DecodeError(
                f"the worker cannot unpickle the initializer or service: {error!r}"
            ) from error
        if setup.niceness:
            os.nice(setup.niceness)
        logs.forward_logs(setup.log_levels, self._post_log)
        if setup.max_memory is not None:
            self._jobs.max_memory = setup.max_memory
            self._jobs.on_too_large = self._tell_size
            chain = HandlerChain(self._handlers, Handlers())
            chain.for_request = partial(self._find, chain.for_request)
            self._dispatch.serve_with(chain)
        if setup.initializer is not None:
            self._enter(f"running the initializer {function_name(setup.initializer)}")
            begun = call_outside(self._loop, setup.initializer, *setup.initargs)
            if inspect.isawaitable(begun):
                await begun
        if setup.service is not None:
            self._enter("making the service")
            provider = setup.service() if callable(setup.service) else setup.service
            self._handlers.register(provider)

    def _post_log(self, record: bytes) -> bool:
        if threading.get_ident() == self._thread:
            return self._post(LOG, record)
        if len(self._from_threads) >= MAX_FROM_THREADS:
            return False
        self._from_threads.append(record)
        self._loop.call_soon_threadsafe(self._post_from_threads)
        return True

    def _post_from_threads(self) -> None:
        while self._from_threads:
            self._post(LOG, self._from_threads.popleft())

    def _tell_size(self, size: int) -> None:
        self._post(TOO_LARGE, size)

    def _post(self, method: str, parameter: Any) -> bool:
        posted = self._notifications.post(method, [parameter])
        self._outbox.flush()
        return posted
