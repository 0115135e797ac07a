"""Arrays as they come: nothing is in them that was not sent."""

from typing import Any

import msgpack
import numpy
import pytest

from asyncipc.wire.arrays import describe_array
from asyncipc.wire.decoding import BrokenMessage
from asyncipc.wire.msgpack_codec import MessagePack


def decoded(dtype: Any, shape: list[int], data: bytes = b"") -> Any:
    """What becomes of an array in a request; the error where it is none."""
    array = msgpack.ExtType(82, msgpack.packb([dtype, shape, "C", data]))
    message = MessagePack().decode(msgpack.packb([2, 2, "take", array, None]))
    return message.error if isinstance(message, BrokenMessage) else message[3]


@pytest.mark.parametrize("dtype", ["|S0", "<U0", "|V0", [], [["a", "|S0"]], [["a", "<i4", [0]]]])
@pytest.mark.parametrize("shape", [[4000], [10**10], []])
def test_items_of_no_bytes(dtype: Any, shape: list[int]) -> None:
    error = decoded(dtype, shape)
    assert isinstance(error, Exception)
    assert "items: they have no bytes" in str(error)


@pytest.mark.parametrize(("shape", "data"), [([1], bytes(8)), ([0], b"")])
def test_a_dtype_that_is_an_array(shape: list[int], data: bytes) -> None:
    error = decoded(["<i4", [2]], shape, data)
    assert isinstance(error, Exception)
    assert "which is an array itself" in str(error)


def test_nothing_is_sent_that_is_not_in_the_array() -> None:
    """Where it has to be copied, nothing that was in the memory of the copy."""
    array = numpy.zeros(200, numpy.dtype([("a", "i1"), ("b", "f8")], align=True))[::2]
    for _ in range(20):
        used = [numpy.full(1600, 255, "u1") for _ in range(20)]
        del used
        _, data = describe_array(array)
        assert bytes(data) == bytes(1600)


@pytest.mark.parametrize("dtype", ["|S0", "<i4", [["a", "<i4", [2]]]])
@pytest.mark.parametrize("shape", [[0], [3, 0, 2]])
def test_no_items_at_all(dtype: Any, shape: list[int]) -> None:
    array = decoded(dtype, shape)
    assert array.shape == tuple(shape)
    assert array.dtype.str == dtype or array.dtype.itemsize == 8
    assert array.flags.writeable
    assert isinstance(array, numpy.ndarray)
