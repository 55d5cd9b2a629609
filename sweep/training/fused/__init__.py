"""Many MLPs at once in one worker, divided into populations."""
