"""What is carried over: context variables to the worker, log records from it."""

import contextvars
import logging
import os
import pickle
import sys
import threading
import types
from typing import Any

import pytest

from asyncipc.pool import context_variables, logs
from asyncipc.pool.context_variables import VariableNames
from tests.pool import logging_module, support
from tests.pool.support import START_METHODS, in_workers, open_pool

VARIABLE: contextvars.ContextVar[Any] = contextvars.ContextVar("variable", default="unset")
OTHER: contextvars.ContextVar[Any] = contextvars.ContextVar("other", default="unset")

logger = logging.getLogger("tests.pool.carried")


# -- context variables -------------------------------------------------------------------------


def variables() -> tuple[Any, Any]:
    found = VARIABLE.get(), OTHER.get()
    VARIABLE.set("changed by a task")
    return found


async def variables_async() -> tuple[Any, Any]:
    return variables()


@pytest.mark.parametrize("start_method", START_METHODS)
@in_workers
async def test_context_variables_are_carried_over(start_method: str) -> None:
    async with open_pool(start_method=start_method) as pool:
        VARIABLE.set(None)
        for function in (variables, variables_async):
            VARIABLE.set({"request": 7})
            assert await pool.run(function) == ({"request": 7}, "unset")
            assert VARIABLE.get() == {"request": 7}  # nothing comes back
            context = contextvars.copy_context()
            context.run(OTHER.set, "another's")
            assert await context.run(pool.submit, function) == ({"request": 7}, "another's")
            assert await pool.run(function) == ({"request": 7}, "unset")
        assert [found async for found in pool.map(variables_of, [1])] == [{"request": 7}]


def variables_of(_: int) -> Any:
    return VARIABLE.get()


@in_workers
async def test_what_cannot_be_carried_over_stays_behind() -> None:
    local: contextvars.ContextVar[int] = contextvars.ContextVar("local")
    local.set(1)
    async with open_pool() as pool:
        VARIABLE.set(threading.Lock())
        OTHER.set("carried")
        assert await pool.run(variables) == ("unset", "carried")
        VARIABLE.set(support.Unloadable())
        assert await pool.run(variables) == ("unset", "carried")


@in_workers
async def test_a_chunk_shares_one_context() -> None:
    async with open_pool() as pool:
        VARIABLE.set("carried")
        found = [found async for found in pool.map(variables_each, range(2), chunk_size=2)]
        assert found == [("carried", "unset"), ("changed by a task", "unset")]
        assert await pool.run(variables) == ("carried", "unset")


def variables_each(_: int) -> tuple[Any, Any]:
    return variables()


# -- log records -------------------------------------------------------------------------------


def test_variables_made_for_a_moment_are_not_kept() -> None:
    names = VariableNames()
    searches = 0

    def search() -> dict[Any, Any]:
        nonlocal searches
        searches += 1
        return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context_variables, "_globals", search)
        for number in range(5000):
            assert names.find(contextvars.ContextVar(f"of_a_moment_{number}")) is None
    assert searches <= context_variables.MAX_SEARCHES
    assert len(names._known) <= context_variables.MAX_KNOWN


def test_variables_of_modules_are_found_also_after_others() -> None:
    names = VariableNames()
    assert names.find(VARIABLE) == (__name__, "VARIABLE")
    for number in range(100):
        assert names.find(contextvars.ContextVar(f"of_a_moment_{number}")) is None
    assert names.find(OTHER) == (__name__, "OTHER")
    module = types.ModuleType("tests.pool.imported_later")
    later = module.later = contextvars.ContextVar("later")  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        assert names.find(later) == (module.__name__, "later")


def log() -> None:
    logger.debug("too small")
    logger.info("%s and %d", "text", 7, extra={"user": "somebody"})
    try:
        raise LookupError("what went wrong")
    except LookupError:
        logger.exception("failed")
    logging.getLogger("tests.pool.silent").error("not to be heard")
    logging.getLogger().warning("from the root")


