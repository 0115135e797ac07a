"""Plain functions of a worker run outside of its event loop: as if their thread had none.

So they can run one of their own: `asyncio.run`, and all that asks first whether a loop runs already
(``anyio.run``, adapters from async to sync code), works as it does in a process without a loop. The
worker's loop runs, but nobody finds it, until the function returns or looks for what has come.

Layer 4, inside the pool. Above: jobs, generating, worker.
"""

import asyncio
from asyncio import _enter_task, _get_running_loop, _leave_task, _set_running_loop
from collections.abc import Callable
from typing import TypeVar

__all__ = ["back_inside", "call_outside"]

Result = TypeVar("Result")


def call_outside(
    loop: asyncio.AbstractEventLoop, function: Callable[..., Result], *arguments: object
) -> Result:
    """Call a plain function outside of the loop, which is running, in a callback or a task."""
    task = asyncio.current_task(loop)
    if task is not None:  # or no other could make a step in this thread, from Python 3.14 on
        _leave_task(loop, task)
    _set_running_loop(None)
    try:
        return function(*arguments)
    finally:
        _set_running_loop(loop)
        if task is not None:
            _enter_task(loop, task)


def back_inside(
    loop: asyncio.AbstractEventLoop, function: Callable[[], None]
) -> Callable[[], None]:
    """What calls a function inside of the loop again, from code that was called outside.

    Where that runs a loop of its own, it goes on in it afterwards.
    """

    def call() -> None:
        running = _get_running_loop()
        _set_running_loop(loop)
        try:
            function()
        finally:
            _set_running_loop(running)

    return call
