"""Flags, environment, file and stored study become one checked configuration."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sweep.config.lightning_file import sections_of
from sweep.config.notices import identity_changes, unknown_variables
from sweep.config.resolving import read_config_file, resolve
from sweep.config.settings import RunConfig, flag_name
from sweep.errors import ConfigError, SpaceError
from sweep.loading import in_names
from sweep.objective import Objective
from sweep.reuse.recipe import read_recipe
from sweep.space import load_space

OTHERS: dict[type, str] = {bool: "no", float: "7", str: "other.x:Y"}
STRATEGY = "lightning.pytorch.strategies.DDPStrategy"
FIELDS = {field.name: field for field in dataclasses.fields(RunConfig)}


def faults(flags: dict[str, Any], **sources: Any) -> tuple[str, ...]:
    """What is wrong with these settings."""
    with pytest.raises(ConfigError) as caught:
        resolve(flags, **({"env": {}} | sources))
    return caught.value.faults


def config_file(folder: Path, text: str, name: str = "search.yaml") -> Path:
    """A config file."""
    path = folder / name
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
        ("SWEEP_TIMEOUT_S", "timeout_s", 900.0),
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
        ("devices", "0", "number of devices"),
        ("devices", "2,2", "indices as '2,' or '0,2'"),
        ("strategy", "ddp_spawn", "must be one of auto, ddp"),
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
    """What the name tells can be overruled."""
    config = resolve({"metric": metric, "direction": direction}, env={}).config
    assert config.resolved_direction == expected


def test_a_direction_that_the_name_does_not_tell_has_to_be_said() -> None:
    """One fault that names the metric, unless a direction is given."""
    flags = {"metric": "val_distance", "module": "mine:Model"}
    (fault,) = faults(flags)
    assert fault == ("--direction must be said for --metric val_distance: maximize or minimize")
    config = resolve(flags | {"direction": "minimize"}, env={}).config
    assert config.objective == Objective("val_distance", "minimize")


def test_the_direction_of_a_study_is_that_of_its_metric() -> None:
    """A continued study keeps it, another metric does not."""
    stored = {"metric": "val_loss", "direction": "maximize", "module": "mine:Model"}
    same = resolve({}, env={}, stored=stored).config
    other = resolve({"metric": "val_rmse"}, env={}, stored=stored).config
    assert (same.resolved_direction, other.resolved_direction) == ("maximize", "minimize")
    with pytest.raises(ConfigError, match="--direction must be said for --metric x"):
        resolve({"metric": "x"}, env={}, stored=stored)


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


def test_objects_of_this_process_have_one_device() -> None:
    """Each rank would have to import them; a class at the top of a file it can."""
    top = in_names({"module": "photos:Net", "data": RunConfig})
    assert resolve({**top, "devices": 2, "metric": "val_loss"}, {}).config.devices == "2"
    instance = in_names({"module": "photos:Net", "data": RunConfig(), "metric": "val_loss"})
    said = "--devices 2 trains a trial in several processes: module, data and callbacks must be"
    assert [fault.startswith(said) for fault in faults({**instance, "devices": 2})] == [True]
    notebook = {"module": "__main__:Net", "metric": "val_loss", "devices": "0,2"}
    assert len(faults(notebook)) == 1


def test_a_lightning_file_names_devices_and_a_strategy(tmp_path: Path) -> None:
    """A strategy's name is a setting; its class is an argument of each trial's Trainer."""
    named = "trainer: {devices: 2, strategy: ddp}\n"
    made = f"trainer: {{devices: [0, 2], strategy: {{class_path: {STRATEGY}}}}}\n"
    for text, devices, strategy, kept in (
        (named, "2", "ddp", {}),
        (made, "[0, 2]", "auto", {"trainer": {"strategy": {"class_path": STRATEGY}}}),
    ):
        file = config_file(tmp_path, text, "cli.yaml")
        config = resolve({"lightning": str(file)}, env={}).config
        assert (config.devices, config.strategy) == (devices, strategy)
        assert sections_of(file) == kept


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


@pytest.mark.parametrize("name", FIELDS)
def test_a_setting_has_one_spelling_everywhere(tmp_path: Path, name: str) -> None:
    """The flag's name is that of the variable, of the file and of the argument in Python."""
    field = FIELDS[name]
    value = {
        "timeout_s": "5m",
        "trial_timeout_s": "5m",
        "metric": "val_loss",
        "devices": "2,",
        "deterministic": "true",
        "vary": "lr=0.1..1",
        "set": "lr=0.1",
        "callback": "some.module:Callback",
        "lightning": str(config_file(tmp_path, "model: {}\n", "cli.yaml")),
    }.get(name, OTHERS.get(type(field.default), "4"))
    value = next((c for c in field.metadata["choices"] if c != field.default), value)
    public = flag_name(name)[2:]
    with_it = {"module": "some.module:build", "metric": "val_loss"} if name == "kind" else {}
    expected = getattr(resolve({name: value, **with_it}, env={}).config, name)
    assert expected != field.default
    variable = "SWEEP_" + public.replace("-", "_").upper()
    assert getattr(resolve(with_it, env={variable: value}).config, name) == expected
    flags = {public.replace("-", "_"): value, **with_it}
    assert getattr(resolve(flags, env={}).config, name) == expected
    for key in (public, public.replace("-", "_"), name):
        file = config_file(tmp_path, f"{key}: {value}\n")
        assert getattr(resolve(with_it, env={}, file=file).config, name) == expected


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("trials: 010", "trials", 10),
        ("epochs: 012", "epochs", 12),
        ("study: 12_30", "study", "12_30"),
        ("study: 2024-01-01", "study", "2024-01-01"),
        ("study: 0123", "study", "0123"),
        ("study: 1e3", "study", "1e3"),
        ("study: no", "study", "no"),
        ("study: '12'", "study", "12"),
        ("checkpoint-interval: 1e2", "checkpoint_interval_s", None),
        ("disk-limit: 1e-3", "disk_limit_gb", 0.001),
        ("seed: 1_000", "seed", None),
        ("seed: 0x10", "seed", None),
        ("timeout: 1:30", "timeout_s", None),
        ("trials: 2024-01-01", "trials", None),
        ("baseline: off", "baseline", False),
        ("devices: [1]", "devices", None),
        ("keep: null", "keep", None),
    ],
)  # fmt: skip
def test_a_file_means_what_a_flag_of_that_text_means(
    tmp_path: Path, text: str, field: str, value: object
) -> None:
    """No octal numbers, sexagesimals, underscores, dates: the text counts, or it is refused."""
    file = config_file(tmp_path, f"# settings\n{text}\n")
    if value is not None:
        assert getattr(resolve({}, env={}, file=file).config, field) == value
    elif text.endswith(("null", "[1]")):
        resolve({}, env={}, file=file)
    else:
        (fault,) = faults({}, file=file)
        assert fault.startswith(f"{file}:2: {text.partition(':')[0]} must be")


