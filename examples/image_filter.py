"""A filter for images in a process of its own: frames go there and back through shared memory.

Both ways a frame is copied once, into the sender's arena; the other side works on the very memory,
and what it writes there is its own. With `asyncipc.shared_array` not even that copy is made.
"""

import sys
from time import perf_counter
from typing import Any

import numpy

import asyncipc

WIDTH, HEIGHT, FRAMES = 1280, 720, 60

peer = asyncipc.Peer()


@peer.on_request("brighten")
def brighten(image: Any, by: int) -> Any:
    """In the child: arrays arrive writable, and changing one changes nobody else's."""
    numpy.minimum(image, 255 - by, out=image)
    image += by
    return image


async def child() -> None:
    """Serve the parent."""
    async with peer.stdio() as parent:
        await parent.wait_closed()


def camera(number: int) -> Any:
    """A frame of a moving pattern."""
    x = numpy.arange(WIDTH, dtype=numpy.uint16) + 7 * number
    y = numpy.arange(HEIGHT, dtype=numpy.uint16)[:, None]
    pattern = ((x ^ y) & 255).astype(numpy.uint8)
    return numpy.stack([pattern, pattern[::-1], pattern[:, ::-1]], axis=-1)


async def main() -> None:
    """Send frames through the filter, and count them."""
    command = [sys.executable, __file__, "child"]
    images = [camera(number) for number in range(8)]
    async with peer.spawn(command, channel="socketpair") as session:
        begin = perf_counter()
        for number in range(FRAMES):
            image = images[number % len(images)]
            brighter = await session.request("brighten", [image, 40])
            if sys.stdout.isatty():
                rate = (number + 1) / (perf_counter() - begin)
                print(f"\rframe {number + 1}, {rate:.0f} a second", end="", flush=True)
        rate = FRAMES / (perf_counter() - begin)
        counters = session.statistics()
        last = images[(FRAMES - 1) % len(images)]
        assert numpy.array_equal(brighter, numpy.minimum(last, 215) + 40)
        assert counters.shared_bytes_sent == counters.shared_bytes_received
        assert counters.shared_bytes_sent == FRAMES * last.nbytes
    print("\r" if sys.stdout.isatty() else "", end="")
    print(f"{FRAMES} frames of {last.nbytes / 1e6:.1f} MB, {rate:.0f} a second")


if __name__ == "__main__":
    asyncipc.run(child if "child" in sys.argv else main)
