"""Several workers in parallel: children share a list of work, each takes the next when free."""

import asyncio
import sys
from collections import Counter

import asyncipc

peer = asyncipc.Peer()


@peer.on_request
def count_primes(start: int, stop: int) -> int:
    """Something that keeps a core busy."""
    return sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(max(start, 2), stop))


async def child() -> None:
    """Serve the parent."""
    async with peer.stdio() as parent:
        await parent.wait_closed()


async def main() -> None:
    """Count the primes below 40,000 with three workers."""
    work = iter(range(0, 40_000, 2_000))
    primes = 0
    shares: Counter[str] = Counter()

    async def worker(name: str) -> None:
        nonlocal primes
        async with peer.spawn([sys.executable, __file__, "child"]) as session:
            for start in work:  # all workers take from the one iterator
                found = await session.request("count_primes", [start, start + 2_000])
                print(f"{name} found {found:3} primes from {start:6,} on")
                primes += found
                shares[name] += 1

    async with asyncio.TaskGroup() as group:
        for name in ("Ada", "Bob", "Cyd"):
            group.create_task(worker(name))
    print(f"{primes:,} primes below 40,000; portions done: {dict(shares)}")
    assert primes == 4_203
    assert shares.total() == 20


if __name__ == "__main__":
    asyncipc.run(child if "child" in sys.argv else main)
