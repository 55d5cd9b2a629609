"""Reuse: the best configuration of a study, in other forms, and trained downstream."""

from sweep.reuse.best import Best, find_trial
from sweep.reuse.recipe import Recipe, read_recipe

__all__ = ["Best", "Recipe", "find_trial", "read_recipe"]
