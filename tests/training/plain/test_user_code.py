"""User code in the plain trainer: what it raises, and what it leaves behind."""

from __future__ import annotations

import gc
import locale
import os
import signal
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import user_code

from sweep.errors import ConfigError, DataError, Interruption
from sweep.files.trial_files import MODEL, TrialFiles
from sweep.testing import ScriptedExchange, example_task
from sweep.training import make_trainer
from sweep.training.plain.logger import TrialLogger
from sweep.training.plain.trainer import PlainTrainer
from sweep.training.process_state import undisturbed
from sweep.training.project.project import module_faults
from sweep.trial import Notice, TrialSpec

METRIC = {"metric": "val_f1", "population": 1}


def trained(folder: Path, module: str, *tries: Mapping[str, Any], **task: Any) -> ScriptedExchange:
    """What trials of a class in `user_code` report, one after the other."""
    specs = [TrialSpec(number, values, 7) for number, values in enumerate(tries)]
    exchange = ScriptedExchange(specs)
    PlainTrainer(example_task(folder, module=f"user_code:{module}", **METRIC, **task)).train(
        exchange
    )
    return exchange


def failures(exchange: ScriptedExchange) -> list[tuple[str, str]]:
    """Class and message of each trial's failure; empty ones for a trial that finished."""
    results = [result for _, result in sorted(exchange.results().items())]
    return [(r.failure.kind, r.failure.message) if r.failure else ("", "") for r in results]


def line_of(text: str) -> str:
    """`user_code.py:LINE` of the only line that holds `text`."""
    lines = Path(user_code.__file__).read_text().splitlines()
    (number,) = [n for n, line in enumerate(lines, 1) if text in line]
    return f"user_code.py:{number}"


def test_what_ends_a_program_fails_its_trial_alone(tmp_path: Path) -> None:
    """sys.exit, KeyboardInterrupt and GeneratorExit are failures with their text and place."""
    modes = ("exit", "interrupt", "generator", "fine")
    found = failures(trained(tmp_path, "Model", *({"mode": mode} for mode in modes)))
    assert [kind for kind, _ in found] == ["exception"] * 3 + [""]
    messages = [message for _, message in found]
    assert messages[0].startswith("SystemExit: width must not be 8 (")
    assert line_of('sys.exit("width') in messages[0]
    assert messages[1].startswith("KeyboardInterrupt: no more of this (")
    assert messages[2].startswith("GeneratorExit (")


@pytest.mark.parametrize("where", ["__init__", "configure_optimizers", "configure_callbacks"])
def test_a_trial_may_leave_anywhere(tmp_path: Path, where: str) -> None:
    """`sys.exit` in any method that Lightning or sweep calls fails that trial; the next trains."""
    found = failures(trained(tmp_path, "Leaving", {"where": where}, {}, epochs=1))
    assert found[0][0] == "exception"
    assert found[0][1].startswith(f"SystemExit: left in {where} (")
    assert found[1] == ("", "")


def test_a_checkpoint_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    """`sys.exit` as resume state is written is said once; the trial goes on."""
    where = {"where": "on_save_checkpoint"}
    exchange = trained(tmp_path, "Leaving", where, epochs=3, checkpoint_interval_s=0.0)
    assert failures(exchange) == [("", "")]
    (said,) = [report.message for report in exchange.reports if isinstance(report, Notice)]
    assert "last.ckpt cannot be written: SystemExit: left in on_save_checkpoint" in said


def test_a_model_that_cannot_be_exported_is_no_failure(tmp_path: Path) -> None:
    """`sys.exit` in the export costs the exported models alone; one line says so, and why."""
    exchange = trained(tmp_path, "Leaving", {"where": "export"}, {"where": "export"}, epochs=1)
    for result in exchange.results().values():
        assert (result.outcome, result.has_model) == ("finished", False)
    (said,) = [report.message for report in exchange.reports if isinstance(report, Notice)]
    assert "no logged model: SystemExit: left in export (" in said


