"""A task of the pool, from when it is given until its outcome is known.

Layer 4, inside the pool. Above: scheduler, links to workers, engine. Below: payload, work.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator
from contextvars import Context
from time import monotonic
from typing import Any, Final, Generic, Protocol, TypeVar

from asyncipc.errors import DecodeError, TaskTimeout
from asyncipc.pool.descriptors import drop_descriptors
from asyncipc.pool.payload import Failure, load, load_failure, safe_repr
from asyncipc.pool.work import Work
from asyncipc.session.calls import Calls
from asyncipc.session.context import Progress
from asyncipc.session.progress import OnProgress, ProgressRelay

__all__ = ["PoolTask", "timed_out"]

Result = TypeVar("Result")

# Updates kept for each reader of `PoolTask.progress` that is slower than they come: these oldest
# and the latest.
MAX_KEPT: Final = 256


class Holder(Protocol):
    """Who has a task: the queue, or a worker."""

    def give_up(self, task: "PoolTask[Any]") -> None:
        """Nobody waits for it any longer."""

    def watch(self, task: "PoolTask[Any]") -> None:
        """Somebody wants its progress."""


class PoolTask(Generic[Result]):
    """A call that was given to a pool; made by `Pool.submit`.

    ``await task`` waits for the result. If who awaits it is cancelled, so is the task. What
    `asyncio.Future` has to offer it has as well, so `asyncio.wait` and the like take it.
    """

    __slots__ = (
        "__weakref__",
        "_future",
        "_keeps_latest",
        "_latest",
        "_readers",
        "_relay",
        "deadline",
        "has_result",
        "holder",
        "number",
        "on_done",
        "retries",
        "seconds",
        "timeout",
        "work",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        number: int,
        work: Work,
        *,
        timeout: float | None,
        retries: int,
        on_progress: OnProgress | None,
        on_done: Callable[["PoolTask[Any]"], None],
    ) -> None:
        self._future: asyncio.Future[Result] = loop.create_future()
        self._relay = None if on_progress is None else ProgressRelay(self._future, on_progress)
        self._readers: tuple[_Reader, ...] = ()
        self._keeps_latest = False
        self._latest: Progress | None = None
        self.number: int = number
        self.work: Work = work
        self.timeout: float | None = timeout
        self.deadline: float | None = None if timeout is None else monotonic() + timeout
        self.retries: int = retries
        self.holder: Holder | None = None
        self.on_done: Callable[[PoolTask[Any]], None] = on_done
        self.seconds: float = 0.0
        self.has_result: bool = False
        if self._relay is not None:
            self._future.add_done_callback(self._noticed)

    # -- for who gave it -------------------------------------------------------------------

    def __await__(self) -> Generator[Any, Any, Result]:
        """Wait for the result; see `Pool.run` for what it raises."""
        try:
            if self._relay is None:
                return (yield from self._future.__await__())
            return (yield from self._relayed().__await__())
        except asyncio.CancelledError:
            self.cancel()
            raise

    def cancel(self) -> bool:
        """Give it up: who awaits it gets `asyncio.CancelledError`, and its work is stopped.

        An ``async def`` sees `asyncio.CancelledError`, a plain function can look at
        `Call.cancelled`; one that goes on after the pool's ``grace`` is ended with its worker.

        :returns: False if it was over already
        """
        # The future is cancelled before this where it was awaited and who did so was.
        if self._future.done() and self.holder is None:
            return False
        self._future.cancel()
        self._is_over()
        return True

    def done(self) -> bool:
        """Whether there is a result, an error, or it was cancelled."""
        return self._future.done()

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self._future.cancelled()

    def failed(self) -> bool:
        """Whether it ended with an error."""
        return self._future.done() and not (self.has_result or self._future.cancelled())

    def result(self) -> Result:
        """The result, or what `await` would raise; never waits.

        :raises asyncio.InvalidStateError: it is not over
        """
        self._check_over("result")
        return self._future.result()

    def exception(self) -> BaseException | None:
        """The error that it ended with, or None; never waits.

        :raises asyncio.CancelledError: it was cancelled
        :raises asyncio.InvalidStateError: it is not over
        """
        self._check_over("exception")
        return self._future.exception()

    def _check_over(self, method: str) -> None:
        if not self._future.done():
            raise asyncio.InvalidStateError(
                f"{method}() is for a task that is over, and {self!r} is not: await it"
            )

    def add_done_callback(
        self,
        callback: Callable[["PoolTask[Result]"], object],
        *,
        context: Context | None = None,
    ) -> None:
        """Call ``callback`` with this task when it is over, in a turn of the loop of its own.

        :param context: the context variables it sees; None: those of now
        """
        self._future.add_done_callback(_Callback(self, callback), context=context)

    def remove_done_callback(self, callback: Callable[["PoolTask[Result]"], object]) -> int:
        """Take it off again; how often it was there."""
        return self._future.remove_done_callback(_Callback(self, callback))

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The loop it belongs to."""
        return self._future.get_loop()

    async def progress(self) -> AsyncIterator[Progress]:
        """The last update that came before, if there was one, and all from now on, in order.

        It ends with the task. Who reads slower than they come gets the oldest `MAX_KEPT` that it
        has not read, and the latest.
        """
        reader = _Reader(self._future.get_loop())
        if self._future.done():
            return
        if self._latest is not None:
            reader.add(self._latest)
        self._readers += (reader,)
        try:
            while True:
                while reader.updates:
                    yield reader.updates.popleft()
                if self._future.done():
                    return
                await reader.news()
        finally:
            self._readers = tuple(other for other in self._readers if other is not reader)

    def __repr__(self) -> str:
        state = "running or waiting"
        if self._future.cancelled():
            state = "cancelled"
        elif self._future.done():
            state = "done" if self.has_result else "failed"
        return f"<PoolTask {self.work.name} {state}>"

    async def _relayed(self) -> Result:
        assert self._relay is not None
        try:
            result: Result = await self._relay.run()
        except BaseException:
            self.cancel()  # also where on_progress itself failed
            await self._relay.stop()
            raise
        return result

    # -- for who has it --------------------------------------------------------------------

    @property
    def fits_bundle(self) -> bool:
        """It may travel with others: nobody wants to hear of it before its end."""
        return (
            self.work.fits_bundle
            and self.timeout is None
            and self._relay is None
            and not self._keeps_latest
        )

    def keep_progress(self) -> None:
        """Whoever gave it may ask for its progress, which may have begun by then."""
        self._keeps_latest = True
        if self.holder is not None:
            self.holder.watch(self)

    def begun(self, calls: Calls, answer_id: int) -> None:
        """A worker has it: its call has begun, and will end with this id."""
        if self._relay is not None or self._keeps_latest:
            calls.watch(answer_id, self.update)

    def update(self, progress: Progress) -> None:
        """Progress came."""
        self._latest = progress
        for reader in self._readers:
            reader.add(progress)
        if self._relay is not None:
            self._relay.update(progress)

    def resolve(self, dumped: list[Any]) -> None:
        """Its result came."""
        if self._future.done():
            drop_descriptors(dumped)
            self._is_over()
            return
        try:
            result = load(dumped)
        except BaseException as error:  # noqa: BLE001 - a class of the user's may raise anything
            failure = DecodeError(
                f"the result of {self.work.name} cannot be unpickled: {type(error).__name__}: "
                f"{safe_repr(error)}"
            )
            failure.__cause__ = error
            self.fail(failure)
            return
        if not self._future.done():  # which code that unpickling runs may have changed
            self._future.set_result(result)
            self.has_result = True
        self._is_over()

    def reject(self, failure: Failure) -> None:
        """What it raised came."""
        self.fail(load_failure(failure))

    def fail(self, error: Exception) -> None:
        """It ends with an error."""
        if not self._future.done():
            self._future.set_exception(error)
        self._is_over()

    def forget(self) -> None:
        """Nobody wants to know how it ends."""
        if not self.cancel() and not self._future.cancelled():
            self._future.exception()

    def _noticed(self, _: asyncio.Future[Result]) -> None:
        """It ended: by itself, or because ``on_progress`` failed, of which nobody else hears."""
        if self.holder is not None:
            self._is_over()

    def _is_over(self) -> None:
        for reader in self._readers:
            reader.wake()
        self.work.params = []  # which may be large, and are needed no longer
        holder, self.holder = self.holder, None
        if holder is not None:
            holder.give_up(self)
        self.on_done(self)


def timed_out(task: PoolTask[Any]) -> TaskTimeout:
    """What is told to who waits for a task that did not end in time."""
    return TaskTimeout(f"no result of {task.work.name} within {task.timeout:g} s")


class _Callback:
    """What is to be called with a task when it is over; equal for equal functions."""

    __slots__ = ("_callback", "_task")

    def __init__(self, task: PoolTask[Any], callback: Callable[[PoolTask[Any]], object]) -> None:
        self._task = task
        self._callback = callback

    def __call__(self, _: asyncio.Future[Any]) -> None:
        self._callback(self._task)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Callback) and self._callback == other._callback

    def __hash__(self) -> int:
        return hash(self._callback)


class _Reader:
    """One reader of a task's progress."""

    __slots__ = ("_loop", "_waiting", "updates")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: asyncio.Future[None] | None = None
        self.updates: deque[Progress] = deque()

    def add(self, progress: Progress) -> None:
        """An update came."""
        if len(self.updates) > MAX_KEPT:
            self.updates.pop()
        self.updates.append(progress)
        self.wake()

    def wake(self) -> None:
        """There is something new, or nothing more."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def news(self) -> None:
        """Wait for `wake`."""
        self._waiting = self._loop.create_future()
        await self._waiting
