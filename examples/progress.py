"""A request whose progress is shown as a bar, or as lines where the output is no terminal."""

import sys
from time import sleep

import asyncipc

peer = asyncipc.Peer()


@peer.on_request(thread=True)
def bake(loaves: int, call: asyncipc.Call) -> str:
    """Work for a while, in a thread, and tell the caller how far it is."""
    for done in range(1, loaves + 1):
        sleep(0.02)  # the work
        call.report(done, total=loaves, message=f"loaf {done}")
    return f"{loaves} loaves"


async def child() -> None:
    """Serve the parent."""
    async with peer.stdio() as parent:
        await parent.wait_closed()


def show(progress: asyncipc.Progress) -> None:
    """Draw the bar."""
    fraction = progress.fraction or 0
    bar = f"[{'#' * int(fraction * 40):.<40}] {fraction:4.0%}  {progress.message}"
    print(f"\r{bar:60}" if sys.stdout.isatty() else bar, end="", flush=True)
    if fraction == 1 or not sys.stdout.isatty():
        print()


async def main() -> None:
    """Ask for something that takes a while."""
    seen: list[float] = []

    def on_progress(progress: asyncipc.Progress) -> None:
        seen.append(progress.done)
        show(progress)

    async with peer.spawn([sys.executable, __file__, "child"]) as session:
        result = await session.request("bake", {"loaves": 20}, on_progress=on_progress)
    print(result)
    assert result == "20 loaves"
    assert seen == list(range(1, 21))  # in order, and all before the result


if __name__ == "__main__":
    asyncipc.run(child if "child" in sys.argv else main)