def test_a_module_with_loaders_of_its_own_is_exported_for_its_samples(tmp_path: Path) -> None:
    """The graph takes samples as they come out of its validation loader."""
    exchange = trained(tmp_path, "Bringing", {}, epochs=1)
    assert exchange.results()[0].has_model
    model = torch.export.load(TrialFiles(tmp_path / "example", 0).path(MODEL)).module()
    assert model(torch.rand(5, 12)).shape == (5, 10)


def test_loaders_of_a_module_s_own_are_said_once(tmp_path: Path) -> None:
    """The study and MLflow's data set are named after --data, which such trials never saw."""
    exchange = trained(tmp_path, "Bringing", {}, {}, epochs=1)
    told = [report.message for report in exchange.reports if isinstance(report, Notice)]
    said = [text for text in told if "loaders of its own" in text]
    assert len(said) == 1
    assert "what is named after --data digits" in said[0]


def test_the_second_ctrl_c_is_no_failure_of_a_trial(tmp_path: Path) -> None:
    """What the driver's signal handler raises within user code comes out of the trainer."""
    exchange = ScriptedExchange([TrialSpec(0, {"mode": "second signal"}, 7)])
    with pytest.raises(Interruption):
        PlainTrainer(example_task(tmp_path, module="user_code:Model", **METRIC)).train(exchange)
    assert exchange.results() == {}


def test_the_log_has_the_traceback_of_a_failed_trial(tmp_path: Path) -> None:
    """The study's sweep.log says which trial failed, and its last frame is the user's."""
    task = example_task(tmp_path)
    Path(task.work_dir).mkdir()
    trained(tmp_path, "Model", {"mode": "raise"})
    log = Path(task.log_file).read_text()
    assert log.startswith("trial 0 failed: ZeroDivisionError: width must not be 8 (")
    assert "Traceback" in log
    assert "user_code.py" in log


def test_data_that_leave_are_an_error_of_the_data(tmp_path: Path) -> None:
    """`sys.exit` in a data function is one line with its text and place."""
    with pytest.raises(DataError, match=r"SystemExit: which file\? \(.*user_code.py:\d+\)"):
        make_trainer(example_task(tmp_path, data="user_code:leaving_data"))


# what a trial leaves behind


