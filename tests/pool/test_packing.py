"""What the pool remembers of the functions it is given, and what it must not."""

import asyncio
import functools
import gc
import operator
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from asyncipc.pool.work import Packer
from tests.pool import support
from tests.pool.support import Adder, in_workers, open_pool


class Heavy:
    """An object to call, with data."""

    def __init__(self, size: int) -> None:
        self.data = bytes(size)

    def __call__(self) -> int:
        return len(self.data)

    def measure(self) -> int:
        return len(self.data)


def partial_of(size: int) -> Callable[[], Any]:
    return functools.partial(len, bytes(size))


def method_of(size: int) -> Callable[[], Any]:
    return Heavy(size).measure


def builtin_method_of(size: int) -> Callable[[], Any]:
    return bytes(size).isdigit


KINDS: list[Callable[[int], Callable[[], Any]]] = [partial_of, method_of, Heavy, builtin_method_of]


@pytest.mark.parametrize("make", KINDS)
@in_workers
async def test_callables_that_carry_data_are_not_kept(make: Callable[[int], Any]) -> None:
    async with open_pool() as pool:
        tracemalloc.start()
        try:
            await pool.run(make(1))
            before, _ = tracemalloc.get_traced_memory()
            for number in range(20):
                await pool.run(make(300_000 + number))
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert after - before < 1_000_000


def test_all_of_a_kind_are_remembered_under_one_key() -> None:
    packer = Packer()
    keys = [packer.pack_call(make(size), (), {}).key for make in KINDS for size in (7, 8)]
    assert len(set(keys)) == len(KINDS)
    assert all(key is not None and len(key) < 100 for key in keys)
    plain = packer.pack_call(support.add, (1, 2), {})
    assert plain.key == plain.params[0]
    assert packer.pack_call(functools.partial(Adder(1)), (2,), {}).key is not None
    assert packer.pack_call(operator.itemgetter(1), ([1, 2],), {}).key is not None
    assert packer.pack_chunk(support.double, [1]).key is None


@in_workers
async def test_a_method_of_a_list_sees_what_is_in_it_now() -> None:
    found = [1]
    async with open_pool() as pool:
        assert await pool.run(found.count, 1) == 1
        found.append(1)
        assert await pool.run(found.count, 1) == 2
        async with asyncio.timeout(support.LIMIT):
            assert [count async for count in pool.map(found.count, [1, 2])] == [2, 0]
