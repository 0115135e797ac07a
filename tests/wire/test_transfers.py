"""Transfers: what is cut into parts comes together again, and no announcement is believed."""

import random
import tracemalloc
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncipc.errors import FrameTooLarge, RemoteProtocolError
from asyncipc.wire.transfers import LARGE_SEGMENT, MAX_SEGMENTS, MAX_TRANSFERS, Assembler, Outgoing

MAX_MESSAGE = 10_000


def parts_of(outgoing: Outgoing, limit: int) -> list[bytes]:
    """All parts, each in one piece."""
    parts = []
    while not outgoing.finished:
        pieces = outgoing.next_part(limit)
        size = sum(map(len, pieces))
        assert 0 < size <= limit
        parts.append(b"".join(pieces))
    assert outgoing.next_part(limit) == []
    return parts


def receive(assembler: Assembler, data: bytes, step: int = 1 << 30) -> list[bytes] | None:
    """Attached bytes come in chunks of ``step``; the message may be complete at the last."""
    assembler.expect(len(data))
    complete = None
    for start in range(0, len(data), step):
        assert complete is None
        complete = assembler.feed(memoryview(data)[start : start + step])
    return complete


segments = st.lists(st.binary(max_size=300), max_size=5).flatmap(
    lambda attached: st.binary(min_size=1, max_size=300).map(lambda first: [first, *attached])
)


@given(segments, st.integers(1, 400), st.integers(1, 200))
def test_a_message_comes_as_it_went(message: list[bytes], part_size: int, step: int) -> None:
    outgoing = Outgoing(message)
    assert outgoing.lengths == list(map(len, message))
    assert outgoing.size == sum(outgoing.lengths)
    first, *others = parts_of(outgoing, part_size)
    assert outgoing.taken == outgoing.size
    assembler = Assembler(MAX_MESSAGE)
    assembler.begin(7, outgoing.lengths)
    complete = receive(assembler, first, step)
    for part in others:
        assert complete is None
        assembler.part(7)
        complete = receive(assembler, part, step)
    assert complete == message
    assert len(assembler) == 0


