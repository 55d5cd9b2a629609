"""Trials in C on a CPU: one call a minibatch."""
