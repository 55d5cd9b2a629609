"""Dependencies between parameters: order, circles, conditions that exclude each other."""

from __future__ import annotations

from collections.abc import Mapping

from sweep import hyperparameters as options
from sweep.config.document import Faults, show
from sweep.errors import must_be_one_of
from sweep.space.parameters import Condition, Widths, same
from sweep.space.reading import Entry
from sweep.trial import HyperValue

Limits = dict[str, tuple[HyperValue, ...]]
"""Parameter name -> its possible values; other names are not limited."""


def check_conditions(entries: Mapping[str, Entry], faults: Faults) -> list[Entry]:
    """Every `when:` names a parameter and some of its values; no circles.

    Returns the entries with each one after those it depends on, else as written.
    """
    for entry in entries.values():
        for line, condition in entry.conditions:
            sentence = _condition_fault(condition, entries)
            if sentence:
                faults.add(line, f"{entry.name}: {sentence}")
    ordered: dict[str, Entry] = {}

    def place(name: str, path: list[str]) -> None:
        if name in path:
            circle = [*path[path.index(name) :], name]
            line = entries[name].conditions[0][0]
            faults.add(line, f"when must not go in a circle, but got {' -> '.join(circle)}")
        elif name in entries and name not in ordered:
            for _, condition in entries[name].conditions:
                place(condition.name, [*path, name])
            ordered[name] = entries[name]

    for name in entries:
        place(name, [])
    return list(ordered.values())


def _condition_fault(condition: Condition, entries: Mapping[str, Entry]) -> str | None:
    parent = entries.get(condition.name)
    if parent is None:
        return must_be_one_of("a name under when", condition.name, entries)
    if parent.kind == "fixed":
        value = parent.points[0][1] if parent.points else None
        if parent.points and not any(same(value, v) for v in condition.values):
            return f"when {condition.name} can never hold: it is fixed to {show(value)}"
        return None
    if parent.parameter is None:
        return None
    is_list = isinstance(parent.parameter, Widths)
    if is_list or parent.parameter.n_values() is None:
        kind = "a list" if is_list else "continuous"
        return f"when can name choices, whole numbers and steps, but {condition.name} is {kind}"
    strange = [value for value in condition.values if not parent.parameter.contains(value)]
    return f"when: {parent.parameter.complaint(strange[0])}" if strange else None


def limits_of(name: str, entries: Mapping[str, Entry]) -> Limits:
    """Demands of its own `when:` and those of its ancestors, while `name` is active."""
    limits: Limits = {}
    for _, condition in entries[name].conditions:
        _narrow(limits, {condition.name: condition.values})
        _narrow(limits, limits_of(condition.name, entries))
    return limits


def _narrow(limits: Limits, others: Limits) -> None:
    for name, values in others.items():
        if name in limits:
            values = tuple(v for v in limits[name] if any(same(v, w) for w in values))
        limits[name] = values


def check_reachable(entries: Mapping[str, Entry], faults: Faults) -> None:
    """A parameter whose conditions exclude each other would never be active."""
    for entry in entries.values():
        if any(not values for values in limits_of(entry.name, entries).values()):
            line = entry.conditions[0][0]
            faults.add(
                line, f"{entry.name} can never be active: its conditions exclude each other"
            )


def check_optimizer_arguments(entries: Mapping[str, Entry], faults: Faults) -> None:
    """An argument such as momentum is active only with optimizers that take it."""
    optimizers = _optimizers(entries)
    for name in options.OPTIMIZER_ARGUMENTS:
        if name not in entries:
            continue
        takers = [o for o, record in options.OPTIMIZERS.items() if name in record.arguments]
        possible = limits_of(name, entries).get("optimizer", optimizers)
        strangers = [o for o in optimizers if o in possible and o not in takers]
        if strangers:
            faults.add(entries[name].line, _guard(entries[name], strangers, takers, optimizers))
    _check_nesterov(entries, faults)


def _optimizers(entries: Mapping[str, Entry]) -> list[str]:
    """The optimizers a trial can have; MLPClassifier's default is SGD."""
    if "optimizer" not in entries:
        return ["SGD"]
    return [value for _, value in entries["optimizer"].points]


def _guard(entry: Entry, strangers: list[str], takers: list[str], optimizers: list[str]) -> str:
    name = entry.name
    text = f"{name} must be active only with an optimizer that takes it, but could be with "
    text += ", ".join(strangers)
    usable = [optimizer for optimizer in optimizers if optimizer in takers]
    if not usable:
        return f"{text} (only {', '.join(takers)} takes {name})"
    guard = f"when: {{optimizer: [{', '.join(usable)}]}}"
    if entry.kind == "fixed":
        value = show(entry.points[0][1])
        return f"{text}: move it to 'parameters' as {{choices: [{value}], {guard}}}"
    return f"{text}: add '{guard}'"


def _check_nesterov(entries: Mapping[str, Entry], faults: Faults) -> None:
    """torch.optim.SGD refuses nesterov=True without momentum, or with dampening."""
    nesterov = entries.get("nesterov")
    if nesterov is None or not any(value is True for _, value in nesterov.points):
        return
    text = "nesterov: true needs a momentum above 0 whenever it is active"
    momentum = entries.get("momentum")
    if momentum is None or any(not value for _, value in momentum.points):
        faults.add(nesterov.line, f"{text}, but momentum can be 0 or is missing")
    elif not _implies(limits_of("nesterov", entries), limits_of("momentum", entries)):
        faults.add(nesterov.line, f"{text}: give it momentum's 'when' too")
    if "dampening" in entries and any(value for _, value in entries["dampening"].points):
        faults.add(nesterov.line, "nesterov: true needs dampening 0: leave dampening out")


def _implies(inner: Limits, outer: Limits) -> bool:
    """Whether whatever meets `inner` meets `outer`."""
    return all(
        name in inner and all(any(same(v, w) for w in values) for v in inner[name])
        for name, values in outer.items()
    )
