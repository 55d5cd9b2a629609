"""One rule for kept checkpoints: while a search runs, and for `sweep gc`."""
