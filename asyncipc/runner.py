"""Running a program's main coroutine, on uvloop where it is installed.

Layer 3, beside the peer.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["run"]

new_event_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
with contextlib.suppress(ImportError):
    import uvloop

    new_event_loop = uvloop.new_event_loop

T = TypeVar("T")


def run(
    main: Callable[[], Coroutine[Any, Any, T]] | Coroutine[Any, Any, T],
    *,
    debug: bool | None = None,
) -> T:
    """Run a program: `asyncio.run` on uvloop where it is installed.

    :param main: the main coroutine, or the function that makes it
    :param debug: as for `asyncio.run`
    :returns: what the coroutine returns
    """
    with asyncio.Runner(debug=debug, loop_factory=new_event_loop) as runner:
        return runner.run(main if isinstance(main, Coroutine) else main())
