"""The table of messages: what each kind must hold, and what is said when it does not."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncipc.errors import RemoteProtocolError
from asyncipc.wire import messages
from asyncipc.wire.messages import FIELD_NAMES, FIRST_IGNORABLE, check_fields, shown

NAN, INFINITY = float("nan"), float("inf")

# Each kind with all its fields, and after it how many of those may not be left out.
COMPLETE: dict[int, tuple[list[Any], int]] = {
    messages.HELLO: ([0, {"codec": "json"}], 1),
    messages.AUTH: ([1, b"proof"], 1),
    messages.REQUEST: ([2, 2, "add", [1, 2], 5.0, {"request_id": 7}], 2),
    messages.REPLY: ([3, 3, None], 2),
    messages.FAULT: ([4, 3, 1, "text", {"type": "ValueError"}], 3),
    messages.NOTIFY: ([5, "log", {"text": "hi"}, {}], 1),
    messages.CANCEL: ([6, 2], 1),
    messages.ITEMS: ([7, 3, [1, "two"]], 2),
    messages.END: ([8, 3], 1),
    messages.BEGIN: ([9, 1, [100, 0]], 2),
    messages.PART: ([10, 1, None], 1),
    messages.RETRACT: ([11, 1], 1),
    messages.GOODBYE: ([12, 0, 0, ""], 3),
    messages.CREDIT: ([13, 0, 5], 2),
    messages.PROGRESS: ([64, 3, 0.5, 10, "rows"], 2),
    messages.DESCRIPTORS: ([14, 0], 1),
    messages.MEMORY: ([15, 1, 4096, None], 3),
    messages.RELEASE: ([16, 1, [1, 2]], 2),
    messages.PING: ([65, 0], 1),
    messages.PONG: ([66, 0], 1),
    messages.EXTEND: ([67, 3, 2.5], 2),
    messages.STOP: ([68, 3], 1),
}

HUGE = 1 << 20_000  # more digits than Python prints

IDS = [0, -2, True, 1.0, "2", None, [2], 2**63, HUGE]
SIZES = [-1, True, 1.0, "0", None, 2**63, HUGE]
NUMBERS = [True, "1", [], HUGE, -HUGE]
MAPS = [[], "x", 5, True]

WRONG: dict[str, list[Any]] = {
    "parameters": [None, *MAPS],
    "proof": ["text", None, bytearray(3)],
    "id": IDS,
    "transfer": IDS,
    "method": [b"add", 5, None, ["add"]],
    "timeout": [-1, -0.1, NAN, INFINITY, *NUMBERS],
    "metadata": MAPS,
    "code": SIZES,
    "message": [b"x", 5, True],
    "details": MAPS,
    "items": [None, 5, "x", {}],
    "lengths": [None, [], 5, {"a": 1}, [-1], [True], [1.0], [1, "2"], [[]], [[1, 2]], [HUGE]],
    "region": [[], 5, [1, 2, 3], [1, 2, 3, None], [1, 2, 3, -4]],
    "segment": IDS,
    "size": IDS,
    "regions": [None, [], 5, [-1], [None]],
    "last_id": SIZES,
    "reason": [None, b"x", 5],
    "stream": SIZES,
    "count": SIZES,
    "token": SIZES,
    "done": [None, *NUMBERS],
    "total": NUMBERS,
    "seconds": [None, -1, -0.1, NAN, INFINITY, *NUMBERS],
}


def test_the_table_knows_every_kind() -> None:
    assert set(COMPLETE) == set(FIELD_NAMES)
    for kind, (message, _) in COMPLETE.items():
        assert len(message) == 1 + len(FIELD_NAMES[kind])
        assert message[0] == kind


def test_what_can_be_skipped_stands_behind_what_cannot() -> None:
    ignorable = {kind for kind in FIELD_NAMES if kind >= FIRST_IGNORABLE}
    kinds = messages.PROGRESS, messages.PING, messages.PONG, messages.EXTEND, messages.STOP
    assert ignorable == set(kinds)


@pytest.mark.parametrize("kind", COMPLETE)
def test_fields_may_be_left_out_only_at_the_end(kind: int) -> None:
    message, needed = COMPLETE[kind]
    for size in range(1, len(message) + 1):
        if size > needed:
            check_fields(message[:size])
            continue
        with pytest.raises(
            RemoteProtocolError, match=f"left out the {FIELD_NAMES[kind][size - 1]}"
        ):
            check_fields(message[:size])


@pytest.mark.parametrize("kind", COMPLETE)
def test_fields_of_a_later_version_are_ignored(kind: int) -> None:
    message, _ = COMPLETE[kind]
    check_fields([*message, HUGE, object()])


@pytest.mark.parametrize("kind", COMPLETE)
def test_a_wrong_field_is_named_and_shown(kind: int) -> None:
    message, _ = COMPLETE[kind]
    for position, name in enumerate(FIELD_NAMES[kind], 1):
        for value in WRONG.get(name, []):
            wrong = [*message[:position], value, *message[position + 1 :]]
            with pytest.raises(
                RemoteProtocolError, match=f"the {name} of the other side's"
            ) as caught:
                check_fields(wrong)
            assert str(caught.value).endswith(f", not {shown(value)}")


@pytest.mark.parametrize(
    ("kind", "position", "values"),
    [
        (messages.REQUEST, 3, [None, [], {}]),
        (messages.REQUEST, 4, [None, 0, 0.0, 5, 1e9]),
        (messages.REQUEST, 5, [None, {}]),
        (messages.REPLY, 2, [None, HUGE, object(), NAN]),
        (messages.FAULT, 2, [0, 1000]),
        (messages.FAULT, 4, [None, {}]),
        (messages.PROGRESS, 2, [0, -1, NAN, 2**64 - 1, -(2**63)]),
        (messages.PROGRESS, 3, [None, 0, INFINITY]),
        (messages.PROGRESS, 4, [None, ""]),
        (messages.CANCEL, 1, [1, 2**63 - 1]),
    ],
)
def test_all_that_is_allowed_passes(kind: int, position: int, values: list[Any]) -> None:
    message, _ = COMPLETE[kind]
    for value in values:
        check_fields([*message[:position], value, *message[position + 1 :]])


class Rude:
    def __repr__(self) -> str:
        raise RuntimeError("no code of what came may run")

    __str__ = __format__ = __len__ = __repr__  # type: ignore[assignment]


class RudeList(list[Any]):
    __repr__ = __len__ = Rude.__repr__  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        (True, "True"),
        (2.5, "2.5"),
        (2**64 - 1, "18446744073709551615"),
        (HUGE, "<int of 20001 bits>"),
        ("text", "'text'"),
        ("x" * 61, "'" + "x" * 60 + "'..."),
        (b"x" * 61, "b'" + "x" * 60 + "'..."),
        ([1, Rude()], "<list of 2>"),
        ({}, "<dict of 0>"),
        (Rude(), "<Rude>"),
        (RudeList(), "<RudeList>"),
    ],
    ids=range(12),
)
def test_what_came_is_shown_in_few_words(value: Any, text: str) -> None:
    assert shown(value) == text


@given(st.text(max_size=200) | st.binary(max_size=200) | st.floats() | st.integers())
def test_what_is_shown_is_bounded(value: Any) -> None:
    assert len(shown(value)) <= 60 * len(r"\U0010ffff") + len("b''...")
