"""How worker processes come to be: forked from a zygote, or each started as a program of its own.

Two starters for one seam. Both give a process that leads its own group, ends with this one, and
has one end of a socket pair; what it has to do by itself before it can work differs.

Layer 4, inside the pool. Above: the supervisor. Below: control, process, transport.
"""

import asyncio
import contextlib
import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from asyncipc.errors import PoolError
from asyncipc.pool import stages
from asyncipc.pool.control import (
    ControlSocket,
    Exited,
    Fork,
    Forked,
    ForkFailed,
    Ready,
    Record,
    Refused,
    Setup,
    Stage,
)
from asyncipc.pool.main_module import describe_main
from asyncipc.process.child import ChildProcess, start_child
from asyncipc.process.forked import ForkedProcess
from asyncipc.process.handle import ProcessHandle
from asyncipc.process.lifeline import Lifeline
from asyncipc.process.stderr import StderrCapture
from asyncipc.transport.sockets import SocketTransport

__all__ = ["Homework", "SpawnStarter", "Started", "Starter", "ZygoteStarter"]

# Bytes of the end of a worker's stderr that are kept for error messages.
STDERR_TAIL: Final = 16 * 1024

# Seconds that a zygote gets to end when its work is over. It waits for nothing.
ZYGOTE_GRACE: Final = 1.0

# Seconds that it still gets to answer when nobody waits for the worker any longer.
ANSWER_WAIT: Final = 0.1

# Requests to fork that the zygote may have at once; its socket holds some more.
MAX_FORKING: Final = 64

StderrSink = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Started:
    """A worker process, and what leads to it."""

    process: ProcessHandle
    transport: SocketTransport
    stderr: StderrCapture


@dataclass(frozen=True, slots=True)
class Homework:
    """What a worker has to do by itself: see `asyncipc.pool.worker`."""

    main: dict[str, str]
    argv: list[str]
    preload: list[str]


class Starter(Protocol):
    """Makes worker processes."""

    @property
    def homework(self) -> Homework:
        """What each of them has to do by itself."""
        ...

    @property
    def stage(self) -> str:
        """What takes so long, where no process has been made yet; for people."""
        ...

    async def start(self, worker: int) -> Started:
        """Make one.

        :param worker: its number
        :raises PoolError: it cannot be made; the text says why
        :raises OSError: the system cannot make it: a limit on processes, memory or descriptors
        """
        ...

    async def aclose(self) -> None:
        """Make no more. Those that were made go on."""


class SpawnStarter:
    """Starts each worker as a program of its own.

    :param preload: modules that each imports
    :param on_stderr: gets each line that a worker writes to stderr
    """

    def __init__(self, preload: list[str], on_stderr: StderrSink) -> None:
        self._on_stderr = on_stderr
        self.homework: Homework = Homework(describe_main(), sys.argv[:], preload)
        self.stage: str = "the system was starting a process"

    async def start(self, worker: int) -> Started:
        """See `Starter`."""
        ours, theirs = socket.socketpair()
        transport = SocketTransport(ours, description=f"worker {worker}")
        stderr = StderrCapture(self._on_stderr, STDERR_TAIL)
        try:
            with theirs:
                process = _start_program("worker", theirs, stderr)
        except BaseException:
            transport.close()
            stderr.close()
            raise
        return Started(process, transport, stderr)

    async def aclose(self) -> None:
        """See `Starter`."""