@given(st.lists(segments, min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_transfers_may_take_turns(messages: list[list[bytes]], generator: random.Random) -> None:
    waiting = {number: Outgoing(message) for number, message in enumerate(messages, 1)}
    assembler = Assembler(MAX_MESSAGE)
    came: dict[int, Sequence[bytes]] = {}
    begun = set()
    while waiting:
        number = generator.choice(sorted(waiting))
        if number in begun:
            assembler.part(number)
        else:
            assembler.begin(number, waiting[number].lengths)
            begun.add(number)
        complete = receive(assembler, b"".join(waiting[number].next_part(37)))
        assert (complete is not None) == waiting[number].finished
        if complete is not None:
            came[number] = complete
            del waiting[number]
    assert [came[number] for number in sorted(came)] == messages
    assert len(assembler) == 0


def test_parts_are_not_copied() -> None:
    buffer = bytearray(b"abcdef")
    outgoing = Outgoing([b"x", buffer])
    [first, second] = outgoing.next_part(4)
    assert (bytes(first), bytes(second)) == (b"x", b"abc")
    assert second.obj is buffer


def test_an_empty_part_is_no_part_and_no_end() -> None:
    assembler = Assembler(MAX_MESSAGE)
    assembler.begin(1, [3, 0])
    assembler.expect(0)
    assembler.part(1)
    assembler.expect(0)
    assembler.part(1)
    assert receive(assembler, b"abc") == [b"abc", b""]


@pytest.mark.parametrize("lengths", [[MAX_MESSAGE + 1], [1, MAX_MESSAGE], [1, 2**62, 2**62]])
def test_a_message_beyond_the_limit_is_refused_by_name(lengths: list[int]) -> None:
    assembler = Assembler(MAX_MESSAGE)
    with pytest.raises(FrameTooLarge, match=r"Limits\.max_message is 10000"):
        assembler.begin(1, lengths)
    assert len(assembler) == 0


@pytest.mark.parametrize("lengths", [[0], [0, 5], [1] * (MAX_SEGMENTS + 1)])
def test_a_message_that_cannot_be_is_refused(lengths: list[int]) -> None:
    with pytest.raises(RemoteProtocolError, match="empty message or over 1025 segments"):
        Assembler(MAX_MESSAGE).begin(1, lengths)


def test_the_most_segments_come() -> None:
    assembler = Assembler(MAX_MESSAGE)
    assembler.begin(1, [1] * MAX_SEGMENTS)
    assert receive(assembler, b"x" * MAX_SEGMENTS) == [b"x"] * MAX_SEGMENTS


def test_unfinished_messages_together_keep_the_limit() -> None:
    assembler = Assembler(MAX_MESSAGE)
    assembler.begin(1, [MAX_MESSAGE - 10])
    assembler.begin(2, [10])
    with pytest.raises(RemoteProtocolError, match="beside 2 unfinished ones of 10000"):
        assembler.begin(3, [1])
    assembler.retract(2)
    assembler.begin(3, [10])
    assert receive(assembler, bytes(10)) == [bytes(10)]
    assembler.begin(4, [10])


def test_only_so_many_may_be_unfinished() -> None:
    assembler = Assembler(MAX_MESSAGE)
    for number in range(MAX_TRANSFERS):
        assembler.begin(number + 1, [2])
    with pytest.raises(RemoteProtocolError, match="at most 64"):
        assembler.begin(1000, [2])
    assembler.part(1)
    assert receive(assembler, b"ab") == [b"ab"]
    assembler.begin(1000, [2])


def test_a_number_is_taken_until_its_transfer_ends() -> None:
    assembler = Assembler(MAX_MESSAGE)
    assembler.begin(1, [2])
    with pytest.raises(RemoteProtocolError, match="began transfer 1 twice"):
        assembler.begin(1, [2])
    assembler.part(1)
    assert receive(assembler, b"ab") == [b"ab"]
    with pytest.raises(RemoteProtocolError, match="transfer 1, which it had not begun"):
        assembler.part(1)


def test_a_part_of_nothing_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="transfer 5, which it had not begun"):
        Assembler(MAX_MESSAGE).part(5)


def test_a_retracted_transfer_is_forgotten() -> None:
    assembler = Assembler(MAX_MESSAGE)
    assembler.retract(3)  # nobody began it: it may have ended just now
    assembler.begin(3, [5])
    assert receive(assembler, b"ab") is None
    assembler.retract(3)
    assert len(assembler) == 0
    with pytest.raises(RemoteProtocolError, match="had not begun"):
        assembler.part(3)


@pytest.mark.parametrize("surplus", [1, 1000])
def test_more_than_announced_is_refused_before_it_is_taken(surplus: int) -> None:
    assembler = Assembler(MAX_MESSAGE)
    assembler.begin(1, [5, 5])
    assert receive(assembler, b"abcd") is None
    assembler.part(1)
    with pytest.raises(RemoteProtocolError, match="of which 6 were missing"):
        assembler.expect(6 + surplus)
    assembler.expect(6)


def test_bytes_without_a_transfer_are_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="of which 0 were missing"):
        Assembler(MAX_MESSAGE).expect(1)


def test_nothing_is_allocated_because_it_was_announced() -> None:
    assembler = Assembler(2**48)
    tracemalloc.start()
    try:
        assembler.begin(1, [2**47, 2**47])
        assert receive(assembler, bytes(1024)) is None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1024 * 1024


def test_a_part_may_end_where_a_large_segment_begins() -> None:
    large = b"x" * (2 * LARGE_SEGMENT)
    assembler = Assembler(10 * LARGE_SEGMENT)
    assembler.begin(1, [5, len(large)])
    assembler.expect(5)
    assert assembler.feed(memoryview(b"first")) is None
    assembler.part(1)
    assembler.expect(len(large))
    assert assembler.feed(memoryview(large)) == [b"first", large]
