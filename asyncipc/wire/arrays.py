"""numpy arrays: what of them stands in the envelope, and how they are made of it again.

numpy is imported when an array comes, and never before: who sends one has imported it.

Layer 1. Above: encoding, values. Below: nothing of the library.
"""

import functools
import math
import sys
from typing import TYPE_CHECKING, Any

from asyncipc.lazy import LazyModule

if TYPE_CHECKING:
    import numpy
    from numpy.lib import format as numpy_format
else:
    numpy = LazyModule("numpy")
    numpy_format = LazyModule("numpy.lib.format")

__all__ = ["describe_array", "is_array", "make_array"]


def is_array(kind: type) -> bool:
    """Whether the type is that of numpy's arrays: itself, since a subclass would not arrive."""
    module = sys.modules.get("numpy")
    return module is not None and kind is getattr(module, "ndarray", None)


def describe_array(array: Any) -> tuple[list[Any], memoryview]:
    """``[dtype, shape, order]``, and the bytes in that order, uncopied where they lie in one.

    The dtype is described as in the header of an ``.npy`` file: text, or an array of fields.

    :raises ValueError: it holds Python objects or items of no bytes, or is of a dtype that has no
        such description
    """
    descr = _description(array.dtype)
    _check_item_size(array.dtype, array.size)
    order = "C"
    if not array.flags.c_contiguous:
        if array.flags.f_contiguous:
            order = "F"
        else:
            array = _copied(array)
    head = [descr, list(array.shape), order]
    if not array.nbytes:
        return head, memoryview(b"")
    flat = (array.T if order == "F" else array).reshape(-1)
    return head, memoryview(flat.view(numpy.uint8))


def _copied(array: Any) -> Any:
    if array.dtype.names is None:
        return array.copy(order="C")
    # Fields are copied one by one: what is between them would be whatever was in that memory.
    copy = numpy.zeros(array.shape, array.dtype)
    copy[...] = array
    return copy


def make_array(payload: Any, data: Any) -> Any:
    """The array that `describe_array` described.

    :param data: its bytes, in memory that the array may keep, and be written to
    :raises ValueError: description and bytes do not fit together
    :raises ImportError: there is no numpy here
    """
    descr, shape, order = payload
    if type(shape) is not list or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"the shape of an array is an array of sizes, not {shape!r:.60}")
    if order not in ("C", "F"):
        raise ValueError(f"the order of an array is 'C' or 'F', not {order!r:.60}")
    dtype = _named_dtype(descr) if type(descr) is str else _make_dtype(descr)
    count = math.prod(shape)
    _check_item_size(dtype, count)
    if count * dtype.itemsize != len(data):
        raise ValueError(f"{len(data)} bytes for an array of {dtype} with the shape {shape}")
    return numpy.ndarray(shape, dtype, data if len(data) else bytearray(), order=order)


def _check_item_size(dtype: Any, count: int) -> None:
    """Items of no bytes ("S0") could be any number, and numpy makes of them what they were not."""
    if count and not dtype.itemsize:
        raise ValueError(f"an array of {dtype} with {count} items: they have no bytes")


# They take ten times as long as the rest; programs have few dtypes.
@functools.lru_cache(maxsize=256)
def _description(dtype: Any) -> Any:
    if dtype.hasobject:
        raise ValueError(f"an array of {dtype}: it holds Python objects")
    descr = numpy_format.dtype_to_descr(dtype)
    if numpy_format.descr_to_dtype(descr) != dtype:
        raise ValueError(f"an array of {dtype}: numpy has no description of that dtype")
    return _as_lists(descr)


def _make_dtype(descr: Any) -> Any:
    dtype = numpy_format.descr_to_dtype(_as_tuples(descr))
    if dtype.hasobject:
        raise ValueError("an array of Python objects")
    if dtype.subdtype is not None:  # its dimensions would become the array's
        raise ValueError(f"an array of {dtype}, which is an array itself")
    return dtype


_named_dtype = functools.lru_cache(maxsize=256)(_make_dtype)


def _as_lists(descr: Any) -> Any:
    return [_as_lists(item) for item in descr] if isinstance(descr, list | tuple) else descr


def _as_tuples(descr: Any, depth: int = 0) -> Any:
    """The lists of fields are lists; a field, a shape, and a dtype with a shape are tuples."""
    if type(descr) is str:
        return descr
    if type(descr) is not list or depth > _MAX_NESTING:
        raise ValueError(f"no description of a dtype: {descr!r:.60}")
    if len(descr) == 2 and type(descr[1]) is list and all(type(n) is int for n in descr[1]):
        return (_as_tuples(descr[0], depth + 1), tuple(descr[1]))
    return [_field(field, depth) for field in descr]


def _field(field: Any, depth: int) -> tuple[Any, ...]:
    if type(field) is not list or len(field) not in (2, 3):
        raise ValueError(f"no description of a field: {field!r:.60}")
    name, kind, *shape = field
    names = tuple(name) if type(name) is list else name
    return (names, _as_tuples(kind, depth + 1), *map(tuple, shape))


_MAX_NESTING = 32
