"""Timeouts and cancellation: who gives up returns at once, and the work on the other side stops."""

import asyncio
import sys

import asyncipc


async def child() -> None:
    """Sleep on request, and tell how each sleep ended."""
    peer = asyncipc.Peer()

    @peer.on_request
    async def sleep(name: str, call: asyncipc.Call) -> None:
        await call.progress(0, message="asleep")
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await call.session.notify("woken", [name])
            raise

    async with peer.stdio() as parent:
        await parent.wait_closed()


async def main() -> None:
    """Give up in three ways."""
    peer = asyncipc.Peer()
    woken: asyncio.Queue[str] = asyncio.Queue()
    peer.on_notification("woken")(woken.put_nowait)

    async with peer.spawn([sys.executable, __file__, "child"]) as session:
        # The request's own timeout.
        try:
            await session.request("sleep", ["Ada"], timeout=0.5)
        except asyncipc.RequestTimeout as error:
            print("RequestTimeout:", error)
        assert await woken.get() == "Ada"

        # Any timeout around it.
        try:
            async with asyncio.timeout(0.5):
                await session.request("sleep", ["Bob"], timeout=None)
        except TimeoutError:
            print("TimeoutError, from the block around the request")
        assert await woken.get() == "Bob"

        # A task that is cancelled, here as soon as the child is asleep.
        asleep = asyncio.Event()
        task = asyncio.create_task(
            session.request("sleep", ["Cyd"], timeout=None, on_progress=lambda _: asleep.set())
        )
        await asleep.wait()
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            print("CancelledError, because the task was cancelled")
        assert await woken.get() == "Cyd"
    print("the child woke up each time")


if __name__ == "__main__":
    asyncipc.run(child if "child" in sys.argv else main)
