"""Pickles on their way: values, buffers out of band, functions, and failures of all kinds."""

import asyncio
import functools
import math
import pickle
import sys
import threading
import types
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncipc import DecodeError, EncodeError, MessagePack, RemoteError, RequestCancelled
from asyncipc.pool.payload import (
    MAX_FUNCTIONS,
    OUT_OF_BAND,
    FunctionCache,
    dump,
    dump_arguments,
    dump_failure,
    dump_function,
    function_name,
    goes_by_name,
    load,
    load_arguments,
    load_failure,
)
from asyncipc.wire import messages
from tests.pool import support

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
)


def sent(dumped: list[Any]) -> list[Any]:
    """As they arrive."""
    codec, attachments = MessagePack(), list[Any]()
    data = codec.encode([messages.REPLY, 3, dumped], attachments)
    result: list[Any] = codec.decode(data, list(map(bytes, attachments)))[2]
    return result


# -- values ------------------------------------------------------------------------------------


@given(values)
def test_values_arrive_as_they_were(value: Any) -> None:
    came = load(sent(dump(value)))
    assert came == value
    assert type(came) is type(value)


def test_large_buffers_travel_beside_the_pickle() -> None:
    for kind, is_readonly in ((bytes, True), (bytearray, False)):
        original = kind(bytes(range(256)) * (OUT_OF_BAND // 256))
        dumped = dump(pickle.PickleBuffer(original))
        assert len(dumped) == 2
        assert len(dumped[0]) < 1000
        came = load(sent(dumped))
        assert bytes(came) == original
        assert memoryview(came).readonly is is_readonly
        assert type(came) is (memoryview if is_readonly else bytearray)


def test_small_and_scattered_buffers_travel_in_the_pickle() -> None:
    small = pickle.PickleBuffer(bytearray(OUT_OF_BAND - 1))
    assert len(dump(small)) == 1
    numpy = pytest.importorskip("numpy")
    scattered = numpy.zeros((400, 400))[::2, ::2]
    dumped = dump(scattered)
    assert (load(sent(dumped)) == scattered).all()


def test_several_buffers_keep_their_order_and_kind() -> None:
    numpy = pytest.importorskip("numpy")
    frozen = numpy.full(OUT_OF_BAND, 2)
    frozen.flags.writeable = False
    value = {"a": numpy.full(OUT_OF_BAND, 1), "b": frozen, "c": numpy.full(3, 3)}
    dumped = dump(value)
    assert len(dumped) == 3
    came = load(sent(dumped))
    for key, array in value.items():
        assert (came[key] == array).all()
        assert came[key].flags.writeable is array.flags.writeable


def test_arguments_that_cannot_travel() -> None:
    with pytest.raises(EncodeError, match=r"arguments for some\.function cannot be pickled.*lock"):
        dump_arguments(((threading.Lock(),), {}), "some.function")
    with pytest.raises(DecodeError, match=r"arguments for some\.function cannot be unpick.*not to"):
        load_arguments(sent(dump(support.Unloadable())), "some.function")


# -- functions ---------------------------------------------------------------------------------


def test_functions_that_go_by_their_name_are_loaded_once() -> None:
    cache = FunctionCache()
    for function in (support.add, math.sqrt):
        assert goes_by_name(function)
        assert cache.load(dump_function(function)) == (function, function_name(function))
    adder = support.Adder(1)
    assert not goes_by_name(adder)
    (one, _), (other, _) = (cache.load(dump_function(adder)) for _ in range(2))
    assert one is not other
    assert one(2) == other(2) == 3


def test_no_more_functions_are_remembered_than_a_program_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = types.ModuleType("many_functions")
    monkeypatch.setitem(sys.modules, "many_functions", module)
    cache = FunctionCache()
    for number in range(MAX_FUNCTIONS + 10):
        name = f"function_{number}"
        exec(f"def {name}(): return {number}", module.__dict__)
        found, _ = cache.load(dump_function(getattr(module, name)))
        assert found() == number
    assert len(cache._known) <= MAX_FUNCTIONS


def test_functions_that_cannot_travel() -> None:
    with pytest.raises(EncodeError, match=r"<lambda> cannot be given to a worker.*no lambda"):
        dump_function(lambda: None)
    data = dump_function(support.add).replace(b"add", b"odd")
    with pytest.raises(DecodeError, match=r"cannot find the function: AttributeError.*'odd'"):
        FunctionCache().load(data)


def test_names_of_functions() -> None:
    assert function_name(support.add) == "tests.pool.support.add"
    assert function_name(support.Adder(1).subtract) == "tests.pool.support.Adder.subtract"
    assert function_name(math.sqrt) == "math.sqrt"
    partial = functools.partial(support.add, 1)
    assert function_name(partial) == "partial(tests.pool.support.add)"
    assert len(function_name(functools.partial(support.add, "x" * 1000))) <= 80


# -- failures ----------------------------------------------------------------------------------


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001 - of any kind
        return caught


def travelled(error: BaseException) -> Exception:
    return load_failure(dump_failure(raised(error)))


def test_an_exception_comes_with_what_is_known_of_it() -> None:
    error = support.CustomError(7)
    error.add_note("a note")
    came = travelled(error)
    assert type(came) is support.CustomError
    assert came.code == 7
    assert came.__notes__ == ["a note"]
    assert isinstance(came.__cause__, RemoteError)
    assert came.__cause__.type == "tests.pool.support.CustomError"
    assert came.__cause__.message == "7"
    assert "in raised\n    raise error" in came.__cause__.traceback


def test_the_causes_stand_in_the_traceback() -> None:
    error = LookupError("outer")
    error.__cause__ = raised(ValueError("inner"))
    came = travelled(error)
    assert "ValueError: inner" in str(came.__cause__)
    group = travelled(ExceptionGroup("several", [ValueError("one"), LookupError("two")]))
    assert isinstance(group, ExceptionGroup)
    assert [str(each) for each in group.exceptions] == ["one", "two"]


@pytest.mark.parametrize(
    "error",
    [
        support.HoldingError(),
        support.DemandingError("this", "that"),
        SystemExit(1),
        KeyboardInterrupt(),
        GeneratorExit(),
        StopIteration(1),
        StopAsyncIteration(),
        BaseExceptionGroup("several", [KeyboardInterrupt()]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_exceptions_that_cannot_or_must_not_arrive_are_told_of(error: BaseException) -> None:
    came = travelled(error)
    assert type(came) is RemoteError
    assert came.type.rpartition(".")[2] == type(error).__name__
    assert "in raised" in came.traceback


def test_cancellation_is_not_the_callers() -> None:
    assert type(travelled(asyncio.CancelledError())) is RequestCancelled


class Resisting(Exception):
    """Nothing about it works."""

    def __str__(self) -> str:
        raise LookupError("no text")

    def __reduce__(self) -> Any:
        raise LookupError("no pickle")

    def __init__(self) -> None:
        self.__notes__: list[Any] = [1, "a note"]


def test_exceptions_that_resist() -> None:
    came = travelled(Resisting())
    assert isinstance(came, RemoteError)
    assert came.message == "<its __str__ raised LookupError>"
    assert came.notes == ("a note",)
    assert "Resisting" in came.type


def test_text_that_is_no_unicode() -> None:
    came = travelled(ValueError("\udcff"))
    assert isinstance(came.__cause__, RemoteError)
    assert came.__cause__.message == "\\udcff"


class Impostor(Exception):
    """Unpickles as something that is no exception."""

    def __reduce__(self) -> Any:
        return dict, ()


def test_what_unpickles_as_no_exception() -> None:
    came = travelled(Impostor("text"))
    assert type(came) is RemoteError
    assert came.message == "text"
