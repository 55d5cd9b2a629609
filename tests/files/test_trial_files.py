"""A trial's folder: verdicts survive everything but damage, and damage is seen."""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import textwrap
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.errors import DiskError
from sweep.files.trial_folder import (
    forget_verdict,
    read_verdict,
    replace_file,
    resume_point,
    spec_digest,
    starts_again,
    trial_folder,
    write_verdict,
)
from sweep.trial import EpochReport, Failure, TrialResult, TrialSpec

SPEC = TrialSpec(17, {"hidden": (64, 32), "optimizer": "Adam", "lr": 1e-3}, 2**62 + 1)
REPORTS = [
    EpochReport(17, epoch, {"val_acc": 0.1 * epoch, "epoch_s": 0.25}, 1_700_000_000_000, 4)
    for epoch in (1, 2)
]
RESULT = TrialResult(
    17, "stopped", 2, 1, "a/best.ckpt", None, None, {"sweep.stop": "pruned", "é": "“"}
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return trial_folder(tmp_path, 17)


def test_what_no_resume_state_has_is_counted(folder: Path) -> None:
    """None at all, one that is older than the last epochs told, and one that has them."""
    again = "trial 17 starts again: it was stopped before its first checkpoint"
    assert starts_again(folder, 17, [5_000]) == again
    folder.mkdir(parents=True)
    (folder / "last.ckpt").touch()
    os.utime(folder / "last.ckpt", (10, 10))
    assert starts_again(folder, 17, [5_000, 10_000]) == ""
    last = "trial 17 trains its last {} again: its checkpoint is older"
    assert starts_again(folder, 17, [5_000, 12_000]) == last.format("epoch")
    assert starts_again(folder, 17, [12_000, 15_000]) == last.format("2 epochs")
    assert starts_again(folder, 17, [5_000], n_ahead=3) == last.format("3 epochs")


def test_folders_are_named_by_number(tmp_path: Path) -> None:
    """Trial 17 lies in trials/00017, trial 123456 in trials/123456."""
    assert trial_folder(tmp_path, 17) == tmp_path / "trials" / "00017"
    assert trial_folder(str(tmp_path), 123456) == tmp_path / "trials" / "123456"


def test_a_verdict_is_the_users_own(folder: Path) -> None:
    """Nobody else may read it, whatever the umask."""
    before = os.umask(0)
    try:
        write_verdict(folder, REPORTS, RESULT, SPEC)
    finally:
        os.umask(before)
    assert (folder / "verdict.json").stat().st_mode & 0o777 == 0o600


def test_a_verdict_comes_back_as_it_was(folder: Path) -> None:
    """Reports and result are equal to what was written, the failure with its traceback too."""
    write_verdict(folder, REPORTS, RESULT, SPEC)
    assert read_verdict(folder, SPEC) == (REPORTS, RESULT)
    failed = replace(RESULT, outcome="failed", failure=Failure("nan", "line", "a\nb"))
    write_verdict(folder, [], failed)
    assert read_verdict(folder) == ([], failed)
    assert [file.name for file in folder.iterdir()] == ["verdict.json"]


def test_replays_are_kept_as_reports(folder: Path) -> None:
    """What was told again before is a plain report in the verdict."""
    write_verdict(folder, [replace(r, is_replay=True) for r in REPORTS], RESULT)
    assert read_verdict(folder) == (REPORTS, RESULT)


@given(st.dictionaries(st.text(), st.floats(), max_size=5))
def test_any_float_survives(tmp_path_factory: Any, metrics: dict[str, float]) -> None:
    """NaN and infinities are kept, and the file is still JSON by the book."""
    folder = trial_folder(tmp_path_factory.mktemp("verdict"), 17)
    write_verdict(folder, [replace(REPORTS[0], metrics=metrics)], RESULT)
    found = read_verdict(folder)
    assert found is not None
    for name, value in metrics.items():
        kept = found[0][0].metrics[name]
        assert kept == value or (math.isnan(kept) and math.isnan(value))

    def refuse(word: str) -> None:
        raise AssertionError(word)

    sealed = json.loads((folder / "verdict.json").read_text(), parse_constant=refuse)
    json.loads(sealed["body"], parse_constant=refuse)


def test_a_verdict_of_another_trial_is_none(folder: Path, tmp_path: Path) -> None:
    """Neither a copied folder nor a former study's configuration passes for this trial's."""
    write_verdict(folder, REPORTS, RESULT, SPEC)
    other = trial_folder(tmp_path, 18)
    folder.rename(other)
    assert read_verdict(other) is None
    other.rename(folder)
    assert read_verdict(folder, replace(SPEC, seed=5)) is None
    assert read_verdict(folder, replace(SPEC, hyperparameters={"lr": 1e-3})) is None
    assert read_verdict(folder, replace(SPEC, start_epoch=3, resume_from="x")) is not None


def test_any_damage_is_seen(folder: Path) -> None:
    """Cut anywhere, or with any byte changed, a verdict counts as missing or is the same."""
    assert read_verdict(folder) is None
    write_verdict(folder, REPORTS, RESULT)
    path = folder / "verdict.json"
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at])
        assert read_verdict(folder) is None
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        assert read_verdict(folder) is None
    for garbage in (b"[]", b"{}", b"null", b'{"body": 1, "checksum": 2}', b"\xff\xfe"):
        path.write_bytes(garbage)
        assert read_verdict(folder) is None


