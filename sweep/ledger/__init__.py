"""What lasts: the Optuna storage as sweep keeps it, and who may write it."""
