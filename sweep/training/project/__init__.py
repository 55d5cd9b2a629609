"""The user's project in a worker: module, data and Trainer settings, built anew for each trial."""
