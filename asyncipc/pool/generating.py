"""A worker's side of streams: runs generators, and packs what they give.

An async generator is iterated on the loop. A plain one is stepped between its turns, on the main
thread and outside of it, one item after the other; while it works on one, its `Call` looks at the
socket itself.

Layer 4, inside the pool. Above: the worker. Below: jobs, outside, payload, the session.
"""

import asyncio
import contextlib
import inspect
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from contextvars import Context
from functools import partial
from time import perf_counter
from typing import Any, Final

from asyncipc.pool.outside import back_inside, call_outside
from asyncipc.pool.payload import dump_failure, dump_outcome
from asyncipc.pool.protocol import FAILURE, RESULT
from asyncipc.session.context import Call, current_call
from asyncipc.session.dispatch import Dispatch, nothing_new
from asyncipc.session.outbox import Outbox

__all__ = ["Generators"]

# Seconds that a step of a plain generator takes which is known to be quick. The items of such leave
# together, those of others one by one: the next step may keep the loop from sending for long.
QUICK: Final = 0.0001

# How much of an old maximum is left after each faster step.
DECAY: Final = 0.8


class Generators:
    """The streams of a worker.

    :param dispatch: of the session with the application; so is ``outbox``
    :param look: reads what has come from there, without waiting
    :param is_ending: whether this process was asked to end
    :param unpack: see `asyncipc.pool.jobs.Jobs.unpack`
    """

    def __init__(
        self,
        dispatch: Dispatch,
        outbox: Outbox,
        look: Callable[[], None],
        is_ending: Callable[[], bool],
        *,
        unpack: Callable[[Call, bytes, list[Any]], tuple[Callable[..., Any], Any, Context]],
    ) -> None:
        self._dispatch = dispatch
        self._outbox = outbox
        self._look = back_inside(dispatch.loop, look)
        self._is_ending = is_ending
        self._unpack = unpack
        self.on_end: Callable[[], None] = nothing_new

    async def stream(self, function: Any, *arguments: Any) -> AsyncGenerator[list[Any], None]:
        """The handler of `asyncipc.pool.jobs.STREAM`: each item like an answer to `RUN`.

        :param function: the pickle of a function that gives items
        :param arguments: for it, as `asyncipc.pool.payload.dump` makes them
        """
        began = perf_counter()
        sender = current_call().streams.sender
        try:
            async with contextlib.aclosing(self._items(function, list(arguments))) as items:
                async for item in items:
                    dumped = dump_outcome(item, f"an item of {current_call().method}")
                    yield [RESULT, perf_counter() - began, *dumped]
                    if len(dumped) > 1:  # the generator may fill the buffers anew
                        await sender.drain()
        except (GeneratorExit, asyncio.CancelledError):
            raise
        except BaseException as error:
            if self._is_ending():
                raise SystemExit from error  # which pickling an item may have made another
            yield [FAILURE, perf_counter() - began, *dump_failure(error)]
        finally:
            self.on_end()

    async def _items(self, function: bytes, arguments: list[Any]) -> AsyncGenerator[Any, None]:
        call = current_call()
        generator, (args, kwargs), context = self._unpack(call, function, arguments)
        for variable, value in context.items():
            variable.set(value)
        items = self._outside(partial(generator, *args, **kwargs))
        if inspect.iscoroutine(items):
            items = await items
        if isinstance(items, AsyncIterable):
            stepped = _each_of(items)
        elif isinstance(items, Iterable):
            stepped = self._steps(items)
        else:
            raise TypeError(
                f"{call.method}() gives no items: expected an iterable or async iterable, such as "
                f"a generator, not {items!r:.60}"
            )
        async with contextlib.aclosing(stepped):
            async for item in stepped:
                yield item

    async def _steps(self, items: Iterable[Any]) -> AsyncGenerator[Any, None]:
        """What a plain generator gives, stepped on the loop."""
        iterator = self._outside(iter, items)
        slowest = QUICK  # of the last steps; nothing is known of the first
        try:
            while True:
                began = perf_counter()
                item = self._outside(next, iterator, _END)
                if item is _END:
                    break
                slowest = max(slowest * DECAY, perf_counter() - began)
                yield item
                if slowest >= QUICK * DECAY:
                    # What it gave leaves before it goes on: into the outbox, and out.
                    await asyncio.sleep(0)
                    self._outbox.flush()
        finally:
            if inspect.isgenerator(items):
                self._outside(items.close)

    def _outside(self, function: Callable[..., Any], *arguments: object) -> Any:
        """Call what is or may be the user's own plain code."""
        self._dispatch.look = self._look
        try:
            return call_outside(self._dispatch.loop, function, *arguments)
        finally:
            self._dispatch.look = nothing_new


async def _each_of(items: AsyncIterable[Any]) -> AsyncGenerator[Any, None]:
    """What an async generator gives, which is closed in any case."""
    try:
        async for item in items:
            yield item
    finally:
        if inspect.isasyncgen(items):
            await items.aclose()


_END = object()