@pytest.mark.parametrize("start_method", START_METHODS)
@in_workers
async def test_log_records_arrive_in_the_logging_of_the_application(
    start_method: str, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("tests.pool.silent").setLevel(logging.CRITICAL)
    with caplog.at_level(logging.INFO, "tests.pool.carried"):
        async with open_pool(start_method=start_method) as pool:
            await pool.run(log)
            worker = pool.workers[0].pid
    first, second, third = (record for record in caplog.records if record.process == worker)
    assert (first.name, first.levelno, first.getMessage()) == (
        "tests.pool.carried",
        logging.INFO,
        "text and 7",
    )
    assert first.user == "somebody"  # type: ignore[attr-defined]
    assert (first.funcName, first.module) == ("log", "test_context_and_logs")
    assert second.getMessage() == "failed"
    assert second.exc_text is not None
    assert second.exc_text.endswith("LookupError: what went wrong")
    assert "in log\n" in second.exc_text
    assert (third.name, third.getMessage()) == ("root", "from the root")


def log_oddly() -> None:
    logger.warning("odd %s", "value", extra={"lock": threading.Lock()})
    thread = threading.Thread(target=logger.warning, args=("from a thread",))
    thread.start()
    thread.join()
    logger.warning("not %d", "a number")


@in_workers
async def test_odd_records(caplog: pytest.LogCaptureFixture) -> None:
    lines: list[str] = []
    async with open_pool(on_stderr=lines.append) as pool:
        await pool.run(log_oddly)
    odd = next(record for record in caplog.records if "odd" in record.message)
    assert "lock" in odd.lock  # type: ignore[attr-defined]
    assert "from a thread" in [record.message for record in caplog.records]
    # A record that cannot be formatted is told of on stderr, as everywhere.
    assert "--- Logging error ---" in lines


class OnlyThere:
    """What can be unpickled nowhere but where it was pickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _only_in, (os.getpid(),)

    def __repr__(self) -> str:
        return "only there"


def _only_in(pid: int) -> OnlyThere:
    if os.getpid() != pid:
        raise LookupError("it is not to be had here")
    return OnlyThere()


class BrokenRepr:
    """What can be neither pickled nor shown."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __repr__(self) -> str:
        raise LookupError


def log_what_cannot_travel() -> None:
    logger.warning("first", extra={"there": OnlyThere(), "user": {"name": "somebody"}})
    logger.warning("second", extra={"broken": BrokenRepr()})


@in_workers
async def test_extra_fields_cost_no_record(caplog: pytest.LogCaptureFixture) -> None:
    async with open_pool() as pool:
        await pool.run(log_what_cannot_travel)
    first, second = caplog.records
    assert (first.message, second.message) == ("first", "second")
    assert first.there == "only there"  # type: ignore[attr-defined]
    assert first.user == {"name": "somebody"}  # type: ignore[attr-defined]
    assert second.broken == "<a BrokenRepr whose repr raises LookupError>"  # type: ignore[attr-defined]


class FailingFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        raise LookupError("a filter that fails")


@in_workers
async def test_a_filter_that_fails_is_told_with_the_record(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = FailingFilter()
    logger.addFilter(failing)
    try:
        async with open_pool() as pool:
            await pool.run(log_what_cannot_travel)
    finally:
        logger.removeFilter(failing)
    assert caplog.records == []  # the session is not to complain
    told = capsys.readouterr().err
    assert told.count("LookupError: a filter that fails") == 2
    assert "Message: 'first'" in told


@pytest.mark.parametrize("start_method", START_METHODS)
@in_workers
async def test_loggers_set_up_at_import_reach_the_application(
    start_method: str, caplog: pytest.LogCaptureFixture
) -> None:
    logging_module.logger.addHandler(caplog.handler)
    lines: list[str] = []
    try:
        async with open_pool(
            start_method=start_method, preload=[logging_module.__name__], on_stderr=lines.append
        ) as pool:
            assert await pool.run(handlers_of_the_module) == []
            await pool.run(logging_module.log)
    finally:
        logging_module.logger.removeHandler(caplog.handler)
    assert [each.message for each in caplog.records] == ["from the task"]
    assert lines == []


def handlers_of_the_module() -> list[str]:
    return [repr(handler) for handler in logging_module.logger.handlers]


def log_often(count: int) -> None:
    for number in range(count):
        logger.warning("%d %s", number, "x" * 200)


@in_workers
async def test_a_flood_of_records_is_bounded_and_told_of(caplog: pytest.LogCaptureFixture) -> None:
    async with open_pool() as pool:
        await pool.run(log_often, 20_000)
        await pool.run(log_often, 1)
        await pool.run(log_often, 1)
    assert len(caplog.records) <= 20_003
    numbers = [int(each.message.split()[0]) for each in caplog.records if each.name == logger.name]
    assert numbers[-1] == 0
    if len(numbers) < 20_002:
        assert any("log records were lost" in record.message for record in caplog.records)


async def test_filters_and_levels_of_the_application_hold(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logging.getLogger("tests.pool.silent").setLevel(logging.CRITICAL)
    async with open_pool() as pool:
        logger.setLevel(logging.ERROR)  # after the workers were started
        try:
            await pool.run(log_often, 1)
        finally:
            logger.setLevel(logging.NOTSET)
        await pool.run(log)
        worker = pool.workers[0].pid
    names = [each.message for each in caplog.records if each.process == worker]
    assert names == ["failed", "from the root"]


def test_lost_records_are_told_of_with_the_next() -> None:
    posted: list[dict[str, Any]] = []
    room = False

    def post(record: bytes) -> bool:
        if room:
            posted.append(pickle.loads(record)[0])
        return room

    forwarder = logs.LogForwarder(post)
    record = logging.LogRecord("name", logging.INFO, __file__, 1, "text", None, None)
    for _ in range(3):
        forwarder.emit(record)
    room = True
    forwarder.emit(record)
    forwarder.emit(record)
    assert [fields["msg"].partition(":")[0] for fields in posted] == [
        "3 log records were lost",
        "text",
        "text",
    ]


def test_what_is_logged_about_an_exception_travels_as_text() -> None:
    posted: list[bytes] = []

    def post(record: bytes) -> bool:
        posted.append(record)
        return True

    forwarder = logs.LogForwarder(post)
    try:
        raise support.HoldingError
    except support.HoldingError:
        record = logging.LogRecord("n", logging.INFO, __file__, 1, "text", None, sys.exc_info())
    forwarder.emit(record)
    fields, _ = pickle.loads(posted[0])
    assert fields["exc_info"] is None
    assert fields["exc_text"].endswith("HoldingError: held")
    assert record.exc_info is not None  # it belongs to other handlers too


def test_levels_are_those_of_all_loggers_that_have_one() -> None:
    logging.getLogger("tests.pool.some").setLevel(logging.ERROR)
    levels = logs.logger_levels()
    assert levels["tests.pool.some"] == logging.ERROR
    assert levels[""] == logging.getLogger().level
    assert "tests.pool" not in levels
