"""Figures for people: tables, ratios, and what was asked against what was reached.

Above: the benchmarks. Below: nothing.
"""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

__all__ = ["Goal", "Table", "median", "print_goals", "ratio"]


def median(values: Sequence[float]) -> float:
    """The middle one; of an even number the mean of the middle two."""
    return statistics.median(values)


def ratio(value: float | None, base: float | None) -> float | None:
    """How many times ``base`` it is; None where either was not measured."""
    return None if value is None or not base else value / base


Cell: TypeAlias = str | float | None


@dataclass(slots=True)
class Table:
    """Rows under a title; ``formats`` are those of ``format()``, for all columns but the first."""

    title: str
    columns: Sequence[str]
    formats: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)

    def add(self, name: str, *cells: Cell) -> None:
        """Append a row; None is shown as empty."""
        shown = [
            cell if isinstance(cell, str) else "" if cell is None else format(cell, spec)
            for cell, spec in zip(cells, self.formats, strict=True)
        ]
        self.rows.append([name, *shown])

    def print(self) -> None:
        """Print it, the first column to the left, the figures to the right."""
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        print(f"\n{self.title}\n")
        for row in (self.columns, ["-" * width for width in widths], *self.rows):
            first, *figures = (
                cell.rjust(width) if position else cell.ljust(width)
                for position, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            print("  ".join([first, *figures]).rstrip())
        sys.stdout.flush()


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure that asyncipc is held to."""

    what: str
    reached: float | None
    at_least: float | None = None
    at_most: float | None = None
    unit: str = ""

    def __str__(self) -> str:
        bound, words = (
            (self.at_most, "at most") if self.at_least is None else (self.at_least, "at least")
        )
        asked = f"{self.what}: {words} {bound:g}{self.unit}"
        if self.reached is None:
            return f"  {'-':<8}{asked}; not measured"
        reached = f"{self.reached:.3g}" if abs(self.reached) < 1000 else f"{self.reached:.0f}"
        return f"  {'ok' if self.met else 'MISSED':<8}{asked}; reached {reached}{self.unit}"

    @property
    def met(self) -> bool:
        if self.reached is None:
            return False
        if self.at_least is not None:
            return self.reached >= self.at_least
        return self.at_most is not None and self.reached <= self.at_most


def print_goals(goals: Sequence[Goal]) -> None:
    """Print what was asked and what was reached."""
    print()
    for goal in goals:
        print(goal, flush=True)
