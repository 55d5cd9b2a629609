"""Honest scores: one estimator a file, each with its formula and its source."""
