"""Rules for MLPClassifier's hyperparameters, checked before torch is loaded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from sweep import hyperparameters as options
from sweep.config.file import show
from sweep.errors import must_be_one_of
from sweep.space.parameters import is_integer, is_number
from sweep.trial import HyperValue

NO_DEFAULT = object()
"""A trial must have a value."""


@dataclass(frozen=True, slots=True)
class Rule:
    """The legal values of one hyperparameter."""

    expected: str
    """To be read after "must be"."""
    is_legal: Callable[[HyperValue], bool]
    kinds: tuple[str, ...] = ("choices", "float", "int")
    """How a space may let it vary."""
    absent: object = NO_DEFAULT
    """The value of a trial without it: the default of MLPClassifier or torch."""
    words: Collection[str] = ()
    """The words to choose from, if it is a word."""

    def complaint(self, name: str, value: HyperValue) -> str | None:
        """One sentence for an illegal value, else None."""
        if self.is_legal(value):
            return None
        if self.words:
            return must_be_one_of(name, value, self.words)
        return f"{name} must be {self.expected}, but got {show(value)}"


def _number(
    expected: str, is_inside: Callable[[float], bool], absent: object = NO_DEFAULT, *,
    takes_null: bool = True,
) -> Rule:  # fmt: skip
    def is_legal(value: HyperValue) -> bool:
        return (takes_null and value is None) or (is_number(value) and is_inside(value))

    return Rule(expected + (" or null" if takes_null else ""), is_legal, absent=absent)


def _fraction(absent: float, *, takes_null: bool = True) -> Rule:
    return _number("a number in [0, 1)", lambda x: 0 <= x < 1, absent, takes_null=takes_null)


def _positive(absent: object, *, takes_null: bool = True) -> Rule:
    return _number("a number > 0", lambda x: x > 0, absent, takes_null=takes_null)


def _word(words: Collection[str], absent: object = NO_DEFAULT) -> Rule:
    return Rule("a word", lambda value: value in [*words], ("choices",), absent, words)


def _is_width(value: HyperValue) -> bool:
    return is_integer(value) and value >= 1


def _are_widths(value: HyperValue) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_width, value))


_FLAG = Rule(
    "true or false", lambda value: value is None or isinstance(value, bool), ("choices",), False
)

TRAINING_RULES: Mapping[str, Rule] = {
    "batch_size": Rule("a whole number >= 1", _is_width, ("choices", "int")),
}
"""Rules for any module: the trainer reads these."""

RULES: Mapping[str, Rule] = {
    "hidden": Rule("a list of whole numbers >= 1", _are_widths, ("choices", "widths")),
    "activation": _word(options.ACTIVATIONS, "relu"),
    "optimizer": _word(options.OPTIMIZERS),
    "schedule": _word(options.SCHEDULES, "constant"),
    "dropout": _fraction(0.0, takes_null=False),
    "lr": _positive(NO_DEFAULT, takes_null=False),
    "momentum": _fraction(0.0),
    "dampening": _fraction(0.0),
    "beta1": _fraction(0.9),
    "beta2": _fraction(0.999),
    "alpha": _fraction(0.99),
    "weight_decay": _number("a number >= 0", lambda x: x >= 0, 0.0),
    "eps": _positive(1e-8),
    "clip_norm": _positive(None),
    "nesterov": _FLAG,
    "centered": _FLAG,
    **TRAINING_RULES,
}
"""Rules of MLPClassifier; null means torch's default."""

ABSENT_MEANS: Mapping[str, HyperValue] = {
    name: rule.absent for name, rule in RULES.items() if rule.absent is not NO_DEFAULT
}
"""Values of absent hyperparameters."""
