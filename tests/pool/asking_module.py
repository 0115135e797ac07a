"""A module that waits for an answer when it is imported where a pool imports ahead."""

import os

from tests.pool import support

if address := os.environ.get("ASYNCIPC_TEST_REPORTS"):
    support.ask(b"\0" + address.encode(), "imported")
