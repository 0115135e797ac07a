"""A worker's side of a map: one function with each of the items of a chunk.

Layer 4, inside the pool. Above: jobs. Below: payload.
"""

import asyncio
import contextlib
import inspect
from array import array
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, Final

from asyncipc.pool.payload import Failure, dump_failure

__all__ = ["Outcome", "call_each"]

# What a chunk comes back as: the results up to the first failure, and that failure or None.
Outcome = tuple[Sequence[Any], Failure | None]

# Numbers of one kind as the elements of an array, which is pickled as their bytes: to make a list
# of them and its pickle, and to unpickle that, takes twice as long where the results are read.
# Those of 32 bits fit a common frame twice as often.
TYPECODES: Final[dict[type[Any], tuple[str, ...]]] = {int: ("i", "q"), float: ("d",)}
FEW: Final = 16


def call_each(
    function: Callable[[Any], Any], items: Sequence[Any], check: Callable[[], None]
) -> Outcome | Coroutine[Any, Any, Outcome]:
    """Call the function with one item after the other.

    :param check: called when something was raised, and may raise instead
    :returns: the outcome; for a function that is async, a coroutine of it
    """
    results: list[Any] = []
    try:
        others = iter(items)
        first = function(next(others))
        if inspect.iscoroutine(first):
            return _each_awaited(function, first, others, check)
        results.append(first)
        for item in others:  # measured: a tenth faster than `list.extend` of a `map`
            results.append(function(item))  # noqa: PERF401 - kept up to a failure
    except BaseException as error:  # noqa: BLE001 - see `asyncipc.pool.jobs.Jobs`
        check()
        return results, dump_failure(error)
    if len(results) < len(items):  # what the function raised was taken for the end of the items
        return results, dump_failure(StopIteration("raised by the function"))
    return _compact(results), None


async def _each_awaited(
    function: Callable[[Any], Any],
    first: Coroutine[Any, Any, Any],
    others: Iterator[Any],
    check: Callable[[], None],
) -> Outcome:
    results: list[Any] = []
    try:
        results.append(await first)
        for item in others:
            results.append(await function(item))  # noqa: PERF401 - kept up to a failure
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # noqa: BLE001 - see `asyncipc.pool.jobs.Jobs`
        check()
        return results, dump_failure(error)
    return results, None


def _compact(results: list[Any]) -> Sequence[Any]:
    """The same elements, equal and of the same type, in a form that travels faster, if one does."""
    kind = type(results[0])
    typecodes = TYPECODES.get(kind)
    if typecodes is None or len(results) < FEW or [*map(type, results)].count(kind) < len(results):
        return results
    for typecode in typecodes:
        with contextlib.suppress(OverflowError):
            return array(typecode, results)
    return results  # numbers beyond 64 bits, or no numbers
