"""Trials of different widths in one tensor operation."""
