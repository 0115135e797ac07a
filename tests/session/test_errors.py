"""Errors: what a handler raises is what its caller gets, whatever it is; the session goes on."""

import asyncio
import dataclasses
from typing import Any

import pytest

from asyncipc import (
    Busy,
    Call,
    DecodeError,
    EncodeError,
    FrameTooLarge,
    InvalidParams,
    IPCError,
    Limits,
    MethodNotFound,
    Peer,
    PermissionDenied,
    RemoteError,
    RemoteProtocolError,
    RequestCancelled,
    RequestRefused,
    RequestTimeout,
    SessionClosed,
    message,
)
from tests.session.support import KIB, MIB, RawPeer, failure, joined, loop_errors, talking

REQUEST, REPLY, FAULT, UNKNOWN = 2, 3, 4, 33


class AppError(Exception):
    pass


@message(name="test_errors.Broken")
class Broken(Exception):
    def __init__(self, part: str, *, code: int) -> None:
        super().__init__(part)
        self.code = code


@message(name="test_errors.Denied")
class Denied(PermissionDenied):
    pass


@message(name="test_errors.Stop")
class Stop(StopIteration):
    pass


@message(name="test_errors.Picky")
@dataclasses.dataclass
class Picky:
    value: int

    def __post_init__(self) -> None:
        if self.value < 0:
            raise ValueError(f"{self.value} is negative")


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError

    __repr__ = __str__


class Unruly(Exception):
    """Everything about it raises."""

    def __getattribute__(self, name: str) -> Any:
        raise SystemError(name)


class WithoutInit(RemoteError):
    def __init__(self) -> None:
        pass


