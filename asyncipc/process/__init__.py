"""Processes: children from their start to their end, their stderr, their bond to the parent."""
