"""Which items of a map may be filled anew for the next."""

import array
import collections
import datetime
import decimal
import enum
import functools
import pathlib
import uuid
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy
import pytest

from asyncipc.pool.lent import MOST, is_lent

BUFFER = bytearray(4)


class Colour(enum.Enum):
    RED = 1


class Pair(NamedTuple):
    one: Any
    other: Any


@dataclass
class Node:
    value: Any
    others: list["Node"] = field(default_factory=list)


@dataclass(slots=True)
class Slotted:
    value: Any


class Bytes(bytearray):
    pass


class Tagged(dict[str, int]):
    tag: Any = None


def cycle(value: Any) -> Node:
    first = Node(1)
    first.others = [first, Node(value, [first]), Node(2, [first])]
    return first


def tagged(value: Any) -> Tagged:
    item = Tagged(a=1)
    item.tag = value
    return item


HARMLESS = [
    *[None, True, 1, 2**70, 1.5, 1j, "text", b"bytes", range(3), ..., len, int],
    *[(), [], {}, (1, [2, {"three": {4}}]), frozenset({1}), Pair(1, "two"), tagged(1)],
    *[datetime.date(2026, 1, 2), decimal.Decimal(1), uuid.UUID(int=1), pathlib.Path("a")],
    *[Colour.RED, numpy.float64(1.5), Node(1), Node([Node(1)]), Slotted("one"), cycle("x")],
    *[collections.OrderedDict(a=1), ValueError("no"), functools.partial(len, "text")],
]

LENT = [
    *[BUFFER, memoryview(BUFFER), numpy.zeros(1), array.array("i"), Bytes()],
    *[(1, BUFFER), [{"a": {"b": BUFFER}}], Pair(1, BUFFER), Node(BUFFER), Slotted(BUFFER)],
    *[collections.OrderedDict(a=BUFFER), collections.deque(), tagged(BUFFER), cycle(BUFFER)],
    *[functools.partial(len, BUFFER)],
]


@pytest.mark.parametrize("item", HARMLESS, ids=lambda item: type(item).__name__)
def test_what_cannot_be_filled_anew(item: Any) -> None:
    assert not is_lent(item)


@pytest.mark.parametrize("item", LENT, ids=lambda item: type(item).__name__)
def test_what_can_be_or_holds_such_or_is_not_known(item: Any) -> None:
    assert is_lent(item)


def test_what_has_very_much_is_packed_alone() -> None:
    assert not is_lent([[number] for number in range(MOST - 1)])
    assert is_lent([[number] for number in range(MOST)])