class ZygoteStarter:
    """Has workers forked by a zygote, which is started when it is needed and again if it dies.

    :param preload: modules that the zygote imports
    :param on_stderr: gets each line that the zygote or a worker writes to stderr
    """

    def __init__(self, preload: list[str], on_stderr: StderrSink) -> None:
        self._preload = preload
        self._on_stderr = on_stderr
        self._zygote: _Zygote | None = None
        self.homework: Homework = Homework({}, sys.argv[:], [])

    @property
    def stage(self) -> str:
        """See `Starter`."""
        return "the zygote was not there" if self._zygote is None else self._zygote.stage

    async def start(self, worker: int) -> Started:
        """See `Starter`."""
        used = self._zygote
        if used is not None and not used.is_over:
            await used.wait_ready()
            try:
                return await used.fork(worker)
            except PoolError:
                # It may have been killed at any time since it was ready, which is no reason not to
                # have a worker. One that lives has said why it cannot.
                if not used.is_over:
                    raise
        zygote = self._zygote
        if zygote is None or zygote.is_over:
            setup = Setup(
                describe_main(), [str(path) for path in sys.path], sys.argv[:], self._preload
            )
            zygote = self._zygote = _Zygote(setup, self._on_stderr)
        await zygote.wait_ready()
        return await zygote.fork(worker)

    async def aclose(self) -> None:
        """See `Starter`."""
        zygote, self._zygote = self._zygote, None
        if zygote is not None:
            await zygote.end()


