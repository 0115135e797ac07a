"""What a peer is made with: wrong options are errors where they are written."""

import itertools
import ssl
from typing import Any

import pytest

from asyncipc import JSON, AddressError, Call, MessagePack, Peer, Timeouts, memory_pair


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"codec": "xml"}, ValueError, "codec must be one of msgpack, json or a Codec, not 'xml'"),
        ({"codec": None}, TypeError, "codec must be one of msgpack, json or an object with the "),
        ({"codec": 5}, TypeError, "with the methods of Codec, not 5"),
        ({"codec": JSON}, TypeError, "with the methods of Codec, not <class"),
        ({"limits": 5}, TypeError, "limits must be a Limits, not 5"),
        ({"limits": Timeouts()}, TypeError, "limits must be a Limits, not Timeouts"),
        ({"timeouts": 5}, TypeError, "timeouts must be a Timeouts, not 5"),
        ({"tracebacks": "yes"}, TypeError, "tracebacks must be a bool, not 'yes'"),
        ({"request_ids": 1}, TypeError, "request_ids must be an iterator or a function, not 1"),
        ({"request_ids": [1, 2]}, TypeError, "request_ids must be an iterator or a function"),
        ({"timeout": -1}, ValueError, "timeout must not be negative"),
        ({"timeout": "30"}, TypeError, "timeout must be seconds or None"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Peer(**options)


SERVER, CLIENT = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@pytest.mark.parametrize(
    ("address", "options", "error", "text"),
    [
        ("tcp:localhost:0", {"tls": True}, TypeError, "tls must be an ssl.SSLContext, not True"),
        ("tcp:localhost:0", {"tls": CLIENT}, ValueError, "tls must be a server-side context, not"),
        ("tcp:localhost:0", {"insecure": "no"}, TypeError, "insecure must be a bool, not 'no'"),
        ("unix:@asyncipc-test", {"mode": 0o600}, AddressError, "unix:@asyncipc-test has none"),
    ],
)
async def test_wrong_options_to_listen_with(
    address: str, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        Peer().serve(address, **options)


@pytest.mark.parametrize(
    ("address", "options", "error", "text"),
    [
        ("tcp:localhost:1", {"tls": True}, TypeError, "tls must be an ssl.SSLContext, not True"),
        ("tcp:localhost:1", {"tls": SERVER}, ValueError, "tls must be a client-side context, not"),
        ("exec:true", {"retry_for": 1}, AddressError, "retry_for= is for who may listen later"),
        ("fd:5", {"retry_for": 1}, AddressError, "retry_for= is for who may listen later"),
    ],
)
async def test_wrong_options_to_connect_with(
    address: str, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        Peer().connect(address, **options)


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