class NeedsArguments(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


OddName = type("OddName", (Exception,), {"__module__": None, "__qualname__": "Odd\ud800Name"})


def with_notes(error: Exception, *notes: Any) -> Exception:
    error.__notes__ = list(notes)
    return error


async def raised(error: BaseException, **settings: Any) -> IPCError:
    """What the caller gets for an exception, the same from each kind of handler."""
    peer = Peer(**settings)

    @peer.on_request
    def inline() -> None:
        raise BaseException.with_traceback(error, None)

    @peer.on_request
    async def in_a_task() -> None:
        raise BaseException.with_traceback(error, None)

    @peer.on_request(thread=True)
    def in_a_thread() -> None:
        raise BaseException.with_traceback(error, None)

    @peer.on_request
    def ok() -> str:
        return "the session goes on"

    with loop_errors() as errors:
        async with talking(peer, "memory") as session:
            found = []
            for method in ("in_a_thread", "in_a_task", "inline"):
                found.append(await failure(session.request(method, timeout=5)))
                assert await session.request("ok") == "the session goes on"
    assert not errors
    assert len({type(each) for each in found}) == 1
    result = found[-1]
    assert isinstance(result, Exception)
    return result  # type: ignore[return-value]


# -- what the caller gets ----------------------------------------------------------------------


async def test_type_message_and_traceback() -> None:
    error = await raised(ValueError("what is wrong"))
    assert type(error) is RemoteError
    assert error.type == "ValueError"
    assert error.message == "what is wrong"
    assert error.notes == ()
    assert error.traceback.endswith("\nValueError: what is wrong\n")
    assert "in inline" in error.traceback
    assert "asyncipc/session/" not in error.traceback  # only the handler's own frames
    assert str(error).startswith("ValueError: what is wrong\n\nremote traceback:\nTraceback")


async def test_classes_outside_the_builtins_are_named_with_their_module() -> None:
    error = await raised(AppError("x"))
    assert isinstance(error, RemoteError)
    assert error.type == f"{__name__}.AppError"


async def test_the_cause_is_in_the_traceback() -> None:
    peer = Peer()

    @peer.on_request
    def work() -> None:
        try:
            _ = dict[str, int]()["key"]
        except KeyError as error:
            raise AppError("outer") from error

    async with talking(peer, "memory") as session:
        error = await failure(session.request("work"))
    assert isinstance(error, RemoteError)
    assert "KeyError: 'key'" in error.traceback
    assert "direct cause" in error.traceback


async def test_notes_travel() -> None:
    error = await raised(with_notes(ValueError("x"), "first note", "second note"))
    assert isinstance(error, RemoteError)
    assert error.notes == ("first note", "second note")
    assert "ValueError: x\nfirst note\nsecond note" in str(error)


async def test_notes_that_are_none() -> None:
    for notes in ([7, None, "text"], ["\ud800"]):
        error = await raised(with_notes(ValueError("x"), *notes))
        assert isinstance(error, RemoteError)
        assert len(error.notes) == 1
    odd = ValueError("x")
    odd.__notes__ = 7  # type: ignore[assignment]
    error = await raised(odd)
    assert isinstance(error, RemoteError)
    assert error.notes == ()


async def test_the_traceback_can_be_withheld() -> None:
    error = await raised(with_notes(ValueError("x"), "note"), tracebacks=False)
    assert isinstance(error, RemoteError)
    assert error.traceback == ""
    assert (error.type, error.message, error.notes) == ("ValueError", "x", ("note",))
    assert str(error) == "ValueError: x\nnote"


@pytest.mark.parametrize(
    "kind",
    [RemoteError, InvalidParams, MethodNotFound, PermissionDenied, Busy],
)
async def test_what_a_handler_may_say_about_its_own_call(kind: type[RemoteError]) -> None:
    error = await raised(kind("not now"))
    assert type(error) is kind
    assert error.message == "not now"
    assert error.type == kind.__name__


@pytest.mark.parametrize("kind", [RequestRefused, RequestCancelled])
async def test_refusing_and_giving_up(kind: type[IPCError]) -> None:
    error = await raised(kind("not now"))
    assert type(error) is kind
    assert str(error) == "not now"


@pytest.mark.parametrize("kind", [SessionClosed, RequestTimeout, EncodeError, RemoteProtocolError])
async def test_trouble_of_the_handlers_own_is_not_the_callers(kind: type[IPCError]) -> None:
    error = await raised(kind("in the handler"))
    assert type(error) is RemoteError
    assert error.type == kind.__name__
    assert error.message == "in the handler"


async def test_subclasses_travel_as_the_nearest_that_is_known() -> None:
    class MyBusy(Busy):
        pass

    error = await raised(MyBusy("over my limit"))
    assert type(error) is Busy
    assert error.message == "over my limit"


async def test_an_error_of_a_nested_call_is_passed_on_as_what_it_was() -> None:
    first, second, third = Peer(), Peer(), Peer()

    @third.on_request
    def work() -> None:
        raise with_notes(ValueError("at the far end"), "a note")

    async with talking(third, "memory", first=second) as further:

        @second.on_request
        async def relay() -> Any:
            return await further.request("work")

        async with talking(second, "memory", first=first) as session:
            error = await failure(session.request("relay"))
    assert type(error) is RemoteError
    assert (error.type, error.message, error.notes) == (
        "ValueError",
        "at the far end",
        ("a note",),
    )
    assert "in work" in error.traceback


# -- registered exceptions ---------------------------------------------------------------------


async def test_a_registered_exception_comes_back_as_itself() -> None:
    error: Any = await raised(Broken("axle", code=7))
    assert type(error) is Broken
    assert error.args == ("axle",)
    assert error.code == 7
    assert isinstance(error.__cause__, RemoteError)
    assert error.__cause__.type == f"{__name__}.Broken"
    assert "in inline" in error.__cause__.traceback


async def test_a_registered_exception_of_the_librarys_family() -> None:
    error = await raised(Denied("not you"))
    assert type(error) is Denied
    assert isinstance(error.__cause__, PermissionDenied)


async def test_a_registered_exception_that_no_future_can_carry() -> None:
    peer = Peer()

    @peer.on_request
    def inline() -> None:
        raise Stop("here")

    async with talking(peer, "memory") as session:
        error = await failure(session.request("inline", timeout=5))
    assert type(error) is RemoteError
    assert error.type == f"{__name__}.Stop"


async def test_a_registered_exception_with_what_cannot_be_sent() -> None:
    error: Any = await raised(Broken(object(), code=lambda: None))  # type: ignore[arg-type]
    assert type(error) is Broken
    assert error.args[0].startswith("<object")  # its repr
    assert not hasattr(error, "code")


async def test_a_registered_exception_that_is_too_large() -> None:
    peer = Peer()

    @peer.on_request
    def work() -> None:
        raise Broken("x" * 100_000, code=1)

    async with talking(peer, first=Peer(limits=Limits(max_message=64 * KIB))) as session:
        error = await failure(session.request("work"))
        assert type(error) is RemoteError
        assert error.type == f"{__name__}.Broken"
        assert await failure(session.request("nothing")) is not None
        assert not session.closed


# -- exceptions that resist --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (Unprintable(), f"{__name__}.Unprintable", "<its __str__ raised ZeroDivisionError>"),
        (ValueError("\ud800 alone"), "ValueError", "\\ud800 alone"),
        (ValueError(b"\xff", object), "ValueError", "(b'\\xff', <class 'object'>)"),
        (NeedsArguments(1, 2), f"{__name__}.NeedsArguments", "1 and 2"),
        (AssertionError(), "AssertionError", ""),
        (SystemExit(3), "SystemExit", "3"),
        (KeyboardInterrupt(), "KeyboardInterrupt", ""),
        (GeneratorExit(), "GeneratorExit", ""),
        (ExceptionGroup("many", [ValueError(1)]), "ExceptionGroup", "many (1 sub-exception)"),
        (RemoteError(7), "RemoteError", "7"),  # type: ignore[arg-type]
        (Busy(None), "Busy", "None"),  # type: ignore[arg-type]
        (RemoteError("x", type=7), "RemoteError", "x"),  # type: ignore[arg-type]
        (RemoteError("x", traceback=7), "RemoteError", "x"),  # type: ignore[arg-type]
        (RemoteError("x", notes=(1, "n")), "RemoteError", "x"),  # type: ignore[arg-type]
        (WithoutInit(), None, None),
        (OddName("x"), "None.Odd\\ud800Name", "x"),
        (Unruly("x"), None, None),
    ],
    ids=lambda value: (
        type(value).__name__.encode("ascii", "replace").decode()
        if isinstance(value, BaseException)
        else ""
    ),
)
async def test_exceptions_that_resist(
    error: BaseException, kind: str | None, text: str | None
) -> None:
    found = await raised(error)
    assert isinstance(found, RemoteError)
    if kind is not None:
        assert found.type == kind
    if text is not None:
        assert found.message == text


