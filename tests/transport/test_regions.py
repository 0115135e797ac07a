"""The allocator of regions: checked against a model that knows every page."""

import mmap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncipc.transport.regions import PAGE, HeldPages, Regions
from tests.programs import run

PAGES = 20


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 8 * PAGE)), max_size=60))
def test_regions_never_overlap_and_none_is_lost(steps: list[tuple[bool, int]]) -> None:
    regions = Regions(PAGES * PAGE)
    owner: list[int | None] = [None] * PAGES  # of each page: the offset of its region
    for takes, number in steps:
        if takes:
            wanted = -(-number // PAGE)
            offset = regions.take(number)
            if offset is None:
                free = "".join("f" if page is None else "t" for page in owner)
                assert "f" * wanted not in free
                continue
            first = offset // PAGE
            assert offset % PAGE == 0
            assert owner[first : first + wanted] == [None] * wanted
            owner[first : first + wanted] = [offset] * wanted
        elif taken := sorted({page for page in owner if page is not None}):
            offset = taken[number % len(taken)]
            regions.give_back(offset)
            owner = [None if page == offset else page for page in owner]
        assert regions.used == PAGE * sum(page is not None for page in owner)
    for offset in {page for page in owner if page is not None}:
        regions.give_back(offset)
    assert regions.take(PAGES * PAGE) == 0  # it has all grown together again


def test_first_fit() -> None:
    regions = Regions(4 * PAGE)
    assert [regions.take(1), regions.take(PAGE), regions.take(PAGE + 1)] == [0, PAGE, 2 * PAGE]
    assert regions.take(1) is None
    regions.give_back(0)
    assert regions.take(PAGE) == 0


def test_pages_are_those_of_the_machine() -> None:
    """There are machines with larger ones than this."""
    code = """
import mmap
mmap.PAGESIZE = 65536
from asyncipc.transport.regions import PAGE, Regions
regions = Regions(4 * PAGE)
assert [regions.take(1), regions.take(1)] == [0, 65536]
"""
    assert PAGE % mmap.PAGESIZE == 0
    finished = run("-c", code)
    assert (finished.stderr, finished.returncode) == ("", 0)


def test_only_what_was_taken_is_given_back() -> None:
    regions = Regions(4 * PAGE)
    offset = regions.take(PAGE)
    assert offset == 0
    regions.give_back(offset)
    for wrong in (offset, PAGE, 17):
        with pytest.raises(KeyError):
            regions.give_back(wrong)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, PAGES - 1), st.integers(1, 5))))
def test_pages_are_held_by_one_region(steps: list[tuple[bool, int, int]]) -> None:
    pages = HeldPages()
    holder: dict[int, int] = {}  # of each page
    for number, (holds, first, count) in enumerate(steps):
        if holds:
            wanted = range(first, first + count)
            other = pages.hold(number, first * PAGE, count * PAGE - 1)
            assert (other is None) == holder.keys().isdisjoint(wanted)
            assert other is None or other in {holder.get(page) for page in wanted}
            if other is None:
                holder.update(dict.fromkeys(wanted, number))
        elif holder:
            region = sorted(holder.values())[first % len(holder)]
            pages.let_go(min(page for page in holder if holder[page] == region) * PAGE)
            holder = {page: other for page, other in holder.items() if other != region}
