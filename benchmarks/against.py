"""``python -m benchmarks.against REVISION``: this version beside an earlier one, in turns.

Both run the same lines of the benchmarks, in processes of their own; only the package differs.
"""

import argparse
import subprocess
import tarfile
import tempfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

from benchmarks.echo import sample_rates
from benchmarks.harness import ROOT, Settings, started
from benchmarks.peers import CORE
from benchmarks.report import Table, ratio

COMMANDS = {"sequential": 0.25, "in_flight": 0.25, "notify": 0.25}


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against", description=__doc__)
    parser.add_argument("revision", help="of this repository, as git names it")
    parser.add_argument("--rounds", type=int, default=25)
    arguments = parser.parse_args()
    settings = Settings(rounds=arguments.rounds, seconds=0.25)
    with tempfile.TemporaryDirectory() as directory:
        _extract(arguments.revision, Path(directory))
        then = replace(CORE, name=f"as of {arguments.revision}", root=Path(directory))
        with started((CORE, then), settings) as pairs:
            sample_rates(pairs, COMMANDS, settings.rounds)
            rows = [[pair.median(command) for command in COMMANDS] for pair in pairs]
    table = Table(
        f"medians of {settings.rounds} rounds in turns",
        ("", "p50 µs", "requests/s, 64 in flight", "notifications/s"),
        (".1f", ",.0f", ",.0f"),
    )
    table.add("now", *rows[0])
    table.add(then.name, *rows[1])
    table.add("now / then, in %", *(_percent(*both) for both in zip(*rows, strict=True)))
    table.print()


def _extract(revision: str, directory: Path) -> None:
    """The package as it was, beside the benchmarks as they are."""
    archive = subprocess.run(
        ["git", "archive", revision, "asyncipc"], cwd=ROOT, capture_output=True, check=True
    )
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
        files.extractall(directory, filter="data")
    (directory / "benchmarks").symlink_to(ROOT / "benchmarks")


def _percent(now: float | None, then: float | None) -> float | None:
    times = ratio(now, then)
    return None if times is None else 100 * times


if __name__ == "__main__":
    main()