async def test_stop_iteration() -> None:
    peer = Peer()

    @peer.on_request
    def inline() -> None:
        raise StopIteration("end")

    @peer.on_request
    async def in_a_task() -> None:
        raise StopIteration("end")

    @peer.on_request(thread=True)
    def in_a_thread() -> None:
        raise StopIteration("end")

    async with talking(peer, "memory") as session:
        for method in ("inline", "in_a_task", "in_a_thread"):
            error = await failure(session.request(method, timeout=5))
            assert type(error) is RemoteError
            assert "StopIteration" in str(error)


async def test_a_very_long_message_and_a_very_deep_traceback_are_cut() -> None:
    peer = Peer()

    @peer.on_request
    def long() -> None:
        raise with_notes(ValueError("a" * MIB + "b"), "c" * MIB)

    @peer.on_request
    def deep() -> None:
        def one(n: int) -> None:
            two(n)

        def two(n: int) -> None:
            one(n + 1)

        one(0)

    async with talking(peer) as session:
        error = await failure(session.request("long"))
        assert isinstance(error, RemoteError)
        assert error.message.startswith("aaa")
        assert error.message.endswith("b")
        assert len(error.message) < 64 * KIB
        assert len(error.notes[0]) < 64 * KIB
        assert len(error.traceback) < 64 * KIB
        error = await failure(session.request("deep"))
        assert isinstance(error, RemoteError)
        assert error.type == "RecursionError"


async def test_any_number_of_notes() -> None:
    error = await raised(with_notes(ValueError("x"), *["n" * 10_000] * 1000))
    assert isinstance(error, RemoteError)
    assert sum(map(len, error.notes)) < 64 * KIB


# -- params and results that cannot travel -----------------------------------------------------


async def test_a_result_that_cannot_be_sent_names_its_path() -> None:
    peer = Peer()

    @peer.on_request
    def inline() -> Any:
        return {"items": [1, {"when": object()}]}

    @peer.on_request
    async def in_a_task() -> Any:
        return [object()]

    async with joined(Peer(), peer, "memory") as (session, other):
        error = await failure(session.request("inline"))
        assert isinstance(error, RemoteError)
        assert error.type == "EncodeError"
        assert "result.items[1].when" in error.message
        error = await failure(session.request("in_a_task"))
        assert isinstance(error, RemoteError)
        assert "result[0]" in error.message
        assert other.statistics().faults_sent == 2
        assert not session.closed


async def test_a_result_that_is_too_large_is_a_fault() -> None:
    peer = Peer()

    @peer.on_request
    def make(size: int) -> bytes:
        return bytes(size)

    async with talking(peer, first=Peer(limits=Limits(max_message=MIB))) as session:
        error = await failure(session.request("make", MIB))
        assert isinstance(error, RemoteError)
        assert error.type == "FrameTooLarge"
        assert "max_message is 1048576" in error.message
        assert len(await session.request("make", 900 * KIB)) == 900 * KIB


