"""Hello and authentication: who gets a session, with what, and what everybody else is told."""

import hashlib
import hmac
import os
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncipc.config import Limits
from asyncipc.errors import AuthenticationError, IPCError, RemoteProtocolError, SessionClosed
from asyncipc.wire.handshake import (
    HANDSHAKE_MAX_FRAME,
    Handshake,
    HandshakeRejected,
    RemoteLimits,
    Role,
    encode_goodbye,
)
from asyncipc.wire.messages import GoodbyeCode

HELLO, AUTH, GOODBYE = 0, 1, 12
CONNECTING, LISTENING, EITHER = Role.CONNECTING, Role.LISTENING, Role.EITHER

LIMITS = Limits(
    max_frame=20_000,
    max_message=30_000,
    max_requests=7,
    notification_credit=40_000,
    stream_credit=50_000,
)
SMALLEST = RemoteLimits(
    max_frame=16384,
    max_message=16384,
    max_requests=1,
    notification_credit=16384,
    stream_credit=16384,
)


def side(
    role: Role,
    *,
    codec: str = "msgpack",
    codecs: tuple[str, ...] = ("msgpack", "json"),
    token: bytes | None = None,
    limits: Limits = LIMITS,
) -> Handshake:
    return Handshake(
        role, codec=codec, codecs=codecs, limits=limits, instance=os.urandom(16), token=token
    )


def meet(first: Handshake, second: Handshake) -> None:
    """Carry envelopes to and fro until nothing is left to say."""
    to_second, to_first = first.start(), second.start()
    while to_second or to_first:
        if to_second:
            to_first += second.receive(to_second.pop(0))
        if to_first:
            to_second += first.receive(to_first.pop(0))


def hello(**changes: Any) -> bytes:
    """A hello that is right but for the changes; None leaves a field out."""
    parameters: dict[str, Any] = {
        "versions": [1, 1],
        "instance": bytes(16),
        "codec": "msgpack",
        "features": [],
        "limits": {"max_frame": 65536},
    }
    parameters |= changes
    return packed([HELLO, {name: value for name, value in parameters.items() if value is not None}])


def packed(message: Any) -> bytes:
    data: bytes = msgpack.packb(message)
    return data


def parameters_of(envelope: bytes) -> dict[str, Any]:
    kind, parameters = msgpack.unpackb(envelope)
    assert kind == HELLO
    assert isinstance(parameters, dict)
    return parameters


def agreed(handshake: Handshake) -> Any:
    assert handshake.agreement is not None
    return handshake.agreement


@pytest.mark.parametrize("codec", ["msgpack", "json"])
@pytest.mark.parametrize("token", [None, b"secret"])
def test_two_sides_come_to_an_agreement(codec: str, token: bytes | None) -> None:
    connecting = side(CONNECTING, codec=codec, token=token)
    listening = side(LISTENING, token=token, limits=Limits())
    meet(connecting, listening)
    ours, theirs = agreed(connecting), agreed(listening)
    assert (ours.version, ours.codec, ours.features) == (1, codec, frozenset())
    assert (theirs.version, theirs.codec, theirs.features) == (1, codec, frozenset())
    assert ours.limits == RemoteLimits(1024 * 1024, 1024**3, 1024, 1024 * 1024, 256 * 1024)
    assert theirs.limits == RemoteLimits(20_000, 30_000, 7, 40_000, 50_000)


def test_the_listening_side_waits_for_the_other() -> None:
    assert side(LISTENING).start() == []
    assert len(side(CONNECTING).start()) == len(side(EITHER).start()) == 1


@pytest.mark.parametrize("_", range(8))
def test_two_that_speak_at_once_take_the_codec_of_the_larger_instance(_: int) -> None:
    first, second = side(EITHER, codec="json"), side(EITHER, codec="msgpack")
    [from_first], [from_second] = first.start(), second.start()
    assert first.receive(from_second) == second.receive(from_first) == []
    larger = max(map(parameters_of, (from_first, from_second)), key=lambda hello: hello["instance"])
    assert agreed(first).codec == agreed(second).codec == larger["codec"]


@pytest.mark.parametrize("other", [CONNECTING, LISTENING])
def test_one_that_may_be_either_meets_any(other: Role) -> None:
    first, second = side(EITHER, codec="json"), side(other, codec="json")
    meet(first, second)
    assert agreed(first).codec == agreed(second).codec == "json"


