"""The child of hello.py: adds. Runs until its parent has had enough of it, or is gone."""

import asyncipc

peer = asyncipc.Peer()


@peer.on_request
def add(a: int, b: int) -> int:
    """Add two numbers."""
    print("this goes to stderr and harms nobody")
    return a + b


async def main() -> None:
    """Serve the parent."""
    async with peer.stdio() as parent:
        await parent.wait_closed()


if __name__ == "__main__":
    asyncipc.run(main)
