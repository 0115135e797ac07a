"""What the tests of the pool get."""

from collections.abc import Iterator

import pytest

from tests.pool.support import Reports


@pytest.fixture
def reports(nothing_is_left: None) -> Iterator[Reports]:
    with Reports() as reports:
        yield reports
