"""How handlers run: inline, as a task, in a thread, or item by item; each in a fresh context.

Fresh, because the callback that reads has the context variables of whoever opened the session.

Layer 2, inside the session.
"""

import asyncio
import inspect
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context, copy_context
from functools import partial
from typing import Any, Final, TypeAlias

from asyncipc.errors import InvalidParams
from asyncipc.session.context import Call, serving
from asyncipc.session.handler import Handler
from asyncipc.session.producing import send_all, send_all_from_thread, send_all_in_turns

__all__ = ["Run", "await_first", "run_handlers", "start_task"]

Run: TypeAlias = Callable[[tuple[Handler, ...], Any, Call], Awaitable[Any]]

EAGER_TASKS: Final = sys.version_info >= (3, 12)


def start_task(
    loop: asyncio.AbstractEventLoop, call: Call, work: Coroutine[Any, Any, None]
) -> asyncio.Task[None]:
    """Run ``work`` as a task that serves the call; at once where Python can."""
    context = Context()
    context.run(serving.set, call)
    if EAGER_TASKS:
        task = asyncio.Task(work, loop=loop, context=context, eager_start=True)  # type: ignore[call-arg,unused-ignore]
    else:
        task = loop.create_task(work, context=context)
    if not call.finished:
        call.task = task
    return task


async def run_handlers(handlers: tuple[Handler, ...], params: Any, call: Call) -> Any:
    """Ask one handler after the other; ``NotImplemented`` when none takes the call."""
    for handler in handlers:
        if call.given_up:
            raise asyncio.CancelledError  # while a thread passed the call on
        if handler.is_generator:
            await _send_items(handler, params, call)
            return None
        if handler.thread:
            result = await _in_thread(handler, params, call)
        else:
            result = handler.invoke(params, call)
        if handler.is_async or inspect.isawaitable(result):
            result = await result
        if result is not NotImplemented:
            return result
    return NotImplemented


def await_first(result: Awaitable[Any]) -> Run:
    """`run_handlers` for those behind a plain function that returned something to be awaited."""

    async def run(handlers: tuple[Handler, ...], params: Any, call: Call) -> Any:
        awaited = await result
        if awaited is not NotImplemented:
            return awaited
        return await run_handlers(handlers, params, call)

    return run


async def _send_items(handler: Handler, params: Any, call: Call) -> None:
    """Run a handler that is a generator."""
    sender = call.streams.sender if call.streams is not None else None
    if sender is None:
        raise InvalidParams(
            f"{call.method}() gives a stream of items: ask for it with session.stream()"
        )
    if handler.thread:
        start = partial(handler.invoke, params, call)
        await send_all_from_thread(start, sender, call.threads())
        return
    items = handler.invoke(params, call)
    if not handler.is_async:
        await send_all_in_turns(items, sender)
        return
    if not hasattr(items, "__aiter__"):
        items = await items  # a decorator that is an async def hands the generator on
    await send_all(items, sender)


async def _in_thread(handler: Handler, params: Any, call: Call) -> Any:
    """Run a handler in a thread, which can't be interrupted, only told: `Call.cancelled`.

    So cancelling leaves the task alone while the thread runs: the call has ended, and its slot is
    free, only when its work has. One that still waits for a thread never starts.
    """

    def run() -> Any:
        # First the one, then the other, and the reverse where a call is cancelled: so a cancel
        # that does not see the thread at work is seen by it.
        call.in_thread = True
        if call.given_up:
            raise asyncio.CancelledError
        try:
            return handler.invoke(params, call)
        except StopIteration as error:
            # As a coroutine does. A future cannot carry it: whoever waits would wait for ever.
            raise RuntimeError("the handler raised StopIteration") from error

    try:
        context = copy_context()
        return await asyncio.get_running_loop().run_in_executor(call.threads(), context.run, run)
    finally:
        call.in_thread = False
