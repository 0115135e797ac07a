"""What application and zygote say to each other, over a real socket."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncipc.pool import control
from asyncipc.pool.control import (
    ControlSocket,
    Exited,
    Fork,
    Forked,
    ForkFailed,
    Ready,
    Record,
    Refused,
    Setup,
    Stage,
)

Pair = tuple[ControlSocket, ControlSocket]


@pytest.fixture
def pair(nothing_is_left: None) -> Iterator[Pair]:
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one, other = map(ControlSocket, ends)
    yield one, other
    one.close()
    other.close()


RECORDS: list[Record] = [
    Setup({"path": "/ü/script.py"}, ["/a", ""], ["script.py", "-v"], ["numpy"]),
    Setup({}, [], [], []),
    Fork(2**40),
    Stage("preloading 'ü'"),
    Ready(0.25),
    Refused("it is not safe: ü\n" * 1000),
    Forked(3, 4711),
    ForkFailed(3, "no memory"),
    Exited(3, -9),
    Exited(3, 255),
]


def test_records_arrive_as_they_were_and_one_by_one(pair: Pair) -> None:
    one, other = pair
    for record in RECORDS:
        one.send(record)
    assert [other.receive() for _ in RECORDS] == [(record, []) for record in RECORDS]


def test_every_kind_of_record_is_tried() -> None:
    assert {type(record) for record in RECORDS} == set(control._RECORDS.values())


def test_descriptors_arrive_with_their_record(pair: Pair, tmp_path: Path) -> None:
    one, other = pair
    files = [tmp_path / name for name in "abc"]
    sent = [os.open(path, os.O_CREAT | os.O_WRONLY) for path in files]
    one.send(Fork(1), sent)
    one.send(Fork(2))
    one.send(Fork(3), sent[:1])
    for descriptor in sent:
        os.close(descriptor)
    counts = []
    for number in (1, 2, 3):
        received = other.receive()
        assert received is not None
        record, descriptors = received
        assert record == Fork(number)
        counts.append(len(descriptors))
        for path, descriptor in zip(files, descriptors, strict=False):
            assert os.readlink(f"/proc/self/fd/{descriptor}") == str(path)
            assert not os.get_inheritable(descriptor)
            os.close(descriptor)
    assert counts == [3, 0, 1]


def test_the_end_of_the_other_side(pair: Pair) -> None:
    one, other = pair
    one.send(Ready(1.0))
    one.close()
    assert other.receive() == (Ready(1.0), [])
    assert other.receive() is None
    with pytest.raises(BrokenPipeError):
        other.send(Ready(1.0))


def test_nothing_there_yet() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with theirs:
        end = ControlSocket(ours)
        assert end.fileno() == ours.fileno()
        with pytest.raises(BlockingIOError):
            end.receive()
        end.close()


def test_a_very_long_path(pair: Pair) -> None:
    one, other = pair
    setup = Setup({}, [f"/folder/{number:0100}" for number in range(1000)], [], [])
    one.send(setup)
    assert other.receive() == (setup, [])