class _Zygote:
    """One zygote, as the application sees it."""

    def __init__(self, setup: Setup, on_stderr: StderrSink) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_stderr = on_stderr
        self._slots = asyncio.Semaphore(MAX_FORKING)
        self._forking: dict[int, tuple[asyncio.Future[ForkedProcess], Lifeline]] = {}
        self._forked: dict[int, ForkedProcess] = {}
        self._refusal: str | None = None
        self._doing = stages.STARTING
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self.is_over: bool = False
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control = ControlSocket(ours)
        self._stderr = StderrCapture(on_stderr, STDERR_TAIL)
        try:
            with theirs:
                self._process = _start_program("zygote", theirs, self._stderr)
        except BaseException:
            self._control.close()
            self._stderr.close()
            raise
        ours.setblocking(False)
        application = os.pidfd_open(os.getpid())
        try:
            self._control.send(setup, [application])
        finally:
            os.close(application)
        self._loop.add_reader(ours.fileno(), self._receive)
        self._process.on_exit(lambda _: self._is_gone())

    @property
    def stage(self) -> str:
        """What it is doing; see `Starter.stage`."""
        return stages.told("the zygote", self._doing, self._stderr.tail)

    async def wait_ready(self) -> None:
        """Wait until it can fork.

        :raises PoolError: it never will
        """
        try:
            await asyncio.shield(self._ready)
        except asyncio.CancelledError:
            if not self._ready.done():
                # It got all the time there was. The next one may have more luck.
                self._refusal = f"the zygote took too long: {self.stage}"
                self._process.kill()
                self._hang_up()
            raise

    async def fork(self, worker: int) -> Started:
        """Have a worker forked; see `Starter.start`."""
        async with self._slots:
            return await self._fork(worker)

    async def _fork(self, worker: int) -> Started:
        ours, theirs = socket.socketpair()
        transport = SocketTransport(ours, description=f"worker {worker}")
        stderr = StderrCapture(self._on_stderr, STDERR_TAIL)
        lifeline = Lifeline()
        future: asyncio.Future[ForkedProcess] = self._loop.create_future()
        try:
            with theirs:
                assert stderr.fd is not None
                self._forking[worker] = future, lifeline
                self._control.send(Fork(worker), [theirs.fileno(), stderr.fd, lifeline.fd])
            stderr.start()
            process = await future
        except BaseException as error:
            if future.cancelled() and worker in self._forking:
                # It got all the time there was and has not answered: it hangs, or was stopped. Or
                # the pool is being closed.
                self._loop.call_later(ANSWER_WAIT, self._kill_if_it_hangs, worker)
            else:
                self._forking.pop(worker, None)
            transport.close()
            stderr.close()
            # One that was forked all the same ends with it.
            lifeline.close()
            if isinstance(error, BrokenPipeError | ConnectionError):
                self._is_gone()  # which is about to be noticed
                raise PoolError("the zygote died") from error
            raise
        return Started(process, transport, stderr)

    def _kill_if_it_hangs(self, worker: int) -> None:
        if worker in self._forking and not self.is_over:
            self._process.kill()

    async def end(self) -> None:
        """Let it go. Its workers go on."""
        self._hang_up()
        await self._process.end(ZYGOTE_GRACE)
        self._stderr.close()

    def _receive(self) -> None:
        while not self.is_over:
            try:
                received = self._control.receive()
            except BlockingIOError:
                return
            except OSError:
                received = None
            if received is None:
                # It is dead or about to be; its exit, which is noticed by itself, says more.
                self._loop.remove_reader(self._control.fileno())
                return
            self._take(*received)

    def _take(self, record: Record, descriptors: list[int]) -> None:
        match record:
            case Stage(doing):
                self._doing = doing
            case Ready():
                self._is_ready()
            case Refused(reason):
                self._refusal = reason
                self._hang_up()
            case Forked(worker, pid):
                self._has_forked(worker, pid, descriptors)
            case ForkFailed(worker, reason):
                if worker in self._forking:
                    future, _ = self._forking.pop(worker)
                    _fail(future, PoolError(f"the zygote cannot fork: {reason}"))
            case Exited(worker, returncode):
                process = self._forked.pop(worker, None)
                if process is not None:
                    process.report(returncode)
            case Setup() | Fork():
                raise AssertionError("those go the other way")

    def _is_ready(self) -> None:
        self._doing = "forking"
        if not self._ready.done():
            self._ready.set_result(None)

    def _has_forked(self, worker: int, pid: int, descriptors: list[int]) -> None:
        future, lifeline = self._forking.pop(worker, (None, None))
        if future is None or lifeline is None or future.done():
            # Nobody waits for it any longer; its lifeline is closed, or about to be.
            for descriptor in descriptors:
                os.close(descriptor)
        elif not descriptors:
            # The kernel has dropped it: this process has as many as it may have.
            _fail(future, OSError(errno.EMFILE, "no descriptor is left for the worker's pidfd"))
        else:
            [pidfd] = descriptors
            process = self._forked[worker] = ForkedProcess(pid, pidfd, lifeline, self._loop)
            future.set_result(process)

    def _is_gone(self) -> None:
        """The zygote is dead: what it said before is read, and nothing more will come."""
        if not self.is_over:
            self._receive()
        self._hang_up()
        self._stderr.close()

    def _hang_up(self) -> None:
        if self.is_over:
            return
        self.is_over = True
        self._loop.remove_reader(self._control.fileno())
        self._control.close()
        for process in self._forked.values():
            process.lose_reporter()
        self._forked.clear()
        error = PoolError(
            self._refusal
            or f"the zygote died{self._where()}: {self._process!r}{self._last_words()}"
        )
        _fail(self._ready, error)
        for future, _ in self._forking.values():
            _fail(future, error)

    def _where(self) -> str:
        return "" if self._ready.done() else f" while it was {self._doing}"

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            self._stderr.drain()
        tail = self._stderr.tail
        return f"; its last words on stderr:\n{tail.rstrip()}" if tail else ""


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # somebody may have stopped waiting for it


def _start_program(module: str, end: socket.socket, stderr: StderrCapture) -> ChildProcess:
    """Run ``main`` of a module of this package in a fresh interpreter.

    :param end: the socket it gets
    """
    # Inherited under its own number, which must not be that of a standard stream.
    with end.dup() as inherited:
        number = inherited.fileno()
        path = [str(entry) for entry in sys.path]  # which may hold anything; imports skip the odd
        code = (
            f"import sys; sys.path[:] = {path!r}\n"
            f"from asyncipc.pool.{module} import main; main({number})"
        )
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined] # noqa: SLF001 - as multiprocessing does
        process = start_child(
            [sys.executable, *flags, "-c", code],
            pass_fds=(number,),
            stdin=subprocess.DEVNULL,
            stderr=stderr.fd,
            terminates_group=False,  # a task sees to its own children, as in forked workers
        )
    stderr.start()
    return process
