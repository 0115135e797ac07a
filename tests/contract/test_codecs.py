"""What every codec promises, run over the library's own and over one such as a user may write."""

import ast
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncipc import JSON, Codec, MessagePack
from asyncipc.errors import DecodeError, EncodeError
from asyncipc.wire.attachments import Buffer
from asyncipc.wire.decoding import BrokenMessage, each_message

REQUEST, REPLY, CANCEL = 2, 3, 6


class Literals:
    """A user's codec: Python literals. Knows no attachments, and nothing beyond plain values."""

    name = "literals"
    leading = b"["

    def encode(self, message: list[Any], attachments: list[Buffer]) -> bytes:
        text = repr(message)
        try:
            if self._parse(text) == message:
                return text.encode()
        except (ValueError, SyntaxError) as error:
            raise EncodeError(f"message: {error}") from error
        raise EncodeError("message: not made of literals")

    def join(self, messages: list[bytes]) -> bytes:
        return b"[" + b", ".join(messages) + b"]"

    def decode(self, envelope: Buffer, attachments: Sequence[bytes] = ()) -> list[Any]:
        try:
            raw = self._parse(str(envelope, "utf-8"))
        except Exception as error:
            raise DecodeError(f"no literals: {error}") from error
        return each_message(raw)

    def _parse(self, text: str) -> Any:
        return ast.literal_eval(text)


pytestmark = pytest.mark.parametrize(
    "codec", [MessagePack(), JSON(), Literals()], ids=lambda codec: codec.name
)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
messages = st.one_of(
    st.tuples(st.just(REQUEST), st.integers(1, 2**63 - 1), st.text(), plain, st.floats(0, 1e9)),
    st.tuples(st.just(REPLY), st.integers(1, 2**63 - 1), plain),
    st.tuples(st.just(CANCEL), st.integers(1, 2**63 - 1)),
).map(list)


def exactly(value: Any) -> bytes:
    """A form in which values of different types are different (``1 == True == 1.0`` is not)."""
    return repr(value).encode()


def encoded(codec: Codec, message: list[Any]) -> bytes:
    attachments: list[Buffer] = []
    envelope = codec.encode(message, attachments)
    assert not attachments
    return envelope


def test_it_is_a_codec(codec: Codec) -> None:
    assert isinstance(codec, Codec)
    assert codec.name
    assert isinstance(codec.name, str)
    assert isinstance(codec.leading, bytes)


@given(message=messages)
def test_plain_messages_arrive_equal_and_of_the_same_types(
    codec: Codec, message: list[Any]
) -> None:
    envelope = encoded(codec, message)
    assert type(envelope) is bytes
    assert envelope[0] in codec.leading or not codec.leading
    assert exactly(codec.decode(envelope)) == exactly(message)


@given(batch=st.lists(messages, min_size=2, max_size=20))
def test_a_batch_holds_its_messages_in_order(codec: Codec, batch: list[list[Any]]) -> None:
    envelope = codec.join([encoded(codec, message) for message in batch])
    assert envelope[0] in codec.leading or not codec.leading
    decoded = codec.decode(envelope)
    assert exactly(decoded) == exactly(batch)
    assert isinstance(decoded[0], list)


@pytest.mark.parametrize("count", [2, 15, 16, 65536])
def test_a_batch_may_be_of_any_length(codec: Codec, count: int) -> None:
    batch = codec.join([encoded(codec, [CANCEL, 1])] * count)
    assert codec.decode(batch) == [[CANCEL, 1]] * count


@pytest.mark.parametrize("form", [bytes, bytearray, memoryview])
def test_an_envelope_may_be_any_buffer_and_is_not_kept(codec: Codec, form: Any) -> None:
    message = [REPLY, 1, {"text": "hello", "list": ["a", 1.5, None]}]
    memory = bytearray(b"..") + encoded(codec, message) + b".."
    decoded = codec.decode(form(memoryview(memory)[2:-2]))
    memory[:] = bytes(len(memory))
    assert decoded == message


def test_what_was_encoded_is_not_changed_by_encoding(codec: Codec) -> None:
    message = [REQUEST, 1, "m", {"a": [1, {"b": None}]}, None]
    before = pickle.dumps(message)
    encoded(codec, message)
    assert pickle.dumps(message) == before


@pytest.mark.parametrize("culprit", [lambda: None, object(), iter(())], ids=["lambda", "obj", "it"])
def test_what_cannot_be_sent_is_an_encode_error(codec: Codec, culprit: Any) -> None:
    attachments: list[Buffer] = []
    with pytest.raises(EncodeError):
        codec.encode([REQUEST, 1, "m", {"x": [bytes(100_000), culprit]}, None], attachments)
    assert not attachments
    assert codec.decode(encoded(codec, [CANCEL, 1])) == [CANCEL, 1]


def test_what_contains_itself_is_an_encode_error(codec: Codec) -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(EncodeError):
        codec.encode([REPLY, 1, circle], [])


def test_what_is_no_message_is_a_decode_error(codec: Codec) -> None:
    whole = encoded(codec, [CANCEL, 1])
    wrong: list[Any] = ["text", 5, None, {}, [], ["2", 1], [True, 1], [None], [1.0], [[]], [[[1]]]]
    envelopes = [encoded(codec, [CANCEL, value]) for value in wrong]
    # The value itself, out of the message that carries it; for a codec of one's own, by its repr.
    bare = {
        "msgpack": [envelope[2:] for envelope in envelopes],
        "json": [envelope[3:-1] for envelope in envelopes],
    }.get(codec.name, [repr(value).encode() for value in wrong])
    for envelope in [
        *bare,
        b"",
        whole[:-1],
        whole + b"[",
        b"\xff\xfe",
        codec.join([whole, bare[0]]),
    ]:
        with pytest.raises(DecodeError):
            codec.decode(envelope)


@settings(max_examples=150)
@given(data=st.data())
def test_damaged_envelopes_are_decode_errors_or_messages(codec: Codec, data: st.DataObject) -> None:
    envelope = bytearray(encoded(codec, data.draw(messages)))
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(envelope) - 1))
        envelope[position] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(envelope)))
    for damaged in (envelope, envelope[:cut]):
        try:
            decoded = codec.decode(bytes(damaged))
        except DecodeError:
            continue
        assert isinstance(decoded, list)
        for message in decoded if isinstance(decoded[0], list) else [decoded]:
            assert type(message[0]) is int
            assert type(message) in (list, BrokenMessage)