@pytest.mark.parametrize(
    "text", ["epochs: 1\n\nepochs: 2\n", "timeout: 1h\n\ntimeout_s: 60\n", "a: 1\n\na: 2\n"]
)
def test_a_setting_given_twice_is_refused_with_both_lines(tmp_path: Path, text: str) -> None:
    """Under one name or under two of its names."""
    file = config_file(tmp_path, text)
    found = faults({}, file=file)
    assert any(fault.startswith(f"{file}:3: ") and "given twice, " in fault for fault in found)


def bomb() -> str:
    """Ten lines that would be a hundred million values."""
    lines, before = ["a: &a [x,x,x,x,x,x,x,x,x,x]"], "a"
    for name in "bcdefgh":
        lines.append(f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]")
        before = name
    return "\n".join([*lines, f"trials: *{before}"])


HOSTILE = {
    "bomb": bomb,
    "nested": lambda: f"trials: {'[' * 5000}{']' * 5000}",
    "nested maps": lambda: "trials: " + "{a: " * 30 + "1" + "}" * 30,
    "long value": lambda: f"trials: {'x' * 500_000}",
    "long name": lambda: f"{'x' * 500}: 1\n{'x' * 500}: 1",
    "huge": lambda: f"study: {'x' * 10_000_000}",
    "tag": lambda: f"trials: !!python/object/apply:os.system{'x' * 5000} [ls]",
    "many": lambda: "\n".join(f"k{i}: 1" for i in range(2000)),
    "control": lambda: 'study: "a\\0b"',
}


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("read", [read_config_file, read_recipe, load_space])
def test_a_hostile_file_is_a_few_short_lines(
    tmp_path: Path, what: str, read: Callable[[Path], object]
) -> None:
    """Settings, recipes and spaces: no file takes much memory, or fills the screen."""
    path = tmp_path / "hostile.yaml"
    path.write_text(HOSTILE[what]())
    with pytest.raises((ConfigError, SpaceError)) as caught:
        resolve({}, env={}, file=path) if read is read_config_file else read(path)
    lines = str(caught.value).splitlines()
    assert len(lines) <= 21
    assert max(map(len, lines)) < 1000


