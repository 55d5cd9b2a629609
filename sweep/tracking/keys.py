"""Names and values in MLflow's form: no record is refused for its content.

MLflow refuses a whole batch for one key: a character outside of letters, digits and `_ . / -` and
blank, a key read by a file system as another path (`/acc`, `a//b`, `a/../b`), or one of
more than 250 characters. Free of mlflow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from sweep.trial import HyperValue

DROPPED_TAG = "sweep.checkpoint_dropped"
"""On the run of a trial whose checkpoint and model are not kept."""

MAX_KEY, MAX_NAME = 250, 250
MAX_PARAM, MAX_TAG = 6000, 5000
"""Longest values in characters: MLflow 3 takes tags of 8000, older servers 5000."""

SYSTEM = "system/"
"""Prefix of bookkeeping metrics: MLflow draws their charts on a page of their own."""

_NOT_IN_KEYS = re.compile(r"[^\w./ -]")
_SURROGATES_AND_NUL = re.compile("[\ud800-\udfff\x00]")


def plain_key(name: str) -> str:
    """`name` as a key for MLflow; two names may share one.

    >>> plain_key("/acc"), plain_key("val//f1"), plain_key("recall@5"), plain_key("..")
    ('acc', 'val/f1', 'recall_5', '__')
    """
    parts = _NOT_IN_KEYS.sub("_", clean(name)).split("/")
    parts = [part.replace(".", "_") if set(part) == {"."} else part for part in parts if part]
    return "/".join(parts)[:MAX_KEY].rstrip("/") or "_"


def distinct(names: Iterable[str], taken: Mapping[str, str] | None = None) -> dict[str, str]:
    """Name -> key, for `names` and those of `taken`.

    A valid key goes to the name equal to it, before names to be changed; of two names with one
    key, the later one gets a number: `recall_5`, `recall_5_2`.
    """
    keys = dict(taken or {})
    used = set(keys.values())
    new = {name for name in names if name not in keys}
    for name in sorted(new, key=lambda name: (plain_key(name) != name, name)):
        key, n = plain_key(name), 1
        unique = key
        while unique in used:
            n += 1
            unique = f"{key[: MAX_KEY - len(str(n)) - 1]}_{n}"
        keys[name] = unique
        used.add(unique)
    return keys


def metric_keys(metric: str) -> dict[str, str]:
    """Keys of a trial's objective and of its best value."""
    keys = distinct([metric], {"epoch_s": f"{SYSTEM}epoch_s"})
    return {**keys, "\0best": best_key(metric)}


def best_key(metric: str) -> str:
    """The key of the objective's best value: `best_val_acc`."""
    return plain_key(f"best_{plain_key(metric)}")


def flat_params(*tables: Mapping[str, Any]) -> dict[str, str]:
    """One table of strings out of nested ones; of equal names the first one counts.

    >>> flat_params({"lr": 0.001, "hidden": (256, 64), "data": {"name": "digits"}})
    {'lr': '0.001', 'hidden': '256-64', 'data.name': 'digits'}
    """
    flat: dict[str, str] = {}
    for table in tables:
        for name, value in _leaves(table):
            flat.setdefault(name, shown(value))
    keys = distinct(flat)
    return {keys[name]: clean(value)[:MAX_PARAM] for name, value in flat.items()}


def _leaves(table: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def trial_params(
    hyperparameters: Mapping[str, Any], params: Mapping[str, Any], fixed: Mapping[str, Any]
) -> dict[str, str]:
    """A trial's parameters for MLflow's table.

    A list is one parameter (`hidden`) and, if the space varies it, its length
    (`hidden.n_layers`); `fixed` holds the parameters of all trials.
    """
    lists = {name for name, value in hyperparameters.items() if isinstance(value, list | tuple)}
    wanted = {name: value for name, value in params.items() if not _is_part(name, lists)}
    return flat_params(hyperparameters, wanted, fixed)


def _is_part(name: str, lists: set[str]) -> bool:
    """Whether Optuna's parameter `name` is one element of a list: `hidden.0`."""
    above, _, index = name.rpartition(".")
    return above in lists and index.isdigit()


def tags(values: Mapping[str, Any]) -> dict[str, str]:
    """Tags with keys and values for MLflow; two keys stay two keys."""
    keys = distinct(values)
    return {keys[name]: clean(str(value))[:MAX_TAG] for name, value in values.items()}


def shown(value: HyperValue) -> str:
    """A hyperparameter as one reads it: a list of widths is joined by "-"."""
    if isinstance(value, list | tuple):
        return "-".join(shown(item) for item in value) or "none"
    return str(value)


def clean(text: str) -> str:
    """`text` without NUL and lone surrogates: a database cannot hold them."""
    return _SURROGATES_AND_NUL.sub("\ufffd", text)


def renamed(names: Iterable[str]) -> list[str]:
    """One sentence for each of `names` unfit for MLflow."""
    return [
        f"MLflow cannot keep the name {short_name(name)!r}: it is {short_name(plain_key(name))!r} "
        "there (numbered where another name is that already)"
        for name in sorted(names)
        if plain_key(name) != name
    ]


def short_name(name: str) -> str:
    """At most 40 characters of a name, for a message."""
    return name if len(name) <= 40 else f"{name[:37]}..."


def trial_number(tags: Mapping[str, str]) -> int | None:
    """The trial number in a run's tags, or None: the tag is gone or was edited."""
    text = tags.get("sweep.trial", "")
    return int(text) if text.isascii() and text.isdigit() else None
