"""Functions that a user hands over to be told of something: looked at when they come, and called.

Where somebody can wait, an ``async def`` is awaited (``on_session``, ``on_progress``). Elsewhere
nobody could, so plain functions are taken, and anything else is refused when it is handed over.

Layer 0: imports nothing of the library.
"""

import asyncio
import inspect
import logging
from collections.abc import Callable

__all__ = ["call_back", "check_callback"]

logger: logging.Logger = logging.getLogger("asyncipc")


def check_callback(name: str, callback: object, *, is_awaited: bool = False) -> None:
    """Look at a callback when it is handed over.

    :param name: what it is handed over as, for the error
    :param is_awaited: it may be an ``async def``
    :raises TypeError: it cannot be called, or is an ``async def`` that nobody would await
    """
    if not callable(callback):
        raise TypeError(f"{name} must be a function, not {callback!r:.60}")
    if not is_awaited and (
        inspect.iscoroutinefunction(callback)
        or inspect.iscoroutinefunction(getattr(type(callback), "__call__", None))  # noqa: B004
    ):
        raise TypeError(
            f"{name} must be a plain function, not the async def {callback!r:.60}: nobody would "
            "await it; one that starts a task will do"
        )


def call_back(callback: Callable[..., object], *arguments: object, source: str) -> None:
    """Tell a callback; what it raises is logged, and disturbs nobody.

    :param source: what tells, for the log
    """
    try:
        result = callback(*arguments)
    except (Exception, asyncio.CancelledError):
        logger.exception("a callback of %s failed", source)
        return
    if inspect.iscoroutine(result):
        result.close()
        logger.error(
            "a callback of %s returned a coroutine, which nobody awaits: %r", source, callback
        )
