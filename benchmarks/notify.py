"""Notifications one way, confirmed at the end by a request, beside requests with 64 in flight."""

from benchmarks.echo import sample_rates
from benchmarks.harness import Settings, started
from benchmarks.peers import JSON_LINES, PLAIN_HANDLER
from benchmarks.report import Goal, Table, print_goals, ratio

__all__ = ["run"]


def run(settings: Settings) -> None:
    """Measure, and print the table."""
    with started((PLAIN_HANDLER, JSON_LINES), settings) as pairs:
        sample_rates(
            pairs, {"in_flight": settings.seconds, "notify": settings.seconds}, settings.rounds
        )
    table = Table(
        "notifications one way, the last one confirmed",
        ("", "notifications/s", "requests/s, 64 in flight", "ratio"),
        (",.0f", ",.0f", ".2f"),
    )
    for pair in pairs:
        notifications, requests = pair.median("notify"), pair.median("in_flight")
        times = ratio(notifications, requests)
        table.add(pair.subject.name, notifications, requests, times)
        if pair.subject is PLAIN_HANDLER:
            goal = Goal("notifications, to requests", times, 2.5, unit=" x")
    table.print()
    if any(pair.subject is PLAIN_HANDLER for pair in pairs):
        print_goals([goal])
