"""What a peer is made with: wrong options are errors where they are written."""

import itertools
from typing import Any

import pytest

from asyncipc import JSON, Call, MessagePack, Peer, memory_pair


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"codec": "xml"}, ValueError, "codec must be one of msgpack, json or a Codec, not 'xml'"),
        ({"request_ids": 1}, TypeError, "request_ids must be an iterator or a function, not 1"),
        ({"request_ids": [1, 2]}, TypeError, "request_ids must be an iterator or a function"),
        ({"timeout": -1}, ValueError, "timeout must not be negative"),
        ({"timeout": "30"}, TypeError, "timeout must be seconds or None"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Peer(**options)


@pytest.mark.parametrize("codec", ["msgpack", "json", MessagePack(), JSON()])
async def test_the_codec_of_the_connecting_side(codec: Any, peer: Peer) -> None:
    async with memory_pair(Peer(codec=codec), peer) as (session, _):
        value = {"text": "hello", "numbers": [1, 2.5, None], "bytes": b"\0\xff"}
        assert await session.request("echo", [value]) == value


@pytest.mark.parametrize("make", [lambda: itertools.count(7), lambda: iter([7]), lambda: lambda: 7])
async def test_request_ids(make: Any) -> None:
    server = Peer()
    server.on_request("id")(of_call)
    async with memory_pair(Peer(request_ids=make()), server) as (session, _):
        assert await session.request("id") == 7


def of_call(call: Call) -> Any:
    return call.metadata["request_id"]
