"""What an application and its workers say to each other, on top of requests and answers.

Layer 4, inside the pool: below all that speaks.
"""

from typing import Final

__all__ = ["BUNDLE", "FAILURE", "GIVEN_UP", "MAP", "RESULT", "RUN", "STREAM"]

# The methods of a worker. (Not names that a service may have for its own methods.) The first
# parameter is a function's pickle; behind it stand, as `payload.dump` makes them, the arguments of
# one call, or the items of many.
RUN: Final = "asyncipc/run"
MAP: Final = "asyncipc/map"
STREAM: Final = "asyncipc/stream"

# Calls that travel together: a slot of the ledger, and then the parameters of each.
BUNDLE: Final = "asyncipc/bundle"

# How an answer begins: with this and the seconds it took. Behind it stands a value as `dump` makes
# it, or what `dump_failure` makes. (Of a bundle: see `asyncipc.pool.bundle_runner`.)
RESULT: Final = 0
FAILURE: Final = 1

# What else may have become of a task in a bundle: it was given up before it could begin.
GIVEN_UP: Final = 2