def test_what_a_hello_leaves_out_means_the_smallest() -> None:
    listening = side(LISTENING)
    [answer] = listening.receive(hello(limits=None, features=None))
    assert agreed(listening).limits == SMALLEST
    assert parameters_of(answer)["codec"] == "msgpack"


def test_what_a_later_version_may_add_is_ignored() -> None:
    listening = side(LISTENING)
    listening.receive(
        msgpack.packb(
            [
                HELLO,
                {
                    **parameters_of(hello()),
                    "versions": [1, 9],
                    "features": ["streams", 7, None],
                    "limits": {"max_frame": 2**40, "max_wishes": 3},
                    "comment": "x",
                    5: [],
                },
                "another field",
            ]
        )
    )
    agreement = agreed(listening)
    assert agreement.version == 1
    assert agreement.features == {"streams"}
    assert agreement.limits.max_frame == 2**40


@pytest.mark.parametrize(
    ("versions", "agreed_on"),
    [([1, 1], 1), ([0, 1], 1), ([1, 5], 1), ([-3, 2], 1), ([2, 3], None), ([0, 0], None)],
)
def test_ranges_of_versions_meet_or_do_not(versions: list[int], agreed_on: int | None) -> None:
    listening = side(LISTENING)
    if agreed_on is not None:
        listening.receive(hello(versions=versions))
        assert agreed(listening).version == agreed_on
        return
    lowest, highest = versions
    with pytest.raises(
        HandshakeRejected, match=f"versions {lowest} to {highest} of the protocol, this side 1 to 1"
    ) as caught:
        listening.receive(hello(versions=versions))
    assert caught.value.code is GoodbyeCode.UNSUPPORTED


def test_an_echo_is_recognised() -> None:
    for role in (CONNECTING, EITHER):
        connecting = side(role)
        [said] = connecting.start()
        with pytest.raises(HandshakeRejected, match="echoes what it is sent"):
            connecting.receive(said)


def test_a_codec_that_is_not_spoken_is_refused() -> None:
    with pytest.raises(HandshakeRejected, match="the codec 'pickle'; this side speaks json, msgp"):
        side(LISTENING).receive(hello(codec="pickle"))


def test_the_listening_side_may_not_choose_another_codec() -> None:
    connecting = side(CONNECTING)
    connecting.start()
    with pytest.raises(HandshakeRejected, match=r"asked for the codec 'msgpack'.*answered 'json'"):
        connecting.receive(hello(codec="json"))


# Authentication


def test_the_proof_is_what_the_page_says() -> None:
    connecting, listening = side(CONNECTING, token=b"secret"), side(LISTENING, token=b"secret")
    [first_hello] = connecting.start()
    [second_hello] = listening.receive(first_hello)
    assert parameters_of(second_hello)["auth"] == ["hmac-sha256"]
    assert "auth" not in parameters_of(first_hello)
    [proof] = connecting.receive(second_hello)
    hashes = hashlib.sha256(first_hello).digest() + hashlib.sha256(second_hello).digest()
    assert msgpack.unpackb(proof) == [
        AUTH,
        hmac.digest(b"secret", b"asyncipc connecting " + hashes, "sha256"),
    ]
    assert listening.agreement is None
    [answer] = listening.receive(proof)
    assert msgpack.unpackb(answer) == [
        AUTH,
        hmac.digest(b"secret", b"asyncipc listening " + hashes, "sha256"),
    ]
    assert agreed(listening)
    assert connecting.agreement is None
    assert connecting.receive(answer) == []
    assert agreed(connecting)


def test_nothing_that_is_sent_holds_the_token() -> None:
    token = b"a token of some length"
    connecting, listening = side(CONNECTING, token=token), side(LISTENING, token=token)
    first = connecting.start()
    second = listening.receive(first[0])
    proof = connecting.receive(second[0])
    assert not any(
        token in sent for sent in (*first, *second, *proof, *listening.receive(proof[0]))
    )


def test_a_wrong_token_is_noticed_by_the_listening_side() -> None:
    with pytest.raises(AuthenticationError, match="does not know the token") as caught:
        meet(side(CONNECTING, token=b"wrong"), side(LISTENING, token=b"right"))
    assert "right" not in str(caught.value)


