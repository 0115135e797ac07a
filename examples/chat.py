"""A chat: each guest has a channel to the room, in which both sides speak when they like.

The room's handler sends each message on to all channels. A guest who has nothing more to say
closes its direction, and listens until the room has closed the other.
"""

import asyncipc


class Room:
    """Where what one guest says is sent to all."""

    def __init__(self) -> None:
        self._channels: dict[asyncipc.Channel, str] = {}

    async def join(self, name: str, call: asyncipc.Call) -> None:
        """Serve one guest, for as long as it speaks."""
        channel = call.channel()
        self._channels[channel] = name
        try:
            await self._tell(f"{name} comes in")
            async for text in channel:
                await self._tell(f"{name}: {text}")
        finally:
            del self._channels[channel]
        await channel.send("goodbye")
        await self._tell(f"{name} leaves")

    async def _tell(self, text: str) -> None:
        for channel in list(self._channels):
            await channel.send(text)


async def main() -> None:
    """Two guests in a room."""
    room = asyncipc.Peer()
    room.on_request("join")(Room().join)
    async with (
        asyncipc.memory_pair(asyncipc.Peer(), room) as (ada, _),
        asyncipc.memory_pair(asyncipc.Peer(), room) as (bob, _),
        ada.channel("join", {"name": "Ada"}) as from_ada,
    ):
        assert await from_ada.receive() == "Ada comes in"
        async with bob.channel("join", ["Bob"]) as from_bob:
            await from_bob.send("hello")
            await from_bob.send_eof()
            bob_heard = [text async for text in from_bob]
        await from_ada.send("anybody there?")
        await from_ada.send_eof()
        ada_heard = [text async for text in from_ada]
    print("Bob heard:", ", ".join(bob_heard))
    print("Ada heard:", ", ".join(ada_heard))
    assert bob_heard == ["Bob comes in", "Bob: hello", "goodbye"]
    assert ada_heard == [
        "Bob comes in",
        "Bob: hello",
        "Bob leaves",
        "Ada: anybody there?",
        "goodbye",
    ]


if __name__ == "__main__":
    asyncipc.run(main)
