"""``multiprocessing.Pipe(duplex=False)``, one for each direction."""

from benchmarks.peers import multiprocessing_pipe


def client(path: str) -> None:
    """Over pipes instead of a socketpair."""
    multiprocessing_pipe.client(path, duplex=False)
