"""Search spaces: YAML -> Optuna distributions; conditions; duplicates.

The way of a file: `catalog` finds and reads it, `document` turns YAML into nodes with lines,
`reading` a node into a parameter, `rules` and `conditions` check what they mean together,
`parser` puts the `definition.Space` together. Optuna is loaded only by `Space.distributions`.
"""

from sweep.space.catalog import SpaceInfo, list_spaces, load_space, spaces_dir
from sweep.space.definition import Problem, Space, sample
from sweep.space.naming import canonical_key, run_name, short
from sweep.space.parameters import Choices, Condition, Parameter, Range, Widths
from sweep.space.parser import parse_space
from sweep.space.rules import VOCABULARY

__all__ = [
    "VOCABULARY",
    "Choices",
    "Condition",
    "Parameter",
    "Problem",
    "Range",
    "Space",
    "SpaceInfo",
    "Widths",
    "canonical_key",
    "list_spaces",
    "load_space",
    "parse_space",
    "run_name",
    "sample",
    "short",
    "spaces_dir",
]
