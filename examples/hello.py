"""Parent and child: the parent asks, the child (hello_child.py) answers."""

import sys
from pathlib import Path

import asyncipc

CHILD = Path(__file__).with_name("hello_child.py")


async def main() -> None:
    """Start the child, ask it, and see it off."""
    async with asyncipc.Peer().spawn([sys.executable, CHILD]) as child:
        total = await child.request("add", {"a": 1, "b": 2}, timeout=5)
        print(f"the child says that 1 + 2 = {total}")
        assert total == 3


if __name__ == "__main__":
    asyncipc.run(main)
