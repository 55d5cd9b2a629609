"""The plan of a search as text, JSON or CSV."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import TYPE_CHECKING, Any

from sweep.reporting.formats import format_bytes, format_duration, format_number
from sweep.reporting.tables import Format, render_fields, render_rows

if TYPE_CHECKING:
    from sweep.search.plan import Estimate, Plan


def plan_text(
    plan: Plan, format: Format, width: int | None = None, *, is_colored: bool = False
) -> str:
    """`plan` with one row for each number of devices.

    JSON has all of it, with units in its names; CSV has the rows. `width`: cells of the terminal;
    None: unlimited.
    """
    rows = [dataclasses.asdict(estimate) for estimate in plan.estimates]
    if format == "json":
        return render_fields(dataclasses.asdict(plan), "json")
    if format == "csv":
        return render_rows(rows, list(rows[0]), "csv")
    shown = [_row(estimate) for estimate in plan.estimates]
    columns = [name for name in shown[0] if any(row[name] is not None for row in shown)]
    lines = [line for note in plan.notes for line in textwrap.wrap(f"note: {note}", width or 99)]
    return (
        render_fields(_fields(plan), "table", is_colored=is_colored)
        + "\n"
        + render_rows(shown, columns, "table", width=width, is_colored=is_colored)
        + "".join(f"{line}\n" for line in ["", *lines] if lines)
    )


def _fields(plan: Plan) -> dict[str, Any]:
    """What was measured, in words."""
    found = plan.measured
    n_workers = f"{found.n_workers} worker{'s' if found.n_workers > 1 else ''}"
    memory = "unknown"
    if found.worker_bytes is not None:
        memory = f"{format_bytes(found.worker_bytes)} a worker"
        if found.trial_bytes is not None:
            memory += f", {format_bytes(found.trial_bytes)} of it for each trial"
    disk = (
        f"MLflow {format_bytes(plan.mlflow_bytes)}, work folder "
        f"{format_bytes(plan.work_dir_bytes)}, databases {format_bytes(plan.database_bytes)}"
    )
    fields = {
        "search": f"{plan.study}: {plan.trials} trials of at most {plan.epochs} epochs",
        "measured": f"{format_number(round(found.work, 1))} trials in "
        f"{format_duration(found.measured_s)}, after a start of {format_duration(found.start_s)}",
        "device": found.device,
        "engine": f"{', '.join(found.engines)}: {found.n_slots} at a time, {n_workers}",
        "speed": f"{format_number(float(f'{plan.epochs_per_s:.3g}'))} epochs of a trial a second "
        f"(±{found.spread:.0%})",
        "memory": memory,
        "disk": disk,
    }  # fmt: skip
    return fields | ({"said": "\n".join(found.said) + "\n"} if found.said else {})


def _row(estimate: Estimate) -> dict[str, Any]:
    between = f"{format_duration(estimate.low_s)} to {format_duration(estimate.high_s)}"
    cost = estimate.cost
    return {
        "devices": estimate.devices, "workers": estimate.workers, "time_s": estimate.time_s,
        "between": between, "device_hours": float(f"{estimate.device_hours:.3g}"),
        "cost": None if cost is None else f"{cost:.2f}", "basis": estimate.basis,
    }  # fmt: skip
