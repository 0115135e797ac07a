"""What workers are made to run in the tests of their faults; found there by its name."""

import asyncio
import atexit
import contextlib
import ctypes
import itertools
import logging
import os
import resource
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import asyncipc
from tests.processes import parent_of
from tests.raw_client import frame

# What keeps memory used, and locks held, when a task is over.
kept: list[Any] = []

# Both ends of the connection are this library's: enough of a reply to be one in parts.
REPLY = frame([3, 3, [0, 0.0, b"N."]])


def echo(value: Any) -> Any:
    return value


async def echo_async(value: Any) -> Any:
    return value


def pid() -> int:
    return os.getpid()


# -- dying ---------------------------------------------------------------------------------


def die(number: int = signal.SIGKILL) -> NoReturn:
    os.kill(os.getpid(), number)
    raise AssertionError("still here")


async def die_async() -> NoReturn:
    die()


def exit_at_once(code: int) -> NoReturn:
    os._exit(code)


def segfault() -> None:
    ctypes.string_at(0)


def say_and_exit(text: str, code: int) -> NoReturn:
    os.write(2, text.encode())
    os._exit(code)


async def die_behind_the_reply(value: Any) -> Any:
    asyncio.get_running_loop().call_soon(die)
    return value


def die_inside_of_the_reply(count: int) -> NoReturn:
    os.write(connection(), REPLY[:count])
    die()


def note_and_die_once(path: str, number: int, deadly: int) -> int:
    """Leave a line in a file; one of the numbers dies the first time that it comes."""
    note(path, number)
    if number == deadly and Path(path).read_text().split().count(str(number)) == 1:
        die()
    return number


def die_when_recycled() -> None:
    """Die behind the goodbye, at the end of the process."""
    atexit.register(die)


class DiesOnArrival:
    """Kills who unpickles it."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return die, ()


class DiesOnDeparture:
    """Kills who pickles it."""

    def __reduce__(self) -> NoReturn:
        die()


def departing() -> DiesOnDeparture:
    return DiesOnDeparture()


# -- going on and on -----------------------------------------------------------------------


def tell_pid(*others: int) -> None:
    asyncipc.progress(0, message=" ".join(map(str, (os.getpid(), *others))))


def read_line(path: str) -> str:
    """Block until somebody writes to a fifo."""
    tell_pid()
    with open(path) as file:
        return file.readline()


def spin() -> None:
    """In C code, and holding the GIL."""
    tell_pid()
    sum(itertools.repeat(1))


def block() -> None:
    """In a system call."""
    tell_pid()
    signal.pause()


def block_with_children() -> None:
    """Some of its own, that hold all it has; some that are other programs."""
    tell_pid(fork("stays"), subprocess.Popen(["sleep", "1000"]).pid)
    signal.pause()


async def have_a_pool() -> None:
    """A worker that is an application too."""
    async with asyncipc.Pool(1) as pool:
        task = pool.submit(spin)
        async for update in task.progress():
            worker = int(update.message or 0)
            tell_pid(parent_of(worker), worker)
        await task


async def never() -> None:
    tell_pid()
    await asyncio.Event().wait()


def talk_without_end() -> None:
    """Use everything that leads to the application."""
    tell_pid()
    for number in itertools.count():
        asyncipc.progress(number, message=str(os.getpid()))
        logging.getLogger(__name__).warning("%d", number)
        os.write(2, b"a line\n")


def swallow_everything() -> None:
    """See to it that no exception gets out, and go on."""
    tell_pid()
    while True:
        with contextlib.suppress(BaseException):
            signal.pause()


def note(path: str, what: object) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{what}\n".encode())
    os.close(descriptor)


# -- what a process can do to itself -------------------------------------------------------


def connection() -> int:
    """The descriptor of this worker's socket."""
    call = asyncipc.current_call()
    assert call is not None
    transport: Any = call.session._connection.transport
    return int(transport._sock.fileno())


def close_everything(then: str) -> str:
    os.closerange(3, 4096)
    if then == "spin":
        sum(itertools.repeat(1))
    return then


def fork(what: str) -> int:
    """Leave a child behind that holds every descriptor; returns its process id."""
    child = os.fork()
    if child == 0 and what == "stays":
        signal.pause()
        os._exit(0)
    return child


def limit_memory(more: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def take_too_much() -> int:
    limit_memory(64 * 1024 * 1024)
    return len(bytes(1024**3))


def take_everything() -> bytes:
    """Leave nothing to answer with."""
    limit_memory(32 * 1024 * 1024)
    for size in (1024 * 1024, 4096, 512, 64):
        with contextlib.suppress(MemoryError):
            while True:
                kept.append(bytearray(size))
    return bytes(1000)


def use_memory_unchecked() -> None:
    """As native code does that knows of no limit."""
    limit_memory(0)
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    ctypes.memset(libc.malloc(ctypes.c_size_t(1024**4)) or 0, 1, 1)


# -- exceptions and results that resist ----------------------------------------------------


class NeedsArguments(Exception):
    def __init__(self, first: object, second: object) -> None:
        super().__init__(f"{first} and {second}")


class Unpicklable(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError

    __repr__ = __str__


class ExitsWhenPrinted(Exception):
    def __str__(self) -> str:
        raise SystemExit(5)


class ExitsWhenPickled(Exception):
    def __reduce__(self) -> NoReturn:
        raise SystemExit(5)


class Resisting:
    """Raises an exception where it is unpickled; by itself it can be pickled."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return resist, (os.getpid(), self.error)


class ResistingException(Exception):
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return resist, (os.getpid(), ValueError("not here"))


def resist(home: int, error: BaseException) -> None:
    if os.getpid() != home:
        raise error


def resisting(error: BaseException) -> Resisting:
    return Resisting(error)


def exits_when_pickled() -> ExitsWhenPickled:
    return ExitsWhenPickled()


async def exits_when_pickled_async() -> ExitsWhenPickled:
    return ExitsWhenPickled()


def fail(name: str) -> NoReturn:
    error = EXCEPTIONS[name]()
    raise error


async def fail_async(name: str) -> NoReturn:
    error = EXCEPTIONS[name]()
    raise error


EXCEPTIONS: dict[str, Callable[[], BaseException]] = {
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "NeedsArguments": lambda: NeedsArguments(1, 2),
    "Unpicklable": lambda: Unpicklable("it resists"),
    "Unprintable": Unprintable,
    "ExitsWhenPrinted": ExitsWhenPrinted,
    "ExitsWhenPickled": ExitsWhenPickled,
    "ResistingException": lambda: ResistingException("it resists"),
}


# -- starting ------------------------------------------------------------------------------


def print_pid_and_spin() -> None:
    print(os.getpid(), flush=True)
    sum(itertools.repeat(1))


def start_badly(path: str, how: str) -> None:
    """An initializer that notes each start, and fails if the file says so or always."""
    note(path, "start")
    if how == "later" and Path(path).read_text().split()[0] != "bad":
        return
    match how:
        case "raise":
            raise LookupError("nothing to initialize")
        case "exit":
            os.write(2, b"my last words\n")
            os._exit(7)
        case "hang":
            os.write(2, b"waiting for ever\n")
            signal.pause()
        case _:
            die()
