"""Flags, environment, file and stored study become one checked configuration."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.config import (
    RunConfig,
    flag_name,
    identity_changes,
    read_config_file,
    resolve,
)
from sweep.errors import ConfigError

FIELDS = {field.name: field for field in dataclasses.fields(RunConfig)}


def faults(flags: dict[str, Any], **sources: Any) -> tuple[str, ...]:
    """What is wrong with these settings."""
    with pytest.raises(ConfigError) as caught:
        resolve(flags, **({"env": {}} | sources))
    return caught.value.faults


def config_file(folder: Path, text: str) -> Path:
    """A config file."""
    path = folder / "search.yaml"
    path.write_text(text)
    return path


def test_defaults_are_valid() -> None:
    """Nothing asked for is a configuration, all of it from the defaults."""
    resolved = resolve({}, env={})
    assert resolved.config == RunConfig()
    assert set(resolved.origins.values()) == {"default"}


def test_flag_beats_environment_beats_file_beats_study_beats_default(tmp_path: Path) -> None:
    """The five sources, taken away one by one."""
    file = config_file(tmp_path, "epochs: 3\n")
    env, stored = {"SWEEP_EPOCHS": "2"}, {"epochs": 4}
    outcomes = [
        resolve({"epochs": "1"}, env=env, file=file, stored=stored),
        resolve({}, env=env, file=file, stored=stored),
        resolve({}, env={}, file=file, stored=stored),
        resolve({}, env={}, stored=stored),
        resolve({}, env={}),
    ]
    assert [r.config.epochs for r in outcomes] == [1, 2, 3, 4, 10]
    origins = [r.origins["epochs"] for r in outcomes]
    assert origins == ["flag", "environment SWEEP_EPOCHS", f"file {file}", "study", "default"]


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("MLFLOW_TRACKING_URI", "tracking_uri", "http://localhost:5000"),
        ("SWEEP_DATA_DIR", "data_dir", "/data"),
        ("SWEEP_TIMEOUT", "timeout_s", 900.0),
        ("SWEEP_BASELINE", "baseline", False),
    ],
)
def test_the_environment_is_read(name: str, field: str, value: object) -> None:
    """MLflow's own variable, the data folder, and SWEEP_ with any field's name."""
    text = {900.0: "15m", False: "no"}.get(value, value)  # type: ignore[call-overload]
    resolved = resolve({}, env={name: str(text)})
    assert getattr(resolved.config, field) == value
    assert resolved.origins[field] == f"environment {name}"


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    """Flags, environment and file each have their say in one error."""
    file = config_file(tmp_path, "samler: tpe\nepochs: many\n")
    found = faults(
        {"trials": "-3", "data": "mnits", "pruner": "medan"},
        env={"SWEEP_SEED": "x"},
        file=file,
    )
    assert len(found) == 6
    text = "\n".join(found)
    for part in (
        "--trials must be a whole number >= 1, but got '-3'",
        "did you mean mnist?",
        "did you mean median?",
        "SWEEP_SEED must be a whole number >= 0",
        f"{file}:2: epochs must be a whole number",
        "did you mean sampler?",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("trials", "0", ">= 1"),
        ("trials", "2.5", "whole number"),
        ("trials", "1e400", "whole number"),
        ("trials", "nan", "whole number"),
        ("epochs", True, "whole number"),
        ("sampler", "tpee", "did you mean tpe?"),
        ("metric", "val_accuracy", "did you mean val_acc?"),
        ("direction", "max", "maximize"),
        ("timeout_s", "soon", "90, 90s, 15m or 2h"),
        ("timeout_s", "0", "positive time"),
        ("population", "0", "auto or a number"),
        ("accelerator", "gpuu", "did you mean gpu?"),
        ("precision", "16", "32-true"),
        ("executor", "proces", "did you mean process?"),
        ("study", "a/b", "letters"),
        ("study", "../x", "letters"),
        ("module", "MyModel", "package.module:Class"),
        ("devices", "2", "--devices"),
        ("baseline", "maybe", "true or false"),
        ("space", "  ", "must be a word"),
    ],
)
def test_a_bad_value_names_the_flag_the_rule_and_the_value(
    field: str, value: object, part: str
) -> None:
    """One fault, which names the flag and what would be right."""
    (fault,) = faults({field: value})
    assert fault.startswith(flag_name(field))
    assert part in fault
    assert repr(value) in fault


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90.0), ("90s", 90.0), ("15m", 900.0), ("2h", 7200.0), ("1.5 h", 5400.0), (90, 90.0)],
)
def test_times_have_units(text: object, seconds: float) -> None:
    """Seconds, minutes, hours and days."""
    assert resolve({"timeout_s": text}, env={}).config.timeout_s == seconds


@pytest.mark.parametrize(
    ("metric", "direction", "expected"),
    [
        ("val_acc", "auto", "maximize"),
        ("val_loss", "auto", "minimize"),
        ("val_loss", "maximize", "maximize"),
    ],
)
def test_the_direction_follows_the_metric(metric: str, direction: str, expected: str) -> None:
    """auto minimizes losses and errors, and can be overruled."""
    config = resolve({"metric": metric, "direction": direction}, env={}).config
    assert config.resolved_direction == expected


def test_any_metric_goes_with_a_module_of_the_users_own() -> None:
    """Only the shipped module's metrics are known beforehand."""
    flags = {"metric": "val_f1", "module": "mine:Model"}
    assert resolve(flags, env={}).config.metric == "val_f1"


