"""Who gets the next task: the rules by which workers are picked, and the states they go through."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncipc.pool.roster import Roster, Seat, WorkerState

READY, PAUSED, RETIRING, ENDED = (
    WorkerState.READY,
    WorkerState.PAUSED,
    WorkerState.RETIRING,
    WorkerState.ENDED,
)


def ready_seat(limit: int | None = None) -> Seat:
    seat = Seat(limit)
    seat.become(READY)
    return seat


def roster_of(count: int, concurrency: int = 1, limit: int | None = None) -> Roster:
    roster = Roster(concurrency, count)
    roster.seats.extend(ready_seat(limit) for _ in range(count))
    return roster


def place(roster: Roster, *, exclusive: bool = True, ahead: int = 0) -> Seat | None:
    """Pick a seat for a task, and let it have that."""
    seat = roster.pick(exclusive=exclusive, ahead=ahead)
    if seat is not None:
        seat.take(exclusive=exclusive, quick=ahead > 0)
    return seat


# -- states ------------------------------------------------------------------------------------

WAYS = {
    WorkerState.STARTING: {READY, RETIRING, ENDED},
    READY: {PAUSED, RETIRING, ENDED},
    PAUSED: {READY, RETIRING, ENDED},
    RETIRING: {READY, ENDED},
    ENDED: set(),
}


def seat_in(state: WorkerState) -> Seat:
    seat = Seat()
    for step in {READY: [READY], PAUSED: [READY, PAUSED]}.get(state, [state]):
        if step is not WorkerState.STARTING:
            seat.become(step)
    return seat


@pytest.mark.parametrize(("before", "after"), list(itertools.product(WorkerState, WorkerState)))
def test_the_life_of_a_worker(before: WorkerState, after: WorkerState) -> None:
    seat = seat_in(before)
    if after in WAYS[before]:
        seat.become(after)
        assert seat.state is after
    else:
        with pytest.raises(ValueError, match=f"is {before.value} cannot become {after.value}"):
            seat.become(after)
        assert seat.state is before
    assert seat.takes_tasks is (seat.state is READY)


# -- picking -----------------------------------------------------------------------------------


def test_an_idle_worker_is_picked_before_all_others() -> None:
    roster = roster_of(3)
    picked = [place(roster, ahead=32) for _ in range(3)]
    assert picked == roster.seats
    roster.seats[1].leave(quick=True)
    assert place(roster, ahead=32) is roster.seats[1]


def test_nobody_is_picked_where_all_are_busy() -> None:
    assert place(Roster(1, 1)) is None
    roster = roster_of(2)
    assert place(roster) is not None
    assert place(roster) is not None
    assert place(roster) is None
    roster.seats[0].leave(quick=False)
    assert place(roster) is roster.seats[0]


def test_only_workers_that_are_ready_are_picked() -> None:
    roster = Roster(4, len(WorkerState))
    roster.seats.extend(seat_in(state) for state in WorkerState)
    assert [place(roster), place(roster)] == [roster.seats[list(WorkerState).index(READY)], None]
    for state in (PAUSED, RETIRING):
        roster = roster_of(1)
        roster.seats[0].become(state)
        assert place(roster) is None
        assert place(roster, exclusive=False) is None


def test_a_worker_that_is_dead_gets_nothing_whatever_its_state() -> None:
    roster = roster_of(2)
    roster.seats[0].is_doomed = True
    assert place(roster) is roster.seats[1]
    assert place(roster, ahead=32) is None
    assert roster.least_loaded() is roster.seats[1]


def test_a_worker_that_has_had_all_it_may_have_gets_nothing() -> None:
    roster = roster_of(1, limit=3)
    for _ in range(3):
        seat = place(roster)
        assert seat is not None
        seat.leave(quick=False)
    assert place(roster) is None


def test_tiny_tasks_wait_in_workers_evenly() -> None:
    roster = roster_of(2)
    count = 0
    while place(roster, ahead=3) is not None:
        count += 1
        loads = [seat.load for seat in roster.seats]
        assert max(loads) - min(loads) <= 1
    assert count == 2 * (1 + 3)


def test_nothing_waits_behind_what_may_take_long() -> None:
    roster = roster_of(1)
    assert place(roster) is not None
    assert place(roster, ahead=32) is None


def test_async_functions_share_a_worker_up_to_concurrency() -> None:
    roster = roster_of(2, concurrency=3)
    picked = [place(roster, exclusive=False) for _ in range(6)]
    assert sorted(picked.count(seat) for seat in roster.seats) == [3, 3]
    assert place(roster, exclusive=False) is None


def test_plain_and_async_functions_do_not_share_a_worker() -> None:
    roster = roster_of(1, concurrency=3)
    assert place(roster, exclusive=False) is not None
    assert place(roster, ahead=32) is None
    roster = roster_of(1, concurrency=3)
    assert place(roster, ahead=32) is not None
    assert place(roster, exclusive=False) is None


@given(
    concurrency=st.integers(1, 5),
    count=st.integers(1, 5),
    spares=st.integers(0, 3),
    limit=st.none() | st.integers(1, 10),
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("exclusive"), st.integers(0, 5)),
            st.tuples(st.just("shared"), st.just(0)),
            st.tuples(st.just("leave"), st.integers(0, 100)),
        )
    ),
)
def test_the_rules_hold_whatever_comes(
    concurrency: int, count: int, spares: int, limit: int | None, steps: list[tuple[str, int]]
) -> None:
    roster = roster_of(count + spares, concurrency, limit)
    roster.count = count
    running: list[tuple[Seat, bool, bool]] = []
    for step, number in steps:
        if step == "leave":
            if running:
                seat, _, quick = running.pop(number % len(running))
                seat.leave(quick=quick)
        else:
            exclusive = step == "exclusive"
            busy = sum(seat.load > 0 for seat in roster.seats)
            idle = [seat for seat in roster.seats if seat.takes_tasks and not seat.load]
            idle = idle if busy < count else []
            picked = place(roster, exclusive=exclusive, ahead=number)
            assert picked is not None or not idle
            if picked is not None:
                assert not idle or picked in idle
                running.append((picked, exclusive, number > 0))
        assert sum(seat.load > 0 for seat in roster.seats) <= count
        for seat in roster.seats:
            here = [(exclusive, quick) for one, exclusive, quick in running if one is seat]
            assert seat.load == len(here)
            assert seat.slow == sum(not quick for _, quick in here)
            assert len({exclusive for exclusive, _ in here}) <= 1  # all of a kind
            if here and here[0][0]:
                assert sum(not quick for _, quick in here) <= 1
            else:
                assert len(here) <= concurrency
            assert limit is None or seat.taken <= limit


# -- requests and resizing ---------------------------------------------------------------------


def test_requests_go_to_who_has_the_least_to_do() -> None:
    assert Roster(1, 1).least_loaded() is None
    roster = roster_of(3)
    place(roster)
    assert roster.least_loaded() is roster.seats[1]
    place(roster)
    assert roster.least_loaded() is roster.seats[2]
    place(roster)
    assert roster.least_loaded() is not None  # none needs a worker to itself
    for seat in roster.seats:
        seat.become(PAUSED)
    assert roster.least_loaded() is None


def test_requests_keep_clear_of_plain_functions() -> None:
    roster = roster_of(2)
    place(roster)
    roster.seats[1].requests = 5
    assert roster.least_loaded() is roster.seats[1]  # its loop is free to take one more
    roster = roster_of(2, concurrency=3)
    for _ in range(2):
        place(roster, exclusive=False)
    roster.seats[1].requests = 5
    assert roster.least_loaded() is roster.seats[0]


def test_tasks_keep_clear_of_requests() -> None:
    roster = roster_of(3)
    roster.seats[0].requests = 2
    roster.seats[1].requests = 1
    assert place(roster) is roster.seats[2]
    assert place(roster) is roster.seats[1]  # which may answer in between
    assert place(roster) is roster.seats[0]


def test_nothing_goes_behind_a_request_that_is_overdue() -> None:
    roster = roster_of(2)
    for seat in roster.seats:
        seat.requests = seat.overdue = 1
    assert place(roster) is roster.least_loaded() is None
    roster.seats[1].requests = roster.seats[1].overdue = 0
    assert place(roster) is roster.seats[1]


def test_surplus_workers_are_those_with_the_least_to_do() -> None:
    roster = roster_of(4)
    place(roster)
    roster.seats[1].become(RETIRING)
    for count, surplus in {
        99: [],
        3: [],
        1: roster.seats[2:],
        0: [*roster.seats[2:], roster.seats[0]],
    }.items():
        roster.count = count
        assert roster.to_retire() == surplus


def test_surplus_workers_are_taken_back_where_they_are_needed_again() -> None:
    roster = roster_of(4)
    for seat in roster.seats[1:]:
        seat.become(RETIRING)
    for seat in roster.seats[2:]:
        seat.is_surplus = True
    assert roster.to_keep() == roster.seats[2:]
    roster.count = 2
    assert roster.to_keep() == [roster.seats[2]]
    roster.seats[2].is_doomed = True
    assert roster.to_keep() == [roster.seats[3]]
    roster.count = 1
    assert roster.to_keep() == []


def test_a_worker_that_is_replaced_is_not_counted_twice() -> None:
    roster = roster_of(3)
    roster.seats[0].is_replaced = True
    assert roster.present == 2
    roster.count = 1
    assert roster.to_retire() == [roster.seats[1]]


# -- replacements ------------------------------------------------------------------------------


def test_a_replacement_waits_until_its_predecessor_has_nothing_to_do() -> None:
    roster = roster_of(2)
    roster.count = 1
    old, new = roster.seats
    assert place(roster) is old
    old.become(RETIRING)
    assert place(roster) is None
    assert place(roster, exclusive=False) is None
    old.leave(quick=False)
    assert place(roster) is new


def test_nobody_waits_for_a_predecessor_that_was_killed() -> None:
    roster = roster_of(2)
    roster.count = 1
    old, new = roster.seats
    assert place(roster) is old
    old.is_doomed = True
    assert place(roster) is None
    old.is_killed = True
    assert place(roster) is new


def test_a_predecessor_is_used_to_its_end() -> None:
    roster = roster_of(2, limit=2)
    roster.count = 1
    old, new = roster.seats
    for seat in (old, old, new):
        assert place(roster) is seat
        seat.leave(quick=False)


def test_async_functions_move_to_the_replacement_when_the_last_has_ended() -> None:
    roster = roster_of(2, concurrency=3, limit=2)
    roster.count = 1
    old, new = roster.seats
    assert [place(roster, exclusive=False) for _ in range(3)] == [old, old, None]
    old.leave(quick=False)
    assert place(roster, exclusive=False) is None
    old.leave(quick=False)
    assert [place(roster, exclusive=False) for _ in range(3)] == [new, new, None]
