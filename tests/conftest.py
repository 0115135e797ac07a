"""What holds for every test: the loops it runs on, how long it may take, what it may leave behind.

Loops: each async test runs on asyncio in debug mode, on uvloop, and where Python has them (3.12)
on asyncio with eager tasks. ``@pytest.mark.asyncio(loop_factories=["uvloop"])`` picks some.

Time: an async test that is not done after `TIME_LIMIT`, with all its examples where hypothesis
makes them, fails and shows where it waited.

Leftovers: a test that passed and leaves threads, descriptors, child processes or tasks behind
fails in its teardown. Fixtures of a wider scope may hold what they like: they were there before.
"""

import asyncio
import functools
import gc
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import hypothesis
import pytest
import uvloop
from pytest_asyncio import is_async_test

# Seconds. The slowest test needs a tenth of it on a small machine that is busy with other things.
TIME_LIMIT = 60

# Seconds that threads and tasks which have been told to end may take to do so.
ENDING_LIMIT = 5

# Examples take as long as the machine is busy; TIME_LIMIT is what catches a hang.
hypothesis.settings.register_profile(
    "asyncipc",
    hypothesis.settings(),
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("asyncipc")


# A shell that starts a run in the background has it ignore Ctrl-C, and all that tests start, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Loops


class DebugEventLoop(asyncio.SelectorEventLoop):
    """asyncio's loop in debug mode, and kept there: the test's runner would switch it off."""

    def set_debug(self, enabled: bool) -> None:
        super().set_debug(True)


LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": DebugEventLoop,
    "uvloop": uvloop.new_event_loop,
}

if sys.version_info >= (3, 12):

    def new_eager_loop() -> asyncio.AbstractEventLoop:
        loop = asyncio.SelectorEventLoop()
        loop.set_task_factory(asyncio.eager_task_factory)
        return loop

    LOOPS["eager"] = new_eager_loop


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return LOOPS


# Time


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    if not is_async_test(item):
        return (yield)
    # hypothesis calls the coroutine function from inside a function of its own, once an example.
    holder, name = item, "obj"
    if hasattr(item.obj, "hypothesis"):
        holder, name = item.obj.hypothesis, "inner_test"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holder, name, limited(getattr(holder, name), monotonic() + TIME_LIMIT))
        return (yield)


def limited(
    test: Callable[..., Coroutine[Any, Any, None]], deadline: float
) -> Callable[..., Coroutine[Any, Any, None]]:
    """The same test, failing at the deadline with the stack of where it waited."""

    @functools.wraps(test)
    async def limited_test(*args: Any, **kwargs: Any) -> None:
        try:
            async with asyncio.timeout(max(0, deadline - monotonic())) as limit:
                await test(*args, **kwargs)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise AssertionError(f"not done after {TIME_LIMIT} s") from error

    return limited_test


# Leftovers


@dataclass(frozen=True)
class Belongings:
    """What a process has that outlives a test if nobody cleans up.

    Descriptors and children are seen on Linux alone.
    """

    threads: frozenset[threading.Thread]
    descriptors: frozenset[str]
    children: frozenset[str]

    @classmethod
    def now(cls) -> "Belongings":
        return cls(
            frozenset(running_threads()), frozenset(open_descriptors()), frozenset(children())
        )

    def since(self, before: "Belongings") -> list[str]:
        """What is here and was not before, for people."""
        threads = [repr(thread) for thread in self.threads - before.threads]
        descriptors = [f"descriptor {text}" for text in self.descriptors - before.descriptors]
        processes = [f"child process {text}" for text in self.children - before.children]
        return sorted(threads + descriptors + processes)


def running_threads() -> Iterator[threading.Thread]:
    for thread in threading.enumerate():
        # One that C code made and that has run Python once; nobody can wait for it.
        if not isinstance(thread, threading._DummyThread):
            yield thread


def open_descriptors() -> Iterator[str]:
    folder = Path("/proc/self/fd")
    for entry in os.listdir(folder) if folder.exists() else ():
        try:
            target = os.readlink(folder / entry)
        except FileNotFoundError:
            continue  # the one that the listing itself needed
        yield f"{entry} -> {target.removesuffix(' (deleted)')}"


def children() -> Iterator[str]:
    """Zombies too: a child that ended and was not waited for is still there."""
    if not sys.platform.startswith("linux"):
        return
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return  # none at all
    for process in Path("/proc").glob("[0-9]*/stat"):
        try:
            start, _, rest = process.read_text(errors="replace").rpartition(") ")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        state, parent, *_ = rest.split()
        if int(parent) == os.getpid():
            yield f"{start}) in state {state}"


@pytest.fixture(scope="session")
def every_loop_was_used() -> None:
    """The first loop of a kind may open what stays: libuv keeps a pipe for signals."""
    for new_loop in LOOPS.values():
        new_loop().close()


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest, every_loop_was_used: None) -> Iterator[None]:
    """The first function-scoped fixture, so the test's loop comes after and goes before."""
    before, failed = Belongings.now(), request.session.testsfailed
    yield
    if request.session.testsfailed > failed:
        return  # it had no chance to clean up
    deadline = monotonic() + ENDING_LIMIT
    for thread in set(running_threads()) - before.threads:
        thread.join(max(0, deadline - monotonic()))
    if Belongings.now().since(before):
        # What only a reference cycle holds is closed now, which is a ResourceWarning and fails.
        gc.collect()
    if left := Belongings.now().since(before):
        pytest.fail("left behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture(autouse=True)
def no_task_is_left(request: pytest.FixtureRequest, nothing_is_left: None) -> None:
    if is_async_test(request.node):
        request.getfixturevalue("tasks_end_with_the_test")


@pytest.fixture
async def tasks_end_with_the_test(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """The first async fixture: the others have cleaned up when this one looks."""
    failed = request.session.testsfailed
    yield
    left = asyncio.all_tasks() - {asyncio.current_task()}
    if left and request.session.testsfailed == failed:
        _, running = await asyncio.wait(left, timeout=ENDING_LIMIT)
        if running:
            text = "\n  ".join(map(repr, running))
            pytest.fail(f"left running:\n  {text}", pytrace=False)
