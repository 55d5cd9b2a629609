"""Files written atomically: a trial's folder, the user's cache."""
