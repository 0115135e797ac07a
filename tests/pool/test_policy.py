"""The numbers by which a pool decides: how much waits in a worker, pauses, chunks, limits."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncipc.pool.policy import (
    AHEAD,
    CHUNK_BYTES,
    CHUNK_GROWTH,
    CHUNK_TIME,
    CHUNKS_PER_WORKER,
    FIRST_PAUSE,
    LONGEST_PAUSE,
    MAX_AHEAD,
    MAX_CHUNK,
    MAX_FUNCTIONS,
    Backoff,
    ChunkSizer,
    Durations,
    task_limit,
)

seconds = st.floats(0, 1e6, allow_nan=False)


# -- durations ---------------------------------------------------------------------------------


def test_nothing_waits_behind_what_is_not_known() -> None:
    assert Durations().ahead(b"function") == 0


def test_something_waits_behind_what_is_fast() -> None:
    durations = Durations()
    durations.note(b"fast", AHEAD / 4)
    durations.note(b"slow", AHEAD * 2)
    durations.note(b"tiny", 0.0)
    assert durations.ahead(b"fast") in {3, 4}
    assert durations.ahead(b"slow") == 0
    assert durations.ahead(b"tiny") == MAX_AHEAD


def test_one_slow_run_is_remembered_for_a_while() -> None:
    durations = Durations()
    durations.note(b"function", 100 * AHEAD)
    runs = 0
    while not durations.ahead(b"function"):
        durations.note(b"function", 0.0)
        runs += 1
    assert 10 < runs < 100
    durations.note(b"function", 100 * AHEAD)
    assert durations.ahead(b"function") == 0


@given(st.lists(seconds, min_size=1))
def test_what_waits_is_work_of_a_moment(runs: list[float]) -> None:
    durations = Durations()
    for run in runs:
        durations.note(b"function", run)
    ahead = durations.ahead(b"function")
    assert 0 <= ahead <= MAX_AHEAD
    assert ahead * runs[-1] <= AHEAD


def test_no_more_functions_are_remembered_than_a_program_has() -> None:
    durations = Durations()
    for number in range(3 * MAX_FUNCTIONS):
        durations.note(b"%d" % number, AHEAD / 2)
    known = sum(durations.ahead(b"%d" % number) > 0 for number in range(3 * MAX_FUNCTIONS))
    assert 0 < known <= MAX_FUNCTIONS
    assert durations.ahead(b"%d" % (3 * MAX_FUNCTIONS - 1)) > 0


# -- backoff -----------------------------------------------------------------------------------


def test_the_first_replacement_starts_at_once_and_the_others_ever_later() -> None:
    backoff = Backoff()
    pauses = [backoff.failed() for _ in range(50)]
    assert pauses[:4] == [0, FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE
    assert backoff.failures == 50
    backoff.succeeded()
    assert backoff.failures == 0
    assert backoff.failed() == 0


def test_workers_that_never_come_up_cost_no_crash_loop() -> None:
    backoff = Backoff()
    attempts, time = 0, 0.0
    while time < 60:
        time += backoff.failed()
        attempts += 1
    assert attempts <= 12
    for _ in range(5000):  # however long it goes on
        assert backoff.failed() <= LONGEST_PAUSE


# -- chunks ------------------------------------------------------------------------------------


def test_one_item_until_more_is_known() -> None:
    sizer = ChunkSizer(2)
    assert sizer.size == 1
    assert not sizer.is_informed
    sizer.note(1, CHUNK_TIME)
    assert sizer.is_informed
    assert sizer.size == 1


@pytest.mark.parametrize("item", [1e-6, 1e-5, 1e-4, 1e-3, 1e-1])
def test_chunks_come_to_take_as_long_as_they_should(item: float) -> None:
    sizer = ChunkSizer(2)
    for _ in range(10):
        sizer.note(sizer.size, sizer.size * item)
    expected = max(1, min(MAX_CHUNK, CHUNK_TIME / item))
    assert math.isclose(sizer.size, expected, abs_tol=1)


def test_chunks_shrink_where_items_get_slower() -> None:
    sizer = ChunkSizer(2)
    for _ in range(5):
        sizer.note(sizer.size, sizer.size * 1e-6)
    assert sizer.size > 1000
    sizer.note(sizer.size, 10.0)
    assert sizer.size == 1


def test_chunks_of_large_items_are_small() -> None:
    sizer = ChunkSizer(2)
    for _ in range(5):
        sizer.note(sizer.size, sizer.size * 1e-6)
    most = sizer.size
    sizer.weigh(1, 2**18)
    assert sizer.size == CHUNK_BYTES // 2**18 - 1
    sizer.weigh(3, 3 * CHUNK_BYTES)
    assert sizer.size == 1
    sizer.weigh(1, 10)
    assert sizer.size == most


@given(
    workers=st.integers(1, 64),
    total=st.none() | st.integers(0, 10**6),
    runs=st.lists(st.tuples(st.integers(1, MAX_CHUNK), seconds)),
)
def test_chunks_stay_within_their_bounds(
    workers: int, total: int | None, runs: list[tuple[int, float]]
) -> None:
    sizer = ChunkSizer(workers, total)
    for items, time in runs:
        sizer.note(items, time)
        assert 1 <= sizer.size <= min(MAX_CHUNK, items * CHUNK_GROWTH)
        if total is not None:
            assert sizer.size <= max(1, total / (workers * CHUNKS_PER_WORKER))


# -- limits ------------------------------------------------------------------------------------


def test_workers_have_no_limit_of_tasks_unless_there_is_one() -> None:
    assert task_limit(None) is None


@given(st.integers(1, 2**40), st.floats(0, 1, exclude_max=True))
def test_limits_of_tasks_differ_by_a_tenth(max_tasks: int, drawn: float) -> None:
    limit = task_limit(max_tasks, lambda: drawn)
    assert limit is not None
    assert max(1, 0.9 * max_tasks - 1) <= limit <= max_tasks


def test_limits_of_tasks_are_drawn() -> None:
    assert len({task_limit(1000) for _ in range(100)}) > 10
