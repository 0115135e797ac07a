"""What the tests of the pool share: functions for workers to run, and a way to hear from them."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Self

import pytest

from asyncipc import Pool, Worker, current_call, progress

# Seconds that anything a test waits for may take. It takes milliseconds.
LIMIT = 20.0

START_METHODS = ("zygote", "spawn")

# For tests of what happens in workers, which have a loop of their own whatever the test runs on,
# and of how they are started, which is tried in two ways already.
in_workers = pytest.mark.asyncio(loop_factories=["uvloop"])


@contextlib.asynccontextmanager
async def open_pool(workers: int = 1, /, **options: Any) -> AsyncIterator[Pool]:
    """A pool that gives up soon on workers that do not come up, or do not end."""
    options = {"spawn_timeout": LIMIT, "grace": 0.1, **options}
    async with Pool(workers, **options) as pool:
        yield pool


# -- hearing from workers ----------------------------------------------------------------------


class Report(NamedTuple):
    """What a task said.

    :ivar sender: where an answer goes
    """

    pid: int
    text: str
    sender: bytes


class Reports:
    """Where tasks tell how far they are, and wait for an answer if they ask for one.

    A datagram socket with a name of the kernel's choosing, which workers get as an argument.
    """

    def __init__(self) -> None:
        self._socket = _bound_socket()
        self._socket.setblocking(False)
        self.address: bytes = self._socket.getsockname()

    async def next(self, text: str | None = None) -> Report:
        """The next report.

        :param text: what it must be
        :raises TimeoutError: none comes
        """
        data, sender = await _receive(self._socket, LIMIT)
        pid, _, found = data.decode().partition(" ")
        assert text is None or found == text
        return Report(int(pid), found, sender)

    def answer(self, report: Report, text: str = "go") -> None:
        """Let the task that sent a report go on."""
        self._socket.sendto(text.encode(), report.sender)

    @property
    def is_empty(self) -> bool:
        """Nothing has come that was not looked at."""
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def _bound_socket() -> socket.socket:
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    bound.bind("")  # Linux finds a name
    return bound


async def _receive(source: socket.socket, seconds: float | None) -> tuple[bytes, bytes]:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(source.fileno(), ready.set)
    try:
        async with asyncio.timeout(seconds):
            await ready.wait()
    finally:
        loop.remove_reader(source.fileno())
    received: tuple[bytes, bytes] = source.recvfrom(65536)
    return received


class Watch:
    """The workers of a pool, as they come and go: pass its two methods as the pool's callbacks."""

    def __init__(self) -> None:
        self.started: asyncio.Queue[Worker] = asyncio.Queue()
        self.died: asyncio.Queue[tuple[Worker, Exception]] = asyncio.Queue()

    def on_started(self, worker: Worker) -> None:
        self.started.put_nowait(worker)

    def on_died(self, worker: Worker, error: Exception) -> None:
        self.died.put_nowait((worker, error))

    @property
    def options(self) -> dict[str, Callable[..., object]]:
        """For the pool that is to be watched."""
        return {"on_worker_started": self.on_started, "on_worker_died": self.on_died}

    async def next_started(self) -> Worker:
        """The next worker that has become ready."""
        async with asyncio.timeout(LIMIT):
            return await self.started.get()

    async def next_died(self) -> tuple[Worker, Exception]:
        """The next worker that has died, and how."""
        async with asyncio.timeout(LIMIT):
            return await self.died.get()


# -- functions that tell -----------------------------------------------------------------------


def tell(address: bytes, text: str) -> None:
    with _bound_socket() as ours:
        ours.sendto(f"{os.getpid()} {text}".encode(), address)


def ask(address: bytes, text: str = "started") -> str:
    """Tell, and wait in the kernel for an answer."""
    with _bound_socket() as ours:
        ours.sendto(f"{os.getpid()} {text}".encode(), address)
        return ours.recv(65536).decode()


async def ask_async(address: bytes, text: str = "started") -> str:
    """Tell, and wait for an answer; tells too if it is cancelled."""
    with _bound_socket() as ours:
        ours.setblocking(False)
        ours.sendto(f"{os.getpid()} {text}".encode(), address)
        try:
            data, _ = await _receive(ours, None)
        except asyncio.CancelledError:
            tell(address, "cancelled")
            raise
        return data.decode()


