"""loky's executor with one worker, called without asyncio."""

from collections.abc import Callable
from functools import partial
from typing import Any

import loky  # type: ignore[import-untyped,unused-ignore]

from benchmarks.pools.work import ARGUMENT, RESULT, increment
from benchmarks.worker import blocking_commands, die_with_parent, obey


def client(path: str) -> None:
    """Start the worker and measure; the path is not used."""
    # No timeout: a worker that has nothing to do for a while stays.
    with loky.ProcessPoolExecutor(1, timeout=None, initializer=die_with_parent) as executor:

        def submit() -> Callable[[], Any]:
            return partial(executor.submit(increment, ARGUMENT).result, None)

        assert submit()() == RESULT
        obey(blocking_commands(submit, RESULT))