def test_a_listening_side_that_takes_any_proof_is_noticed() -> None:
    connecting = side(CONNECTING, token=b"right")
    connecting.start()
    connecting.receive(hello(auth=["hmac-sha256"]))
    with pytest.raises(AuthenticationError, match="does not know the token"):
        connecting.receive(packed([AUTH, bytes(32)]))


def test_a_proof_that_comes_back_proves_nothing() -> None:
    connecting = side(CONNECTING, token=b"right")
    connecting.start()
    [proof] = connecting.receive(hello(auth=["hmac-sha256"]))
    with pytest.raises(AuthenticationError):
        connecting.receive(proof)


def test_a_proof_is_good_for_one_session() -> None:
    first, second = side(LISTENING, token=b"right"), side(LISTENING, token=b"right")
    connecting = side(CONNECTING, token=b"right")
    [said] = connecting.start()
    [challenge] = first.receive(said)
    second.receive(said)
    [proof] = connecting.receive(challenge)
    with pytest.raises(AuthenticationError):
        second.receive(proof)
    first.receive(proof)
    assert agreed(first)


def test_who_has_a_token_insists_on_being_asked() -> None:
    with pytest.raises(AuthenticationError, match="the other side asks for none"):
        meet(side(CONNECTING, token=b"secret"), side(LISTENING))


def test_who_has_no_token_is_told_to_give_one() -> None:
    with pytest.raises(AuthenticationError, match="give token="):
        meet(side(CONNECTING), side(LISTENING, token=b"secret"))


def test_another_way_to_authenticate_is_named() -> None:
    connecting = side(CONNECTING, token=b"secret")
    connecting.start()
    with pytest.raises(AuthenticationError, match="asks for 'kerberos', 7; this side can do hmac"):
        connecting.receive(hello(auth=["kerberos", 7]))


# What may not come


@pytest.mark.parametrize(
    ("envelope", "text"),
    [
        (b"", "something else than a hello"),
        (b"\x05", "something else than a hello"),
        (b"\x90", "something else than a hello"),
        (b"\x91\x00", "left out the parameters of its hello"),
        (b"\x92\x00\x80\x00", "something else than a hello"),
        (b"\x92\x00", "something else than a hello"),
        (b"\x91\xc1", "something else than a hello"),
        (b"\x91\x81\x90\x00", "something else than a hello"),
        (b"\x91\xa1\xff", "something else than a hello"),
        (b"\x91\xdd\xff\xff\xff\xff", "something else than a hello"),
        (b"[2, 2, 'json']", "something else than a hello"),
        (packed([False, {}]), "something else than a hello"),
        (packed([0.0, {}]), "something else than a hello"),
        (packed(["hello", {}]), "something else than a hello"),
        (packed([[HELLO, {}]]), "something else than a hello"),
        (
            packed([HELLO, []]),
            "the parameters of the other side's hello should be a map, not <list of 0",
        ),
        (packed([HELLO, {}]), "the hello's instance should be bytes, not None"),
        (packed([2, 2, "add", [1, 2]]), "kind 2 before the session stood"),
        (packed([2**63, 2]), "kind 9223372036854775808 before the session stood"),
        (packed([AUTH, bytes(32)]), "kind 1 before the session stood"),
        (packed([AUTH, "text"]), "the proof of the other side's auth should be binary, not 'text'"),
        (packed([GOODBYE, 0]), "left out the code of its goodbye"),
        (hello(instance="text" * 4), "instance should be bytes, not 'texttexttexttext'"),
        (hello(instance=bytes(15)), "instance has 15 bytes instead of 16"),
        (hello(versions=None), "versions should be list, not None"),
        (hello(versions=[1]), r"versions should be \[lowest, highest\], not <list of 1"),
        (hello(versions=[1, True]), r"versions should be \[lowest, highest\]"),
        (hello(versions=[1, 1.0]), r"versions should be \[lowest, highest\]"),
        (hello(codec=7), "codec should be str, not 7"),
        (hello(features="all"), "features should be list, not 'all'"),
        (hello(limits=[]), "limits should be dict, not <list of 0"),
        (hello(limits={"max_frame": 16383}), "limit max_frame should be an integer from 16384"),
        (hello(limits={"max_requests": 0}), "limit max_requests should be an integer from 1"),
        (hello(limits={"max_requests": True}), "limit max_requests should be an integer from 1"),
        (hello(limits={"max_message": 1e9}), "limit max_message should be an integer from 16384"),
        (hello(limits={"notification_credit": None}), "limit notification_credit should be an"),
    ],
)
@pytest.mark.parametrize("role", [LISTENING, CONNECTING, EITHER])
def test_a_bad_hello_is_refused_and_described(envelope: bytes, text: str, role: Role) -> None:
    handshake = side(role)
    handshake.start()
    with pytest.raises(RemoteProtocolError, match=text):
        handshake.receive(envelope)
    assert handshake.agreement is None


