"""A recorded trial, trained again in a temporary folder; the study is only read."""

from __future__ import annotations

import dataclasses
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweep.config.settings import RunConfig
from sweep.data import catalog as datasets
from sweep.environment.provenance import provenance
from sweep.environment.sources import source_tags
from sweep.errors import ConfigError, NotFoundError, SweepError
from sweep.executors import make_executor
from sweep.ledger.study import Ledger
from sweep.ledger.trials import LedgerTrial, tuples
from sweep.repair.records import StudyRecords, spec_of
from sweep.reuse.best import opened
from sweep.search.tasks import make_task, sources_of
from sweep.trial import (
    DEVICE_TAG,
    DatasetInfo,
    EpochReport,
    Notice,
    Orders,
    Report,
    Stop,
    Task,
    TrialResult,
    TrialSpec,
    WorkerReady,
)

NEAR = 1e-6
"""Largest difference of two curves that still count as the same."""
TIMES = ("epoch_s",)
"""Metrics that no training repeats."""
ENGINE_TAG = "sweep.trainer"
ROUNDING = {
    "vmapped": "its steps were taken together with those of other trials",
    "fused": "its tensors may have been stacked with those of other trials (on a GPU, or where "
    "the compiled kernel does not train it)",
}
"""Engines whose sums depend on neighbours in their last digits, and why."""
KNOWN = {
    "mlflow.source.git.commit": "git commit",
    "sweep.source.module": "the module's source file",
    "sweep.source.data": "the data's source file",
    "sweep.python": "Python",
    "sweep.platform": "platform",
    DEVICE_TAG: "device",
    ENGINE_TAG: "engine",
}
"""What is compared beside the versions of libraries, in words."""


@dataclass(frozen=True)
class Reproduced:
    """A trial and its second training."""

    study: str
    trial: int
    n_epochs: int
    """Reports that were compared."""
    difference: float
    """Largest absolute difference of two values of a metric; infinite if one is missing."""
    where: str
    """The metric and report of that difference; "" if there is none."""
    changed: tuple[str, ...]
    """A sentence for each thing that is not as it was: code, data, versions, device, engine."""
    said: tuple[str, ...]
    """What the worker told."""
    curve: Sequence[EpochReport]
    """Of the second training."""

    @property
    def is_same(self) -> bool:
        """Whether the curve is the recorded one, but for rounding (NEAR)."""
        return self.difference <= NEAR

    @property
    def verdict(self) -> str:
        """One line."""
        name = f"trial {self.trial} of {self.study}"
        if self.difference == 0:
            return f"{name}: the same curve to the last bit, {self.n_epochs} reports"
        gap = "there is no such value now" if math.isinf(self.difference) else (
            f"off by {self.difference:.2g}"
        )  # fmt: skip
        if self.is_same:
            return f"{name}: the same curve within {NEAR:g} (largest: {self.where}, {gap})"
        return f"{name}: another curve (largest difference: {self.where}, {gap})"


def reproduce_trial(study: str | None, number: int, where: RunConfig) -> Reproduced:
    """Train trial `number` again as it was recorded, alone, and compare the curves.

    Nothing of the study is written. Raises NotFoundError for an unknown trial, ConfigError for
    one without a curve or whose code cannot be imported, DataError.
    """
    with opened(study, where) as (ledger, config):
        trial = ledger.trial(number)
        config = _as_it_was(config, trial)
        recorded = _recorded(config, ledger, trial)
        tags, dataset = _tags(config, ledger, trial), ledger.dataset
    spec = dataclasses.replace(spec_of(config, trial), start_epoch=trial.start_epoch)
    again = _train(config, tags, spec, len(recorded))
    difference, place = _compared(recorded, again.reports)
    now = {**provenance(), **source_tags(sources_of(config)), **again.tags}
    if tags.get(ENGINE_TAG) == "vmapped":  # alone it takes its steps side by side with nobody
        now[ENGINE_TAG] = "vmapped"
    changed = [*_data_changes(dataset, again.dataset), *_changes(tags, now)]
    if again.failure:
        changed.append(f"it fails now: {again.failure}")
    why = ROUNDING.get(tags.get(ENGINE_TAG, ""))
    if difference > NEAR and not changed and why and not config.deterministic:
        changed.append(f"{why}, which changes how sums are rounded; here it trained alone")
    return Reproduced(
        config.study_name, number, len(recorded), difference, place, tuple(changed),
        tuple(again.said), again.reports,
    )  # fmt: skip


def _as_it_was(config: RunConfig, trial: LedgerTrial) -> RunConfig:
    """The study's settings at the trial's time, without limits."""
    known = {field.name for field in dataclasses.fields(RunConfig)}
    kept = {name: tuples(value) for name, value in trial.settings.items() if name in known}
    return dataclasses.replace(config, **kept | {"trial_timeout_s": None, "timeout_s": None})


def _recorded(config: RunConfig, ledger: Ledger, trial: LedgerTrial) -> Sequence[EpochReport]:
    """The trial's curve. Raises ConfigError if it has none."""
    if not trial.state.is_finished:
        raise ConfigError(
            f"trial {trial.number} of {ledger.name} has not ended: it is {trial.state}"
        )
    reports = StudyRecords(config, ledger).trial(trial.number).reports
    if not reports:
        raise NotFoundError(
            f"trial {trial.number} of {ledger.name} has no curve to compare with: `sweep show "
            f"{ledger.name} {trial.number}` says why"
        )
    return reports


