"""FusedTrainer against PlainTrainer (Lightning and autograd), through the same seam."""

from __future__ import annotations

import dataclasses
import math
import time

import pytest
import torch

from sweep.data.tensors import Split, TensorData, load_search_data
from sweep.errors import ConfigError
from sweep.files.trial_files import BEST, MODEL, TrialFiles
from sweep.hyperparameters import DEFAULT_MODULE
from sweep.training.compiled.kernel import SWITCH
from sweep.training.engine_choice import why_plain
from sweep.training.fused.trainer import FusedTrainer, population_size
from sweep.training.mlp import MLPClassifier
from sweep.training.plain.trainer import PlainTrainer
from sweep.trial import (
    EpochReport,
    Orders,
    Stop,
    Task,
    TrialResult,
    TrialSpec,
    WorkerReady,
    derive_seed,
)

N_EPOCHS = 3


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small run faster on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data():
    """A part of digits."""
    whole = load_search_data("digits", None, 0)
    train = Split(whole.train.x[:300], whole.train.y[:300])
    val = Split(whole.val.x[:100], whole.val.y[:100])
    assert isinstance(whole, TensorData)
    return dataclasses.replace(whole, train=train, val=val)


@pytest.fixture
def task(tmp_path):
    return Task(
        study="s", seed=3, data="digits", data_dir=None, module=DEFAULT_MODULE, epochs=N_EPOCHS,
        batch_size=64, metric="val_acc", direction="maximize", work_dir=str(tmp_path),
        log_file=str(tmp_path / "log"), accelerator="cpu", population=3,
    )  # fmt: skip


def spec(number, **hyperparameters):
    given = {"hidden": (16, 8), "optimizer": "Adam", "lr": 3e-3} | hyperparameters
    return TrialSpec(number, given, derive_seed(3, "init", number))


class Driver:
    """Gives out `specs` as slots get free; keeps what it is told."""

    def __init__(self, specs, stops=()):
        self.waiting, self.stops = list(specs), dict(stops)
        self.ready, self.reports, self.results, self.most_running = [], {}, {}, 0
        self.running = set()

    def __call__(self, reports, n_free):
        stop = []
        for report in reports:
            if isinstance(report, WorkerReady):
                self.ready.append(report)
            elif isinstance(report, TrialResult):
                assert report.number in self.running
                self.running.remove(report.number)
                self.results[report.number] = report
            else:
                assert isinstance(report, EpochReport)
                self.reports.setdefault(report.number, []).append(report)
                if self.stops.get(report.number) == report.epoch:
                    stop.append(Stop(report.number, "pruned"))
        start, self.waiting = self.waiting[:n_free], self.waiting[n_free:]
        self.running |= {s.number for s in start}
        self.most_running = max(self.most_running, len(self.running))
        return Orders(tuple(stop), tuple(start), is_last=not self.waiting)

    def curve(self, number):
        names = ("train_loss", "val_loss", "val_acc")
        return [report.metrics[n] for report in self.reports[number] for n in names]


def train(trainer, specs, stops=()):
    driver = Driver(specs, stops)
    trainer.train(driver)
    assert not driver.running
    assert not driver.waiting
    return driver


SPECS = [
    spec(0),
    spec(1, hidden=(), optimizer="SGD", lr=0.05, momentum=0.9, schedule="cosine"),
    spec(2, hidden=(20,), optimizer="RMSprop", lr=1e-3, batch_size=50),
    spec(3, hidden=(24, 12, 6), dropout=0.3, activation="tanh", schedule="one_cycle"),
    spec(4, optimizer="AdamW", clip_norm=0.3, schedule="step", batch_size=50),
    spec(5, hidden=(10, 30), activation="silu"),
]


class Stopwatch(Driver):
    """Keeps, of each exchange with epochs, (the time since the last one, the trials' seconds)."""

    def __init__(self, specs):
        super().__init__(specs)
        self.left_at, self.measured = time.perf_counter(), []

    def __call__(self, reports, n_free):
        passed = time.perf_counter() - self.left_at
        seconds = [r.metrics["epoch_s"] for r in reports if isinstance(r, EpochReport)]
        if seconds:
            self.measured.append((passed, seconds))
        orders = super().__call__(reports, n_free)
        self.left_at = time.perf_counter()
        return orders


def test_trials_that_train_side_by_side_share_the_time(task, data):
    """Ten trials' seconds of an epoch are equal and add up to no more than the epoch took."""
    wide = [spec(number, hidden=(256, 256)) for number in range(10)]
    driver = Stopwatch(wide)
    FusedTrainer(dataclasses.replace(task, population=10, epochs=2), data).train(driver)
    assert [len(seconds) for _, seconds in driver.measured] == [10, 10]
    for passed, seconds in driver.measured:
        assert min(seconds) == max(seconds) > 0
        assert sum(seconds) <= passed


