"""ProcessPoolExecutor and Pool line by line: the same work, run by both, and compared."""

import asyncio
import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import asyncipc

NUMBERS = [1_009, 1_000, 9_973, 10_001, 104_729, 104_730]


def is_prime(number: int) -> bool:
    """What both are given to do."""
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


async def with_executor() -> tuple[object, ...]:
    """As it was."""
    loop = asyncio.get_running_loop()
    spawn = multiprocessing.get_context("spawn")  # forking a process that runs a loop is unsafe
    with ProcessPoolExecutor(max_workers=2, mp_context=spawn) as executor:
        one = await loop.run_in_executor(executor, is_prime, 9_973)
        future = loop.run_in_executor(executor, is_prime, 9_974)
        other = await future
        many = list(executor.map(is_prime, NUMBERS))  # the loop stands still meanwhile
        try:
            await loop.run_in_executor(executor, math.sqrt, -1)
        except ValueError as error:
            failure = str(error)
    return one, other, many, failure


async def with_pool() -> tuple[object, ...]:
    """As it is now."""
    async with asyncipc.Pool(workers=2) as pool:
        one = await pool.run(is_prime, 9_973)
        task = pool.submit(is_prime, 9_974)
        other = await task
        many = [result async for result in pool.map(is_prime, NUMBERS)]
        try:
            await pool.run(math.sqrt, -1)
        except ValueError as error:
            failure = str(error)
    return one, other, many, failure


async def main() -> None:
    """Run both."""
    before, after = await with_executor(), await with_pool()
    print("with ProcessPoolExecutor:", before)
    print("with asyncipc.Pool:      ", after)
    assert before == after == (True, False, [True, False, True, False, True, False], after[3])
    print("they agree")


if __name__ == "__main__":
    asyncipc.run(main)