def test_a_trial_does_not_see_what_the_one_before_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial after one that changed the process has the curve that it has alone."""
    monkeypatch.chdir(tmp_path)
    handler, address = signal.getsignal(signal.SIGINT), os.environ.get("MLFLOW_TRACKING_URI")
    after = trained(tmp_path, "Disturbing", {"mode": "disturb"}, {"width": 4})
    assert failures(after)[1] == ("", "")
    assert Path.cwd() == tmp_path
    assert signal.getsignal(signal.SIGINT) is handler
    assert os.environ.get("MLFLOW_TRACKING_URI") == address
    alone = trained(tmp_path, "Disturbing", {}, {"width": 4})
    assert after.curve(1, "val_nll") == alone.curve(1, "val_nll")


CHANGES: dict[str, tuple[Callable[[], Any], Callable[[], object]]] = {
    "dtype": (torch.get_default_dtype, lambda: torch.set_default_dtype(torch.float64)),
    "device": (torch.get_default_device, lambda: torch.set_default_device("meta")),
    "threads": (torch.get_num_threads, lambda: torch.set_num_threads(torch.get_num_threads() + 1)),
    "gradients": (torch.is_grad_enabled, lambda: torch.set_grad_enabled(False)),
    "anomalies": (torch.is_anomaly_enabled, lambda: torch.set_anomaly_enabled(True)),
    "determinism": (
        torch.are_deterministic_algorithms_enabled,
        lambda: torch.use_deterministic_algorithms(True),
    ),
    "products": (
        torch.get_float32_matmul_precision,
        lambda: torch.set_float32_matmul_precision("medium"),
    ),
    "torch's generator": (lambda: torch.get_rng_state().tolist(), lambda: torch.rand(1)),
    "numpy's generator": (lambda: str(np.random.get_state()), np.random.rand),
    "numpy's errors": (np.geterr, lambda: np.seterr(all="raise")),
    "warnings": (lambda: list(warnings.filters), lambda: warnings.simplefilter("error")),
    "environment": (lambda: dict(os.environ), lambda: os.environ.update(HOME="/", NEW="1")),
    "path": (lambda: list(sys.path), lambda: sys.path.insert(0, "/")),
    "arguments": (lambda: list(sys.argv), lambda: sys.argv.append("--more")),
    "folder": (os.getcwd, lambda: os.chdir("/")),
    "recursion": (sys.getrecursionlimit, lambda: sys.setrecursionlimit(2345)),
    "collector": (gc.isenabled, gc.disable),
    "output": (lambda: sys.stdout, lambda: setattr(sys, "stdout", sys.__stderr__)),
    "locale": (
        lambda: locale.setlocale(locale.LC_ALL), lambda: locale.setlocale(locale.LC_ALL, "C.UTF-8")
    ),
    "handlers": (
        lambda: signal.getsignal(signal.SIGUSR2),
        lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN),
    ),
    "alarm": (
        lambda: signal.getitimer(signal.ITIMER_REAL)[0] > 0,
        lambda: signal.setitimer(signal.ITIMER_REAL, 0 if signal.alarm(0) else 100),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_settings_of_the_process_are_put_back(what: str) -> None:
    """Whatever user code changes in the process is afterwards as it was before."""
    read, change = CHANGES[what]
    outside = locale.setlocale(locale.LC_ALL)
    if what == "locale":
        locale.setlocale(locale.LC_ALL, "C")
    try:
        before = read()
        with undisturbed():
            change()
            assert read() != before
        assert read() == before
    finally:
        locale.setlocale(locale.LC_ALL, outside)


def test_a_folder_that_is_gone_is_left_for_the_first_one(tmp_path: Path) -> None:
    """Where the current folder was removed, a trial starts in the folder that it is given."""
    home, gone = str(Path.cwd()), tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    try:
        with undisturbed(str(tmp_path)):
            assert Path.cwd() == tmp_path
    finally:
        os.chdir(home)


# arguments

FAULTS = {
    "unknown": ("Model", ["widht"], ["must be one of mode, width, but got 'widht' (did you mean "
                                     "width?)"]),
    "several": ("Demanding", ["widht", "lr"], ["'lr'", "'widht'", "needs 'depth'"]),
    "missing": ("Demanding", ["width"], ["needs 'depth', which nothing gives"]),
    "any": ("TakesAny", ["widht", "lr"], []),
    "fine": ("Demanding", ["depth", "width", "batch_size"], []),
    "a function": ("broken_data", ["width"], []),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_arguments_are_checked_by_the_signature(case: str) -> None:
    """One sentence for each name that the module does not take, and each that it lacks."""
    name, names, parts = FAULTS[case]
    found = module_faults(f"user_code:{name}", names)
    assert len(found) == len(parts), found
    for sentence, part in zip(found, parts, strict=True):
        assert part in sentence


def test_a_search_over_wrong_names_has_no_trial(tmp_path: Path) -> None:
    """The trainer refuses the task before it asks for a trial, all faults at once."""
    task = example_task(tmp_path, module="user_code:Demanding", names=("widht", "lr"))
    with pytest.raises(ConfigError) as caught:
        PlainTrainer(task)
    assert len(caught.value.faults) == 3


def test_what_is_logged_may_have_a_gradient(tmp_path: Path) -> None:
    """Tensors of the step itself, as loggers of Lightning's take them; no warning names sweep."""
    files = TrialFiles(tmp_path, 0)
    files.make_folder()
    logger = TrialLogger(files)
    logger.experiment.add_scalar("norm", torch.ones((), requires_grad=True) * 2, 3)
    logger.write()
    assert [(step, found) for _, step, found in files.steps()] == [(3, {"norm": 2.0})]
