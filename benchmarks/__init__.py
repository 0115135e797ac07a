"""asyncipc side by side with what one would pick instead: same work, one run, one table."""