def ask_and_clean_up(address: bytes) -> str:
    try:
        return ask(address)
    finally:
        tell(address, "cleaned up")


def ask_deaf(address: bytes, text: str = "started") -> str:
    """`ask`, and SIGTERM is ignored."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return ask(address, text)


def look_until_cancelled(address: bytes) -> None:
    call = current_call()
    tell(address, "started")
    while not call.cancelled:
        pass
    tell(address, "saw it")


# -- plain functions ---------------------------------------------------------------------------


def add(left: Any, right: Any) -> Any:
    return left + right


async def add_async(left: Any, right: Any) -> Any:
    await asyncio.sleep(0)
    return left + right


def double(value: int) -> int:
    return 2 * value


async def double_async(value: int) -> int:
    await asyncio.sleep(0)
    return 2 * value


def give_back(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def echo(value: Any) -> Any:
    return value


def pid() -> int:
    return os.getpid()


def parent() -> int:
    return os.getppid()


async def pid_async() -> int:
    return os.getpid()


def runs_on_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


class Adder:
    """Something to call, and with a method to call."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __call__(self, value: int) -> int:
        return self.start + value

    def subtract(self, value: int) -> int:
        return self.start - value


class AsyncAdder(Adder):
    async def __call__(self, value: int) -> int:  # type: ignore[override]
        return self.start + value


# -- functions that fail -----------------------------------------------------------------------


class CustomError(Exception):
    """One with a field of its own."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class DemandingError(Exception):
    """One that pickles and does not unpickle: its arguments are not what it was made with."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} and {other}")


class HoldingError(Exception):
    """One that cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("held")
        self.lock = threading.Lock()


class Unloadable:
    """What pickles and cannot be unpickled anywhere."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _refuse, ()


def _refuse() -> NoReturn:
    raise LookupError("it is not to be had here")


def fail(error: BaseException) -> NoReturn:
    error.add_note("seen in a worker")
    raise error


async def fail_async(error: BaseException) -> NoReturn:
    await asyncio.sleep(0)
    raise error


def fail_with(name: str) -> NoReturn:
    kinds: dict[str, Callable[[], BaseException]] = {
        "unpicklable": HoldingError,
        "demanding": lambda: DemandingError("this", "that"),
        "SystemExit": lambda: SystemExit(3),
        "KeyboardInterrupt": KeyboardInterrupt,
        "GeneratorExit": GeneratorExit,
        "StopIteration": StopIteration,
        "CancelledError": asyncio.CancelledError,
    }
    error = kinds[name]()
    raise error


def fail_at(value: int, bad: int) -> int:
    if value == bad:
        raise ValueError(f"{value} is bad")
    return value


def make_unpicklable() -> Any:
    return threading.Lock()


def make_unloadable() -> Unloadable:
    return Unloadable()


# -- functions that die ------------------------------------------------------------------------


def leave(code: int, words: str = "") -> None:
    sys.stderr.write(words)
    sys.stderr.flush()
    os._exit(code)


def kill_oneself(number: int) -> None:
    os.kill(os.getpid(), number)
    raise AssertionError("it lives on")


def die_until(address: bytes, answer: str) -> str:
    """Die unless the answer is the one that lets it live."""
    if ask(address) != answer:
        os._exit(1)
    return answer


# -- functions that chat -----------------------------------------------------------------------


def count(total: int) -> str:
    for done in range(total):
        progress(done, total, f"step {done}")
    return "counted"


async def count_async(total: int) -> str:
    call = current_call()
    for done in range(total):
        await call.progress(done, total, f"step {done}")
    return "counted"


def report_and_ask(address: bytes, total: int) -> str:
    """Report on each step when it is answered."""
    for done in range(total):
        progress(done, total)
        ask(address, str(done))
    return "counted"


# -- arrays ------------------------------------------------------------------------------------


def place_of(array: Any) -> str:
    """What the memory of an array is mapped from."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, *others = line.split(maxsplit=5)
        start, end = (int(address, 16) for address in addresses.split("-"))
        if start <= array.ctypes.data < end:
            return others[-1]
    raise AssertionError(f"{array.ctypes.data:#x} is not mapped")


def place_and_double(array: Any) -> tuple[str, Any]:
    """Double an array in place; return where that is, and the array."""
    place = place_of(array)
    array *= 2
    return place, array