@pytest.mark.parametrize("kernel", ["on", "off"])
def test_equals_lightning_in_float64(task, data, kernel, monkeypatch):
    """Each trial of a search equals the plain path, which starts where the fused one started."""
    monkeypatch.setenv(SWITCH, kernel)
    task = dataclasses.replace(task, precision="64-true")
    fused = train(FusedTrainer(task, data), SPECS, stops={1: 1})
    again = [
        dataclasses.replace(s, start_epoch=fused.reports[s.number][0].start_epoch) for s in SPECS
    ]
    plain_task = dataclasses.replace(task, work_dir=task.work_dir + "/plain")
    plain = train(PlainTrainer(plain_task, data), again, stops={1: 1})
    assert len({report[0].start_epoch for report in fused.reports.values()}) > 1
    for number in range(len(SPECS)):
        assert fused.curve(number) == pytest.approx(plain.curve(number), rel=1e-7)
        assert fused.results[number].outcome == plain.results[number].outcome
        assert fused.results[number].best_epoch == plain.results[number].best_epoch
        ours = load(task, number)["state_dict"]
        theirs = load(plain_task, number)["state_dict"]
        for name in theirs:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-7, atol=1e-10)


def load(task, number):
    return torch.load(TrialFiles(task.work_dir, number).path(BEST), weights_only=True)


def test_slots_are_filled_at_once(task, data):
    """A stopped trial's slot is taken at the same boundary, never more trials than slots."""
    driver = train(FusedTrainer(task, data), SPECS, stops={0: 1})
    assert driver.ready[0].n_slots == 3
    assert driver.most_running == 3
    assert driver.results[0].outcome == "stopped"
    assert driver.results[0].n_epochs == 1
    assert driver.results[0].has_checkpoint
    assert not driver.results[0].has_model
    assert driver.reports[3][0].start_epoch == 1
    assert driver.results[3].notes["sweep.start_epoch"] == "1"


def test_failures_leave_the_others_alone(task, data):
    """A diverging trial and a faulty one fail with their kinds; neighbours keep their curves."""
    broken = [spec(10, lr=1e30, optimizer="SGD"), spec(11, optimizer="Adma"), spec(12, depth=3)]
    together = train(FusedTrainer(task, data), [*broken, *SPECS[:2]])
    alone = train(FusedTrainer(task, data), SPECS[:2])
    assert together.results[10].failure.kind == "nan"
    assert together.results[11].failure.kind == "exception"
    assert "did you mean Adam?" in together.results[11].failure.message
    assert together.results[12].failure.kind == "exception"
    assert alone.curve(0) == pytest.approx(together.curve(0), rel=1e-4)


def test_checkpoint_is_an_ordinary_one(task, data):
    """The checkpoint loads as an MLPClassifier that scores what was reported; so does the .pt2."""
    driver = train(FusedTrainer(task, data), SPECS)
    for result in driver.results.values():
        assert result.outcome == "finished"
        files = TrialFiles(task.work_dir, result.number)
        model = MLPClassifier.load_from_checkpoint(files.path(BEST)).eval()
        best = max(driver.reports[result.number], key=lambda r: r.metrics["val_acc"])
        assert result.best_epoch == best.epoch
        with torch.no_grad():
            logits = model(data.val.x)
        accuracy = (logits.argmax(1) == data.val.y).float().mean().item()
        assert accuracy == pytest.approx(best.metrics["val_acc"])
        loaded = torch.export.load(files.path(MODEL)).module()
        for n in (1, 7, 100):
            torch.testing.assert_close(loaded(data.val.x[:n]), logits[:n], rtol=1e-4, atol=1e-5)


def test_a_trial_trained_again_alone_gives_the_same_curve(task, data):
    """With its start_epoch, a refilled trial repeats its curve next to a fresh one."""
    first = train(FusedTrainer(task, data), SPECS, stops={0: 2})
    start_epoch = first.reports[3][0].start_epoch
    assert start_epoch == 2
    again = dataclasses.replace(SPECS[3], start_epoch=start_epoch)
    second = train(FusedTrainer(task, data), [SPECS[0], again])
    assert second.reports[3][0].start_epoch == start_epoch
    assert second.curve(3) == pytest.approx(first.curve(3), rel=1e-4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"module": "mine:Net", "population": 1}, "--population 1"),
        ({"precision": "16-mixed"}, "precision"),
        ({"devices": "2"}, "devices"),
    ],
)
def test_what_cannot_be_fused_is_said(task, change, reason):
    """A task that the fused trainer does not know is refused with a reason."""
    assert why_plain(task) is None
    assert reason in why_plain(dataclasses.replace(task, **change))


def test_unknown_metric_is_a_config_error(task, data):
    """All faults of a task are said before anything is trained."""
    with pytest.raises(ConfigError, match="did you mean val_acc"):
        FusedTrainer(dataclasses.replace(task, metric="val_ac"), data)


def test_population_is_sized_from_the_device(task, data):
    """auto gives at least one slot and at most the cap; a number is taken as it is."""
    device = torch.device("cpu")
    assert population_size(task, data, device) == 3
    assert 1 <= population_size(dataclasses.replace(task, population=None), data, device) <= 32
    assert math.isfinite(population_size(task, data, device))
