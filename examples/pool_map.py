"""A pool's map: the same function over many items, on every core, with a progress bar."""

import sys

import asyncipc


def count_primes(numbers: range) -> int:
    """Something that keeps a core busy."""
    return sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in numbers if n > 1)


def show(done: int, total: int) -> None:
    """Draw the bar."""
    bar = f"[{'#' * (40 * done // total):.<40}] {done / total:4.0%}"
    print(f"\r{bar}" if sys.stdout.isatty() else bar, end="", flush=True)
    if done == total or not sys.stdout.isatty():
        print()


async def main() -> None:
    """Count the primes below 40,000 in twenty portions."""
    portions = [range(start, start + 2_000) for start in range(0, 40_000, 2_000)]
    found: list[int] = []
    async with asyncipc.Pool() as pool:
        async for primes in pool.map(count_primes, portions):
            found.append(primes)
            show(len(found), len(portions))
    print(f"{sum(found):,} primes below 40,000, of which {found[0]} are below 2,000")
    assert sum(found) == 4_203
    assert found[0] == 303  # the results come in the order of the items


if __name__ == "__main__":
    asyncipc.run(main)