def _tags(config: RunConfig, ledger: Ledger, trial: LedgerTrial) -> dict[str, str]:
    """Code, versions and device of the trial's time, as far as they are known.

    The study has those of its last search; the trial's own run in MLflow, if it answers, has the
    digests of the source files at its time.
    """
    own: Mapping[str, str] = {}
    try:
        from sweep.tracking import artifacts

        run_id = artifacts.run_id_of(config.tracking_uri, ledger.name, trial.number)
        own = artifacts.tags_of(config.tracking_uri, run_id) if run_id else {}
    except SweepError:
        pass  # MLflow is away
    own = {key: value for key, value in own.items() if key.startswith("sweep.source.")}
    engine = {ENGINE_TAG: str(trial.result[ENGINE_TAG])} if ENGINE_TAG in trial.result else {}
    return {**ledger.tags, **own, **engine}


class _Again:
    """Hands out one trial and takes its reports: the driver's end of the seam."""

    def __init__(self, spec: TrialSpec, n_reports: int) -> None:
        self._spec, self._n_reports, self._is_given = spec, n_reports, False
        self.reports: list[EpochReport] = []
        self.said: list[str] = []
        self.tags: dict[str, str] = {}
        self.dataset: DatasetInfo | None = None
        self.failure = ""

    def __call__(self, reports: Sequence[Report], n_free: int) -> Orders:
        """Take reports; the trial stops where it was stopped before."""
        stop: tuple[Stop, ...] = ()
        for report in reports:
            if isinstance(report, WorkerReady):
                self.tags[DEVICE_TAG], self.dataset = report.device, report.dataset
            elif isinstance(report, Notice):
                self.said.append(report.message)
            elif isinstance(report, EpochReport):
                self.reports.append(report)
                if len(self.reports) == self._n_reports:
                    stop = (Stop(self._spec.number, "pruned"),)
            elif isinstance(report, TrialResult):
                self.tags |= {k: v for k, v in report.notes.items() if k == ENGINE_TAG}
                self.failure = report.failure.message if report.failure else ""
        start = (self._spec,) if n_free > 0 and not self._is_given else ()
        self._is_given |= bool(start)
        return Orders(stop, start, is_last=self._is_given)


def _train(
    config: RunConfig, tags: Mapping[str, str], spec: TrialSpec, n_reports: int
) -> _Again:  # fmt: skip
    again = _Again(spec, n_reports)
    datasets.prepare(config.data, config.data_dir)
    with tempfile.TemporaryDirectory(prefix="sweep-reproduce-") as folder:
        executor = make_executor("inline" if config.executor == "inline" else "process", 1)
        try:
            executor.warm_up(_task(config, tags, spec, Path(folder)))
            executor.run(again)
        finally:
            executor.kill()
    return again


def _task(config: RunConfig, tags: Mapping[str, str], spec: TrialSpec, folder: Path) -> Task:
    """The trial's training, alone: by the same engine, with as many threads."""
    task, engine = make_task(config), tags.get(ENGINE_TAG, "")
    threads = re.search(r"cpu, (\d+) threads", tags.get(DEVICE_TAG, ""))
    return dataclasses.replace(
        task, work_dir=str(folder), log_file=str(folder / "sweep.log"), log_models="none",
        n_trials=1, may_add_workers=False, checkpoint_interval_s=math.inf,
        population=1 if engine == "plain" else 2,
        # Alone, with the data in the order that the trials had in common.
        may_share_steps=False, names=tuple(spec.hyperparameters),
        n_threads=task.n_threads or (int(threads[1]) if threads else None),
    )  # fmt: skip


def _compared(
    before: Sequence[EpochReport], now: Sequence[EpochReport]
) -> tuple[float, str]:  # fmt: skip
    """The largest difference, and its place."""
    worst, place = 0.0, ""
    by_epoch = {report.epoch: report.metrics for report in now}
    for report in before:
        for name, value in report.metrics.items():
            other = by_epoch.get(report.epoch, {}).get(name)
            gap = 0.0 if name in TIMES else _gap(value, other)
            if gap > worst:
                worst, place = gap, f"{name} of report {report.epoch}"
    return worst, place


def _gap(a: float, b: float | None) -> float:
    if b is None:
        return math.inf
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    gap = abs(a - b)
    return gap if math.isfinite(gap) else math.inf


def _data_changes(before: DatasetInfo | None, now: DatasetInfo | None) -> list[str]:
    if before is None or now is None or before.digest == now.digest:
        return []
    return [f"the data have changed: digest {before.digest[:8]} then, {now.digest[:8]} now"]


def _changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """One sentence for each tag of another value than before."""
    found = []
    for key in [*KNOWN, *(key for key in now if key.startswith("sweep.version."))]:
        old, new = before.get(key), now.get(key)
        if old is not None and new is not None and old != new:
            name = KNOWN.get(key) or f"version of {key.removeprefix('sweep.version.')}"
            found.append(f"{name} has changed: {_short(old)} then, {_short(new)} now")
    if before.get("sweep.git.dirty") == "true" or now.get("sweep.git.dirty") == "true":
        found.append("files of the git repository have changes that are in no commit")
    return found


def _short(value: Any) -> str:
    """`value`; digests and commits by their beginning."""
    text = str(value)
    return text[:8] if re.fullmatch(r"[0-9a-f]{32,}", text) else text
