"""multiprocessing.Pool with one worker, called without asyncio."""

import multiprocessing
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.pools.work import ARGUMENT, RESULT, increment
from benchmarks.worker import blocking_commands, die_with_parent, obey


def client(path: str) -> None:
    """Start the worker and measure; the path is not used."""
    with multiprocessing.get_context("spawn").Pool(1, die_with_parent) as pool:

        def submit() -> Callable[[], Any]:
            return partial(pool.apply_async(increment, (ARGUMENT,)).get, None)

        assert submit()() == RESULT
        obey(blocking_commands(submit, RESULT))