def test_an_unknown_variable_is_said() -> None:
    """Its name and the nearest one; a variable of another program, or of ours, is not."""
    env = {"SWEEP_TRAILS": "3", "SWEEP_KERNEL": "off", "SWEEP_SEED": "1", "PATH": "/bin"}
    assert unknown_variables(env) == [
        "SWEEP_TRAILS is not a setting (did you mean SWEEP_TRIALS?): it is ignored"
    ]


@pytest.mark.parametrize("field", ["data_dir", "work_dir", "space"])
def test_a_path_is_the_same_wherever_it_comes_from(tmp_path: Path, field: str) -> None:
    """`~` is the home folder in flag, variable, file and study; what is relative stays so."""
    home = str(Path("~").expanduser())
    for path, expected in (("~/a.yaml", f"{home}/a.yaml"), ("b/a.yaml", "b/a.yaml")):
        file = config_file(tmp_path, f"{field}: {path}\n")
        sources: list[dict[str, Any]] = [
            {"flags": {field: path}}, {"env": {f"SWEEP_{field.upper()}": path}},
            {"file": file}, {"stored": {field: path}},
        ]  # fmt: skip
        for source in sources:
            config = resolve(**({"flags": {}, "env": {}} | source)).config
            assert getattr(config, field) == expected
    (fault,) = faults({field: "~nobody-of-that-name/x"})
    assert "names the home of nobody" in fault


def test_a_database_in_the_home_folder() -> None:
    """`~` counts in the address of an SQLite file, too."""
    config = resolve({"storage": "sqlite:///~/optuna.db"}, env={}).config
    assert config.storage == f"sqlite:///{Path('~').expanduser()}/optuna.db"


def test_two_names_of_one_database_are_seen(tmp_path: Path) -> None:
    """A link to the other store's file is that file."""
    (tmp_path / "a.db").touch()
    (tmp_path / "b.db").symlink_to(tmp_path / "a.db")
    stores = {
        "storage": f"sqlite:///{tmp_path}/a.db",
        "tracking_uri": f"sqlite:///{tmp_path}/b.db",
    }
    (fault,) = faults(stores)
    assert "name one database" in fault


def test_an_unknown_argument_is_refused() -> None:
    """A setting that Python gives under a wrong name is a fault with the nearest name."""
    (fault,) = faults({"trails": 3})
    assert fault.endswith("but got 'trails' (did you mean trials?)")
    (fault,) = faults({"timeout": 3, "timeout_s": 4})
    assert fault == "timeout is given twice, as timeout and as timeout_s"


def test_a_configuration_shows_what_differs_and_no_password() -> None:
    """Its repr has the settings that are not the defaults, addresses without credentials."""
    config = resolve({"trials": 3, "storage": "postgresql://me:hunter2@db/x"}, env={}).config
    assert repr(config) == "RunConfig(trials=3, storage='postgresql://***@db/x')"
    assert "hunter2" not in repr(resolve({"tracking_uri": "https://me:hunter2@h"}, env={}))


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


@settings(suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
@given(st.dictionaries(st.sampled_from(sorted(FIELDS)), st.text() | st.integers() | st.floats()))
def test_no_value_breaks_the_parser(flags: dict[str, Any]) -> None:
    """Whatever is given, the answer is a configuration or a ConfigError."""
    with contextlib.suppress(ConfigError):
        resolve(flags, env={})


def test_a_faulty_module_is_no_reason_to_refuse_a_metric() -> None:
    """The default, which stands in for it, has other metrics: that is no second fault."""
    with pytest.raises(ConfigError) as caught:
        resolve({"module": "bad", "metric": "val_rmse"}, env={})
    (fault,) = caught.value.faults
    assert fault.startswith("--module must name a LightningModule")