def test_a_second_hello_is_refused() -> None:
    listening = side(LISTENING, token=b"secret")
    listening.receive(hello())
    assert listening.heard
    with pytest.raises(HandshakeRejected, match="kind 0 before the session stood"):
        listening.receive(hello())


def test_a_request_instead_of_a_proof_is_refused() -> None:
    listening = side(LISTENING, token=b"secret")
    listening.receive(hello())
    with pytest.raises(HandshakeRejected, match="kind 2 before the session stood"):
        listening.receive(packed([2, 2, "add", [1, 2]]))
    assert listening.agreement is None


def test_a_proof_nobody_asked_for_is_refused() -> None:
    connecting = side(CONNECTING)
    connecting.start()
    with pytest.raises(HandshakeRejected, match="kind 1 before the session stood"):
        connecting.receive(packed([AUTH, bytes(32)]))


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (GoodbyeCode.NORMAL, SessionClosed),
        (GoodbyeCode.PROTOCOL_ERROR, RemoteProtocolError),
        (GoodbyeCode.UNSUPPORTED, RemoteProtocolError),
        (GoodbyeCode.AUTHENTICATION, AuthenticationError),
        (GoodbyeCode.OVERLOADED, SessionClosed),
    ],
)
def test_a_goodbye_says_why_there_will_be_no_session(
    code: GoodbyeCode, error: type[IPCError]
) -> None:
    connecting = side(CONNECTING)
    connecting.start()
    with pytest.raises(error, match="refused the session: not today"):
        connecting.receive(encode_goodbye(code, "not today"))
    with pytest.raises(RemoteProtocolError, match="refused the session: later"):
        side(LISTENING).receive(packed([GOODBYE, 0, 99, "later"]))


def test_no_class_is_looked_for_in_a_hello() -> None:
    """An extension value (here an Enum's code) stays what it is, and is then of a wrong type."""
    enum = msgpack.ExtType(80, packed(["asyncipc.wire.messages.GoodbyeCode", "NORMAL"]))
    with pytest.raises(RemoteProtocolError, match="codec should be str, not <ExtType>"):
        side(LISTENING).receive(hello(codec=enum))


def test_nothing_is_allocated_because_it_was_announced() -> None:
    """Arrays inside of arrays, each of which says that it has as many items as there are bytes."""
    envelope = b"\x91" + b"\xdd\x00\x00\x3f\xf0" * 1000
    envelope += bytes(HANDSHAKE_MAX_FRAME - len(envelope))
    tracemalloc.start()
    try:
        with pytest.raises(HandshakeRejected):
            side(LISTENING).receive(envelope)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1024 * 1024


scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5)
values = st.recursive(
    scalars | st.floats() | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(scalars, inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(["versions", "instance", "codec", "features", "limits", "auth"])


@given(
    st.binary(max_size=60)
    | st.lists(values, max_size=4).map(packed)
    | st.builds(lambda kind, *fields: packed([kind, *fields]), st.sampled_from([0, 1, 12]), values)
    | st.dictionaries(names, values, max_size=3).map(lambda changes: hello(**changes)),
    st.sampled_from(Role),
    st.sampled_from([None, b"secret"]),
)
def test_whatever_comes_only_documented_errors_come_of_it(
    envelope: bytes, role: Role, token: bytes | None
) -> None:
    handshake = side(role, token=token)
    handshake.start()
    text = ""
    try:
        handshake.receive(envelope)
        handshake.receive(envelope)
    except (RemoteProtocolError, AuthenticationError, SessionClosed) as error:
        text = str(error)
    assert len(text) < 400
