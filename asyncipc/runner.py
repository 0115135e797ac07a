"""Running a program's main coroutine, on uvloop where it is installed.

Layer 3, beside the peer.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["occupy_standard_streams", "run"]

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
    :raises RuntimeError: a loop runs in this thread already
    """
    if asyncio._get_running_loop() is not None:  # noqa: SLF001 - as `asyncio.run` does it
        raise RuntimeError("asyncipc.run() cannot be called from a running event loop")
    occupy_standard_streams()
    with asyncio.Runner(debug=debug, loop_factory=new_event_loop) as runner:
        return runner.run(main if isinstance(main, Coroutine) else main())


def occupy_standard_streams() -> None:
    """Leave no standard stream closed: libuv aborts when its own descriptors get such a number.

    Each is opened the wrong way round, so that using it is the same error as if it were closed.
    """
    for fd, mode in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_RDONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, mode)  # takes the lowest number, which is this one