async def test_a_request_that_is_too_large_is_not_sent() -> None:
    peer = Peer(limits=Limits(max_message=16 * KIB))

    @peer.on_request
    def length(data: bytes) -> int:
        return len(data)

    async with talking(peer) as session:
        for size in (16 * KIB, 20 * KIB, MIB):
            with pytest.raises(FrameTooLarge, match="max_message is 16384"):
                await session.request("length", bytes(size))
        assert session.statistics().requests_sent == 0
        assert await session.request("length", bytes(15 * KIB)) == 15 * KIB


async def test_params_that_cannot_be_understood_over_there() -> None:
    peer = Peer()

    @peer.on_request
    def take(picky: Picky) -> int:
        return picky.value

    picky = Picky(1)
    picky.value = -1  # passes here, and not through __post_init__ over there
    async with talking(peer, "memory") as session:
        with pytest.raises(InvalidParams, match="-1 is negative"):
            await session.request("take", picky)
        assert await session.request("take", Picky(2)) == 2


async def test_a_result_that_cannot_be_understood_here() -> None:
    peer = Peer()

    @peer.on_request
    def make(value: int) -> Picky:
        picky = Picky(1)
        picky.value = value
        return picky

    async with talking(peer, "memory") as session:
        with pytest.raises(DecodeError, match="-1 is negative"):
            await session.request("make", -1)
        assert await session.request("make", 2) == Picky(2)


async def test_a_message_with_very_many_attachments() -> None:
    peer = Peer()

    @peer.on_request
    def count(pieces: list[bytes]) -> list[bytes]:
        return pieces

    pieces = [bytes([n % 256]) * 16 * KIB for n in range(1500)]
    async with talking(peer) as session:
        assert await session.request("count", [pieces]) == pieces


# -- faults of the other side ------------------------------------------------------------------


async def fault_of(*fields: Any) -> BaseException:
    async with RawPeer.facing(Peer()) as (raw, session):
        task = asyncio.create_task(session.request("any"))
        _, wire_id, *_ = await raw.receive_kind(REQUEST)
        raw.send([FAULT, wire_id + 1, *fields])
        return await failure(task)


@pytest.mark.parametrize(
    ("fields", "kind", "text"),
    [
        ([1, "text"], RemoteError, "text"),
        ([1, "text", None], RemoteError, "text"),
        ([1, "text", {}, "a later field"], RemoteError, "text"),
        ([2, "text"], MethodNotFound, "text"),
        ([6, "text"], RequestRefused, "text"),
        ([7, "text"], RequestCancelled, "text"),
        ([8, "text"], RemoteProtocolError, "text"),
        ([4711, "text", {"type": "Later"}], RemoteError, "Later: text"),
        ([1, "text", {"type": 7, "notes": 7, "traceback": 7}], RemoteError, "text"),
        ([1, "text", {"notes": [7, None]}], RemoteError, "text\n7\nNone"),
        ([1, "text", {"exception": "no exception"}], RemoteError, "text"),
    ],
)
async def test_faults_from_elsewhere(fields: list[Any], kind: type, text: str) -> None:
    error = await fault_of(*fields)
    assert type(error) is kind
    assert str(error).partition("\n\nremote")[0] == text


async def test_an_unknown_answer_does_not_leave_the_caller_waiting() -> None:
    async with RawPeer.facing(Peer()) as (raw, session):
        task = asyncio.create_task(session.request("any"))
        _, wire_id, *_ = await raw.receive_kind(REQUEST)
        raw.send([UNKNOWN, wire_id + 1, "something new"])
        with pytest.raises(RemoteProtocolError, match="a message of kind 33, unknown here"):
            await task
        assert await raw.receive_kind(6) == [6, wire_id]  # it is no longer wanted
        raw.send([REPLY, wire_id + 1, "late"])
        await raw.settle(session)
        assert session.statistics().pending == 0
        assert session.statistics().cancels_sent == 1


async def test_unawaited_errors_are_not_complained_about() -> None:
    """A caller that was cancelled does not see how its call ended, and nobody else should."""
    peer = Peer()
    hold = asyncio.Event()

    @peer.on_request
    async def work(call: Call) -> None:
        try:
            await hold.wait()
        finally:
            raise ValueError("nobody hears this")

    with loop_errors() as errors:
        async with talking(peer) as session:
            task = asyncio.create_task(session.request("work"))
            await session.ping()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            while session.statistics().pending:
                await session.ping()
    assert not errors
