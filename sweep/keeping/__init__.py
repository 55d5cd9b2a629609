"""Which checkpoints stay: while a search runs, and for `sweep gc`."""
