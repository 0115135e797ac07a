"""A worker's side of the tasks: takes them, runs them, answers.

A plain function runs on the main thread, outside of the loop, one at a time: while it does, its
`Call` looks at the socket itself, and progress is written directly. A function that returns a
coroutine gets a task. The answer to a call is on the wire before the next is begun, so that at a
death the application knows which calls had begun.

Layer 4, inside the pool. Above: the worker. Below: outside, payload, context_variables, the
session.
"""

import asyncio
import inspect
import os
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from functools import partial
from time import perf_counter
from typing import Any, Final

from asyncipc.pool.bundle_runner import BundleRunner
from asyncipc.pool.chunks import call_each
from asyncipc.pool.context_variables import load_context
from asyncipc.pool.descriptors import drop_descriptors
from asyncipc.pool.outside import back_inside, call_outside
from asyncipc.pool.payload import (
    FunctionCache,
    dump_failure,
    dump_outcome,
    is_async,
    load_arguments,
)
from asyncipc.pool.protocol import BUNDLE, FAILURE, MAP, RESULT
from asyncipc.process.usage import private_memory
from asyncipc.session.context import Call, serving
from asyncipc.session.dispatch import Dispatch, nothing_new
from asyncipc.session.outbox import Outbox
from asyncipc.session.reporting import Pace

__all__ = ["Jobs"]

# Seconds for which tiny jobs follow each other without a look at the loop.
TURN: Final = 0.001

# Progress that may come at once, and in a second. More is nothing that a person could read.
PROGRESS_BURST: Final = 256
PROGRESS_RATE: Final = 500.0

# Seconds between two looks at the memory: it costs a millisecond to have it counted.
MEMORY_INTERVAL: Final = 0.1


class Job:
    """One call of the application; what its `Call` has for a task."""

    __slots__ = ("_jobs", "call", "method", "params", "task")

    def __init__(self, jobs: "Jobs", call: Call, params: list[Any]) -> None:
        self._jobs = jobs
        self.call: Call = call
        self.method: str = call.method
        self.params: list[Any] = params
        self.task: asyncio.Task[None] | None = None

    def cancel(self) -> None:
        """The caller gave up. A plain function is not interrupted, it may look."""
        if self.task is not None:
            self.task.cancel()
        elif not self.call.started:
            self._jobs.forget(self)


