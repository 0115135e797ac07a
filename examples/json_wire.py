"""JSON on the wire: what crosses can be read along.

The child is started in the middle of a shell pipeline, so that `tee` keeps a copy of all that
goes in and out. Over stdio such a thing can be put between any parent and child.
"""

import json
import shlex
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import asyncipc

peer = asyncipc.Peer(codec="json")


@peer.on_request
def greet(name: str, times: int = 1) -> str:
    """Greet somebody."""
    return f"hello {name}" * times


async def child() -> None:
    """Serve the parent."""
    async with peer.stdio() as parent:
        await parent.wait_closed()


def frames(stream: bytes) -> Iterator[bytes]:
    """What the frames in a stream hold. Their layout is told in docs/protocol.md."""
    while stream:
        _magic, size, attached = struct.unpack_from(">4sII", stream)
        yield stream[12 : 12 + size]
        stream = stream[12 + size + attached :]


def spoken(path: Path) -> list[Any]:
    """The messages in JSON; the hello in front, which settles that it is JSON, is none."""
    return [json.loads(frame) for frame in frames(path.read_bytes()) if frame.startswith(b"[")]


async def main() -> None:
    """Call the child, and look at what was said."""
    with TemporaryDirectory() as folder:
        to_child, from_child = Path(folder, "to_child"), Path(folder, "from_child")
        commands = (
            ["tee", str(to_child)],
            [sys.executable, __file__, "child"],
            ["tee", str(from_child)],
        )
        pipeline = " | ".join(map(shlex.join, commands))
        async with peer.spawn(["sh", "-c", pipeline]) as session:
            answer = await session.request("greet", {"name": "Zoë"})
        request, reply = spoken(to_child)[0], spoken(from_child)[0]
    print("parent:", json.dumps(request, ensure_ascii=False))
    print("child: ", json.dumps(reply, ensure_ascii=False))
    assert request[2:4] == ["greet", {"name": "Zoë"}]
    assert answer == reply[2] == "hello Zoë"


if __name__ == "__main__":
    asyncipc.run(child if "child" in sys.argv else main)