def test_a_verdict_can_be_forgotten(folder: Path) -> None:
    """Afterwards there is none, and doing it again is harmless."""
    write_verdict(folder, REPORTS, RESULT)
    for _ in range(2):
        forget_verdict(folder)
        assert read_verdict(folder) is None


def test_a_digest_is_the_configurations(tmp_path: Path) -> None:
    """JSON does not change it; number, seed and every hyperparameter do."""
    through_json = json.loads(json.dumps(dict(SPEC.hyperparameters)))
    assert spec_digest(replace(SPEC, hyperparameters=through_json)) == spec_digest(SPEC)
    others = [
        replace(SPEC, number=18),
        replace(SPEC, seed=SPEC.seed + 1),
        replace(SPEC, hyperparameters={**SPEC.hyperparameters, "lr": 1.0000001e-3}),
        replace(SPEC, hyperparameters={**SPEC.hyperparameters, "lr": True}),
        replace(SPEC, hyperparameters={**SPEC.hyperparameters, "lr": "0.001"}),
    ]
    assert len({spec_digest(spec) for spec in [SPEC, *others]}) == 6


def test_only_a_whole_file_is_a_resume_point(folder: Path) -> None:
    """A missing, cut or garbled last.ckpt is none."""
    assert resume_point(folder) is None
    folder.mkdir(parents=True)
    path = folder / "last.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data/0", os.urandom(1000))
    assert resume_point(folder) == path
    whole = path.read_bytes()
    for damaged in (whole[:-10], whole[:500] + b"!" + whole[501:], b"", b"PK"):
        path.write_bytes(damaged)
        assert resume_point(folder) is None


def test_where_memory_is_out_no_file_is_called_damaged(folder: Path) -> None:
    """Whether it is whole cannot be said then: who calls it damaged trains everything again."""
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "last.ckpt", "w") as archive:
        archive.writestr("archive/data/0", os.urandom(4 << 20))
    code = f"""
        import resource
        from pathlib import Path
        from sweep.files.trial_folder import resume_point
        folder = Path({str(folder)!r})
        assert resume_point(folder) is not None
        n_pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = n_pages * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        taken = []
        try:
            while True:
                taken.append(bytearray(1 << 16))
        except MemoryError:
            del taken[-2:]
        try:
            found = resume_point(folder)
        except MemoryError:
            found = "nobody knows"
        taken.clear()
        print(found)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("nobody knows\n", "")


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    """The error names file and cause; what was there before stays, and nothing lies aside."""
    path = tmp_path / "last.ckpt"
    replace_file(path, b"good")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    try:
        with pytest.raises(DiskError, match=r"last\.ckpt cannot be written: File too large"):
            replace_file(path, b"new" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"good"
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("name", [".{}.{pid}", ".{}", "{}"])
def test_nothing_is_written_through_a_link(tmp_path: Path, name: str) -> None:
    """A link at the file's own name is replaced; one at any name beside it is left alone."""
    precious, path = tmp_path / "precious", tmp_path / "shared" / "file"
    precious.write_text("the user's own")
    path.parent.mkdir()
    link = path.with_name(name.format("file", pid=os.getpid()))
    link.symlink_to(precious)
    replace_file(path, b"content")
    assert precious.read_text() == "the user's own"
    assert path.read_bytes() == b"content"
    assert not path.is_symlink()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    """A file where a folder should be is a DiskError too."""
    (tmp_path / "trials").write_text("")
    with pytest.raises(DiskError, match="cannot be written"):
        write_verdict(trial_folder(tmp_path, 17), REPORTS, RESULT)


def test_the_driver_reads_verdicts_without_torch() -> None:
    """Importing trial_files loads nothing heavy."""
    heavy = "{'torch', 'numpy', 'optuna'}"
    code = f"import sys, sweep.files.trial_folder; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
