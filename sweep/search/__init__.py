"""Who decides: the study from beginning to end, the driver, samplers and pruners."""