class Jobs:
    """The calls of a worker.

    :param dispatch: of the session with the application; so is ``outbox``
    :param look: reads what has come from there, without waiting
    :param is_ending: whether this process was asked to end, as by SystemExit, which jobs may catch
    """

    def __init__(
        self,
        dispatch: Dispatch,
        outbox: Outbox,
        look: Callable[[], None],
        is_ending: Callable[[], bool],
    ) -> None:
        self._dispatch = dispatch
        self._outbox = outbox
        self._loop = dispatch.loop
        self._look = back_inside(self._loop, look)
        self._is_ending = is_ending
        self._functions = FunctionCache()
        self.bundles: BundleRunner = BundleRunner(self._functions, dispatch, is_ending)
        self._waiting: deque[Job] = deque()
        self._is_scheduled = False
        self._is_running = False
        self._alone: asyncio.Task[None] | None = None  # of a plain function: a coroutine of it
        self._is_held = False
        self._holding: asyncio.Task[None] | None = None
        self.max_memory: int | None = None
        self.on_too_large: Callable[[int], None] = _ignore
        self.before_answer: Callable[[], None] = nothing_new  # what threads have said goes first
        self._looked_at_memory = perf_counter()
        dispatch.progress.is_direct = True
        dispatch.progress.pace = Pace(PROGRESS_BURST, PROGRESS_RATE)

    def receive(self, params: list[Any], call: Call) -> None:
        """A call came; the handler of `RUN`, `MAP` and `BUNDLE`."""
        job = Job(self, call, params)
        call.task = job
        self._waiting.append(job)
        if not (self._is_scheduled or self._is_running):
            self._schedule()

    def forget(self, job: Job) -> None:
        """A call that waits is not to be begun."""
        if job in self._waiting:
            self._waiting.remove(job)
            drop_descriptors(job.params)

    def disown(self) -> None:
        """In a process that a task has forked: what waits here is not to be run there as well."""
        self._waiting.clear()
        self.bundles.disown()

    def _schedule(self) -> None:
        self._is_scheduled = True
        self._loop.call_soon(self._run_waiting)

    def _run_waiting(self) -> None:
        self._is_scheduled = False
        if self._is_ending():
            return  # the loop is being left: what waits has not begun, and is another worker's
        try:
            call_outside(self._loop, self._take_turn)
        finally:
            if self._waiting and not self._is_held:
                self._schedule()

    def _take_turn(self) -> None:
        until = perf_counter() + TURN
        while self._waiting and self._may_begin():
            self._begin(self._waiting.popleft())
            self._check()
            if perf_counter() > until:
                break

    def _may_begin(self) -> bool:
        """Whether the answers to all that ran alone are on the wire; if not, that is waited for."""
        if self._outbox.empty and self._alone is None:
            return True
        if not self._is_held:
            self._is_held = True
            self._holding = self._loop.create_task(self._hold())
        return False

    async def _hold(self) -> None:
        try:
            if self._alone is not None:
                await asyncio.wait([self._alone])
            await self._outbox.drained()
        finally:
            self._is_held = False
            if self._waiting and not self._is_scheduled:
                self._schedule()

    def _begin(self, job: Job) -> None:
        call = job.call
        call.started = True
        began = perf_counter()
        self._is_running = True
        self._dispatch.look = self._look
        try:
            context, function, result = self._call(job)
        except BaseException as error:  # noqa: BLE001 - SystemExit is the caller's news ...
            self._check()  # ... unless this process was asked to end: then it has no answer
            self._answer(job, began, error=error)
            return
        finally:
            self._is_running = False
            self._dispatch.look = nothing_new
        if inspect.iscoroutine(result):
            job.task = asyncio.Task(
                self._await(job, result, began), loop=self._loop, context=context
            )
            job.task.add_done_callback(partial(self._ended, job, result, began))
            if not (function and is_async(function)):
                self._alone = job.task  # the application takes it for one that runs alone
        else:
            self._answer(job, began, result)

    def _call(self, job: Job) -> tuple[Context, Callable[..., Any] | None, Any]:
        call = job.call
        if job.method == BUNDLE:
            slot, *packed = job.params
            context, ran = self.bundles.run(call.wire_id, slot, packed)
            return context, None, ran
        # What came in shared memory goes back when the arguments are gone: nobody else keeps it.
        pickled, *dumped = job.params
        job.params = []
        function, arguments, context = self.unpack(call, pickled, dumped)
        del dumped
        context.run(serving.set, call)
        if job.method == MAP:
            return context, function, context.run(call_each, function, arguments, self._check)
        args, kwargs = arguments
        return context, function, context.run(function, *args, **kwargs)

    def unpack(
        self, call: Call, pickled: bytes, dumped: list[Any]
    ) -> tuple[Callable[..., Any], Any, Context]:
        """What a call is about: the function, its arguments, and the caller's context variables.

        :raises DecodeError: function or arguments cannot be unpickled here
        """
        try:
            function, call.method = self._functions.load(pickled)
            carried = call.metadata.pop("context", None)
            context = Context() if carried is None else load_context(carried)
        except BaseException:
            drop_descriptors(dumped)
            raise
        return function, load_arguments(dumped, call.method), context

    async def _await(self, job: Job, work: Coroutine[Any, Any, Any], began: float) -> None:
        try:
            result = await work
        except asyncio.CancelledError as error:
            if self._is_ending():
                return  # the loop is being left, and the other tasks are to have their turn too
            self._answer(job, began, error=error)
        except BaseException as error:  # noqa: BLE001 - see _begin
            self._check()
            self._answer(job, began, error=error)
        else:
            self._answer(job, began, result)
        self._check()

    def _ended(
        self, job: Job, work: Coroutine[Any, Any, Any], began: float, _: asyncio.Task[None]
    ) -> None:
        """See to a task that was cancelled before its first step."""
        if self._alone is job.task:
            self._alone = None
        if not job.call.finished:
            work.close()
            if not self._is_ending():
                self._answer(job, began, error=asyncio.CancelledError())

    def _check(self) -> None:
        """Go on ending where what ran has caught the SystemExit."""
        if self._is_ending():
            raise SystemExit

    def _answer(
        self, job: Job, began: float, result: Any = None, error: BaseException | None = None
    ) -> None:
        call = job.call
        seconds = perf_counter() - began
        self._dispatch.progress.take_from_threads()
        self.before_answer()
        if call.given_up and isinstance(error, asyncio.CancelledError):
            self._dispatch.fail(call, error)
            return
        if error is None:
            try:
                answer = _as_answer(job, seconds, result)
            except BaseException as failure:  # noqa: BLE001 - the caller gets it
                error = failure
        if error is not None:
            answer = [FAILURE, seconds, *dump_failure(error)]
        self._dispatch.complete(call, answer, more=job.method == MAP)
        if self.max_memory is not None:
            self._check_memory(self.max_memory)

    def look_at_memory(self) -> None:
        """See, now and then, whether this process has become too large."""
        if self.max_memory is not None:
            self._check_memory(self.max_memory)

    def _check_memory(self, limit: int) -> None:
        now = perf_counter()
        if now - self._looked_at_memory < MEMORY_INTERVAL:
            return
        self._looked_at_memory = now
        size = private_memory(os.getpid())
        if size is not None and size > limit:
            self.on_too_large(size)


def _as_answer(job: Job, seconds: float, result: Any) -> list[Any]:
    if job.method == BUNDLE:
        *ran, last = result
        return [RESULT, seconds, *ran, *last]
    return [RESULT, seconds, *dump_outcome(result, f"the result of {job.call.method}")]


def _ignore(_size: int) -> None:
    """Nobody wants to know."""
