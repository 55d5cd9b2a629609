"""Rules for MLPClassifier's hyperparameters, checked before torch is loaded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from sweep import hyperparameters as options
from sweep.config.document import show
from sweep.errors import must_be_one_of
from sweep.space.parameters import is_integer, is_number
from sweep.trial import HyperValue

VOCABULARY: tuple[str, ...] = (*options.MODEL_ARGUMENTS, *options.TRAINING_ARGUMENTS)
"""Hyperparameters of MLPClassifier and of the trainer."""


@dataclass(frozen=True, slots=True)
class Rule:
    """The legal values of one hyperparameter."""

    expected: str
    """To be read after "must be"."""
    is_legal: Callable[[HyperValue], bool]
    kinds: tuple[str, ...] = ("choices", "float", "int")
    """How a space may let it vary."""
    words: tuple[str, ...] = ()
    """The words it may be, if it is a word."""

    def complaint(self, name: str, value: HyperValue) -> str | None:
        """One sentence for an illegal value, else None."""
        if self.is_legal(value):
            return None
        if self.words:
            return must_be_one_of(name, value, self.words)
        return f"{name} must be {self.expected}, but got {show(value)}"


def _number(expected: str, is_inside: Callable[[float], bool], or_null: bool = True) -> Rule:
    def is_legal(value: HyperValue) -> bool:
        return (or_null and value is None) or (is_number(value) and is_inside(value))

    return Rule(expected + (" or null" if or_null else ""), is_legal)


def _word(words: tuple[str, ...]) -> Rule:
    return Rule("a word", lambda value: value in words, ("choices",), words)


def _is_width(value: HyperValue) -> bool:
    return is_integer(value) and value >= 1


def _are_widths(value: HyperValue) -> bool:
    return isinstance(value, list | tuple) and all(_is_width(width) for width in value)


_FRACTION = _number("a number in [0, 1)", lambda x: 0 <= x < 1)
_NOT_NEGATIVE = _number("a number >= 0", lambda x: x >= 0)
_POSITIVE = _number("a number > 0", lambda x: x > 0)
_FLAG = Rule("true or false", lambda value: value is None or isinstance(value, bool), ("choices",))

TRAINING_RULES: Mapping[str, Rule] = {
    "batch_size": Rule("a whole number >= 1", _is_width, ("choices", "int")),
}
"""Rules for any module: the trainer reads these."""

RULES: Mapping[str, Rule] = {
    **TRAINING_RULES,
    "hidden": Rule("a list of whole numbers >= 1", _are_widths, ("choices", "widths")),
    "activation": _word(tuple(options.ACTIVATIONS)),
    "optimizer": _word(tuple(options.OPTIMIZERS)),
    "schedule": _word(options.SCHEDULES),
    "dropout": _number("a number in [0, 1)", lambda x: 0 <= x < 1, or_null=False),
    "lr": _number("a number > 0", lambda x: x > 0, or_null=False),
    "momentum": _FRACTION,
    "dampening": _FRACTION,
    "beta1": _FRACTION,
    "beta2": _FRACTION,
    "alpha": _FRACTION,
    "weight_decay": _NOT_NEGATIVE,
    "eps": _POSITIVE,
    "clip_norm": _POSITIVE,
    "nesterov": _FLAG,
    "centered": _FLAG,
}
"""Rules of MLPClassifier; null means torch's default."""


def is_own(vocabulary: Collection[str] | None) -> bool:
    """Whether the names are exactly those of MLPClassifier and the trainer."""
    return vocabulary is not None and set(vocabulary) == set(VOCABULARY)


def rules_for(vocabulary: Collection[str] | None) -> Mapping[str, Rule]:
    """RULES for MLPClassifier's vocabulary, else TRAINING_RULES."""
    return RULES if is_own(vocabulary) else TRAINING_RULES
