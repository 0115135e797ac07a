"""A background process that reports status, and can be asked for it at any time.

The child works by itself and notifies its parent of each step. The parent hears of the steps,
asks a question in between, and tells the child to stop.
"""

import asyncio
import sys

import asyncipc


async def child() -> None:
    """Work until told to stop; say how it goes."""
    peer = asyncipc.Peer()
    steps = 0
    stop = asyncio.Event()

    @peer.on_request
    def status() -> dict[str, int]:
        return {"steps": steps}

    peer.on_notification("stop")(stop.set)
    async with peer.stdio() as parent:
        while not stop.is_set() and not parent.closed:
            await asyncio.sleep(0.01)  # the work
            steps += 1
            await parent.notify("stepped", {"steps": steps})
        await parent.notify("stopped", {"steps": steps})


async def main() -> None:
    """Watch a child at its work."""
    peer = asyncipc.Peer()
    reported: list[int] = []
    enough, stopped = asyncio.Event(), asyncio.Event()

    @peer.on_notification("stepped")
    def on_step(steps: int) -> None:
        reported.append(steps)
        print(f"the child has done {steps} steps")
        if steps == 3:
            enough.set()

    @peer.on_notification("stopped")
    def on_stop(steps: int) -> None:
        print(f"the child has stopped after {steps} steps")
        stopped.set()

    async with peer.spawn([sys.executable, __file__, "child"]) as session:
        await enough.wait()
        print("asked, it says:", await session.request("status"))
        await session.notify("stop")
        await stopped.wait()
    assert reported == list(range(1, len(reported) + 1))  # all of them, in order


if __name__ == "__main__":
    asyncipc.run(child if "child" in sys.argv else main)
