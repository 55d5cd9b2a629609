"""Search spaces: YAML -> Optuna distributions; conditions; duplicates.

The way of a file: `catalog` finds it, `reading` turns one name of it into a parameter whose values
obey `rules`, `conditions` checks how parameters depend on each other, `parser` puts the
`definition.Space` together. Optuna is loaded only by `Space.distributions`.
"""

from sweep.space.catalog import load_space, shipped_spaces, when_to_use
from sweep.space.definition import Space, sample
from sweep.space.naming import canonical_key, run_name, short
from sweep.space.parser import parse_space
from sweep.space.vary import values_of, with_changes

__all__ = [
    "Space",
    "canonical_key",
    "load_space",
    "parse_space",
    "run_name",
    "sample",
    "shipped_spaces",
    "short",
    "values_of",
    "when_to_use",
    "with_changes",
]
