"""Many trials in one worker: lanes of populations."""