def test_a_study_is_named_after_data_and_space() -> None:
    """DATA-SPACE, also for a file and for a data set of the user's own."""
    names = [
        resolve({"data": data, "space": space}, env={}).config.study_name
        for data, space in (
            ("mnist", "mlp"), ("digits", "folder/wide.yaml"), ("my.data:load", "mlp"),
        )
    ]  # fmt: skip
    assert names == ["mnist-mlp", "digits-wide", "my.data.load-mlp"]


def test_a_name_that_no_folder_can_have_is_refused() -> None:
    """A space file of an odd name asks for --study."""
    (fault,) = faults({"space": "my space.yaml"})
    assert "--study NAME" in fault


def test_worker_memory_is_a_number_or_none() -> None:
    """none takes back what the study was made with; this very process cannot be replaced."""
    stored = {"worker_memory_gb": 1.5}
    assert resolve({}, {}, stored=stored).config.worker_memory_gb == 1.5
    resolved = resolve({"worker_memory_gb": "none"}, {}, stored=stored)
    assert resolved.config.worker_memory_gb is None
    (fault,) = faults({"worker_memory_gb": "lots"})
    assert fault == (
        "--worker-memory must be none or a positive number of gigabytes, but got 'lots'"
    )
    (fault,) = faults({"executor": "inline", "worker_memory_gb": "2"})
    assert fault == "--executor inline runs in this process: --worker-memory must be none"


def test_inline_has_one_worker() -> None:
    """Settings that exclude each other are a fault too."""
    (fault,) = faults({"executor": "inline", "workers": "2"})
    assert "--workers must be 1" in fault


@pytest.mark.parametrize(
    "text", ["- a\n- b\n", "just words\n", "epochs: [\n", "\x00"], ids=["list", "text", "bad", "0"]
)
def test_a_config_file_that_is_no_mapping_is_one_fault(tmp_path: Path, text: str) -> None:
    """Whatever the file holds, the error is one line that names it."""
    path = config_file(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_config_file(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_file_that_is_not_there_is_one_fault(tmp_path: Path) -> None:
    """A missing file, a folder and bytes that are no text are refused."""
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "none.yaml", tmp_path, binary):
        with pytest.raises(ConfigError, match=f"^{path}:.* must be (a file|UTF-8 text)"):
            read_config_file(path)


def test_an_empty_config_file_changes_nothing(tmp_path: Path) -> None:
    """An empty file is a file without settings."""
    assert resolve({}, env={}, file=config_file(tmp_path, "# nothing\n")).config == RunConfig()


def test_what_makes_another_search_is_named() -> None:
    """Settings that change results may not change within a study; the others may."""
    stored = dataclasses.asdict(RunConfig())
    changed = RunConfig(epochs=3, data="mnist", trials=99, workers=2, timeout_s=5.0)
    assert identity_changes(changed, stored) == [
        "--epochs was 10 and is now 3",
        "--data was 'digits' and is now 'mnist'",
    ]


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_says_what_it_is(name: str) -> None:
    """A sentence of help, and a default that its own parser accepts."""
    field = FIELDS[name]
    assert field.metadata["help"].endswith(".")
    if field.default is not None:
        assert resolve({name: field.default}, env={}).config == RunConfig()


@given(st.dictionaries(st.sampled_from(sorted(FIELDS)), st.text() | st.integers() | st.floats()))
def test_no_value_breaks_the_parser(flags: dict[str, Any]) -> None:
    """Whatever is given, the answer is a configuration or a ConfigError."""
    with contextlib.suppress(ConfigError):
        resolve(flags, env={})
