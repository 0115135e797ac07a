"""pebble.ProcessPool with one worker, called without asyncio."""

import multiprocessing
from collections.abc import Callable
from functools import partial
from typing import Any

import pebble

from benchmarks.pools.work import ARGUMENT, RESULT, increment
from benchmarks.worker import blocking_commands, die_with_parent, obey


def client(path: str) -> None:
    """Start the worker and measure; the path is not used."""
    spawn = multiprocessing.get_context("spawn")
    with pebble.ProcessPool(1, initializer=die_with_parent, context=spawn) as pool:

        def submit() -> Callable[[], Any]:
            return partial(pool.schedule(increment, args=(ARGUMENT,)).result, None)

        assert submit()() == RESULT
        obey(blocking_commands(submit, RESULT))
