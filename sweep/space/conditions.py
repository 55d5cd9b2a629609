"""Dependencies between parameters: order, circles, conditions that exclude each other."""

from __future__ import annotations

from collections.abc import Mapping

from sweep import hyperparameters as options
from sweep.config.file import Faults, show
from sweep.errors import must_be_one_of
from sweep.space.parameters import Widths, among, complaint
from sweep.space.reading import Entry
from sweep.trial import HyperValue

Limits = dict[str, tuple[HyperValue, ...]]
"""Parameter name -> its possible values; other names are not limited."""


def check_conditions(entries: Mapping[str, Entry], faults: Faults) -> list[Entry]:
    """Every `when:` names a parameter and some of its values; no circles.

    Returns the entries with each one after those it depends on, else as written.
    """
    for entry in entries.values():
        for name, values in entry.when.items():
            if sentence := _condition_fault(name, values, entries):
                faults.add(entry.line_of_when(name), f"{entry.name}: {sentence}")
    ordered: dict[str, Entry] = {}

    def place(name: str, path: list[str]) -> None:
        if name in path:
            circle = [*path[path.index(name) :], name]
            line = entries[name].line_of_when()
            faults.add(line, f"when must not go in a circle, but got {' -> '.join(circle)}")
        elif name in entries and name not in ordered:
            for other in entries[name].when:
                place(other, [*path, name])
            ordered[name] = entries[name]

    for name in entries:
        place(name, [])
    return list(ordered.values())


def _condition_fault(
    name: str, values: tuple[HyperValue, ...], entries: Mapping[str, Entry]
) -> str | None:
    parent = entries.get(name)
    if parent is None:
        return must_be_one_of("a name under when", name, entries)
    if parent.kind == "fixed":
        if parent.values and not among(parent.values[0], values):
            return f"when {name} can never hold: it is fixed to {show(parent.values[0])}"
        return None
    parameter = parent.parameter
    if parameter is None:
        return None
    is_list = isinstance(parameter, Widths)
    if is_list or parameter.n_values() is None:
        kind = "a list" if is_list else "continuous"
        return f"when can name choices, whole numbers and steps, but {name} is {kind}"
    strange = [value for value in values if parameter.encode(value) is None]
    return f"when: {complaint(parameter, strange[0])}" if strange else None


def limits_of(name: str, entries: Mapping[str, Entry]) -> Limits:
    """Demands of its own `when:` and those of its ancestors, while `name` is active."""
    limits = dict(entries[name].when)
    for parent in entries[name].when:
        for other, values in limits_of(parent, entries).items():
            kept = limits.get(other, values)
            limits[other] = tuple(value for value in kept if among(value, values))
    return limits


def check_reachable(entries: Mapping[str, Entry], faults: Faults) -> None:
    """A parameter whose conditions exclude each other would never be active."""
    for entry in entries.values():
        if any(not values for values in limits_of(entry.name, entries).values()):
            text = f"{entry.name} can never be active: its conditions exclude each other"
            faults.add(entry.line_of_when(), text)


def check_optimizer_arguments(entries: Mapping[str, Entry], faults: Faults) -> None:
    """An argument such as momentum is active only with optimizers that take it."""
    chosen = entries.get("optimizer")
    optimizers = [*chosen.values] if chosen else ["SGD"]  # MLPClassifier's default
    for name in options.OPTIMIZER_ARGUMENTS:
        if name not in entries:
            continue
        takers = [o for o, record in options.OPTIMIZERS.items() if name in record.arguments]
        possible = limits_of(name, entries).get("optimizer", optimizers)
        strangers = [o for o in optimizers if o in possible and o not in takers]
        if strangers:
            faults.add(entries[name].line, _guard(entries[name], strangers, takers, optimizers))
    _check_nesterov(entries, faults)


def _guard(entry: Entry, strangers: list[str], takers: list[str], optimizers: list[str]) -> str:
    name = entry.name
    text = f"{name} must be active only with an optimizer that takes it, but could be with "
    text += ", ".join(strangers)
    usable = [optimizer for optimizer in optimizers if optimizer in takers]
    if not usable:
        return f"{text} (only {', '.join(takers)} takes {name})"
    guard = f"when: {{optimizer: [{', '.join(usable)}]}}"
    if entry.kind == "fixed":
        value = show(entry.values[0])
        return f"{text}: move it to 'parameters' as {{choices: [{value}], {guard}}}"
    return f"{text}: add '{guard}'"


def _check_nesterov(entries: Mapping[str, Entry], faults: Faults) -> None:
    """torch.optim.SGD refuses nesterov=True without momentum, or with dampening."""
    nesterov, momentum = entries.get("nesterov"), entries.get("momentum")
    if nesterov is None or True not in nesterov.values:
        return
    text = "nesterov: true needs a momentum above 0 whenever it is active"
    inner = limits_of("nesterov", entries)
    if momentum is None or not all(momentum.values):
        faults.add(nesterov.line, f"{text}, but momentum can be 0 or is missing")
    elif not all(
        name in inner and all(among(value, values) for value in inner[name])
        for name, values in limits_of("momentum", entries).items()
    ):
        faults.add(nesterov.line, f"{text}: give it momentum's 'when' too")
    if "dampening" in entries and any(entries["dampening"].values):
        faults.add(nesterov.line, "nesterov: true needs dampening 0: leave dampening out")
