"""Files that survive a kill: a trial's folder, the user's cache."""
