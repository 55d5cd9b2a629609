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
from sweep.files.trial_files import RESUME_STATE, VERDICT, TrialFiles, replace_file, spec_digest
from sweep.trial import EpochReport, Failure, TrialResult, TrialSpec

SPEC = TrialSpec(17, {"hidden": (64, 32), "optimizer": "Adam", "lr": 1e-3}, 2**62 + 1)
REPORTS = [
    EpochReport(17, epoch, {"val_acc": 0.1 * epoch, "epoch_s": 0.25}, 1_700_000_000_000, 4)
    for epoch in (1, 2)
]
RESULT = TrialResult(17, "stopped", 2, 1, True, False, None, {"sweep.stop": "pruned", "é": "“"})


@pytest.fixture
def files(tmp_path: Path) -> TrialFiles:
    return TrialFiles(tmp_path, 17)


def test_what_no_resume_state_has_is_counted(files: TrialFiles) -> None:
    """None at all, one that is older than the last epochs told, and one that has them."""
    again = "trial 17 starts again: it was stopped before its first checkpoint"
    assert files.lost_epochs([5_000]) == again
    files.folder.mkdir(parents=True)
    (files.folder / "last.ckpt").touch()
    os.utime(files.folder / "last.ckpt", (10, 10))
    assert files.lost_epochs([5_000, 10_000]) == ""
    last = "trial 17 trains its last {} again: its checkpoint is older"
    assert files.lost_epochs([5_000, 12_000]) == last.format("epoch")
    assert files.lost_epochs([12_000, 15_000]) == last.format("2 epochs")
    assert files.lost_epochs([5_000], n_ahead=3) == last.format("3 epochs")


def test_files_are_put_whole_and_got_again(files: TrialFiles) -> None:
    """What a worker leaves travels as bytes; a file that is missing has no content and no size."""
    assert (files.get("best.ckpt"), files.size("best.ckpt")) == (None, 0)
    files.put("best.ckpt", b"weights")
    assert (files.get("best.ckpt"), files.size("best.ckpt")) == (b"weights", 7)
    for _ in range(2):
        files.remove("best.ckpt", "model.pt2")
        assert files.size("best.ckpt") == 0


def test_a_size_that_nobody_knows_is_not_zero(files: TrialFiles) -> None:
    """A disk that does not answer must not look like a trial without a resume state."""
    files.folder.mkdir(parents=True)
    files.path("last.ckpt").symlink_to("last.ckpt")
    with pytest.raises(DiskError, match="cannot be read: Too many levels"):
        files.size("last.ckpt")


def test_folders_are_named_by_number(tmp_path: Path) -> None:
    """Trial 17 lies in trials/00017, trial 123456 in trials/123456."""
    assert TrialFiles(tmp_path, 17).folder == tmp_path / "trials" / "00017"
    assert TrialFiles(str(tmp_path), 123456).folder == tmp_path / "trials" / "123456"


def test_a_verdict_is_the_users_own(files: TrialFiles) -> None:
    """Nobody else may read it, whatever the umask."""
    before = os.umask(0)
    try:
        files.write_verdict(REPORTS, RESULT, SPEC)
    finally:
        os.umask(before)
    assert (files.folder / "verdict.json").stat().st_mode & 0o777 == 0o600


def test_a_verdict_comes_back_as_it_was(files: TrialFiles) -> None:
    """Reports and result are equal to what was written, the failure with its traceback too."""
    files.write_verdict(REPORTS, RESULT, SPEC)
    assert files.verdict(SPEC) == (REPORTS, RESULT)
    failed = replace(RESULT, outcome="failed", failure=Failure("nan", "line", "a\nb"))
    files.write_verdict([], failed)
    assert files.verdict() == ([], failed)
    assert [file.name for file in files.folder.iterdir()] == ["verdict.json"]


def test_replays_are_kept_as_reports(files: TrialFiles) -> None:
    """What was told again before is a plain report in the verdict."""
    files.write_verdict([replace(r, is_replay=True) for r in REPORTS], RESULT)
    assert files.verdict() == (REPORTS, RESULT)


@given(st.dictionaries(st.text(), st.floats(), max_size=5))
def test_any_float_survives(tmp_path_factory: Any, metrics: dict[str, float]) -> None:
    """NaN and infinities are kept, and the file is still JSON by the book."""
    files = TrialFiles(tmp_path_factory.mktemp("verdict"), 17)
    files.write_verdict([replace(REPORTS[0], metrics=metrics)], RESULT)
    found = files.verdict()
    assert found is not None
    for name, value in metrics.items():
        kept = found[0][0].metrics[name]
        assert kept == value or (math.isnan(kept) and math.isnan(value))

    def refuse(word: str) -> None:
        raise AssertionError(word)

    sealed = json.loads((files.folder / "verdict.json").read_text(), parse_constant=refuse)
    json.loads(sealed["body"], parse_constant=refuse)


def test_a_verdict_of_another_trial_is_none(files: TrialFiles, tmp_path: Path) -> None:
    """Neither a copied folder nor a former study's configuration passes for this trial's."""
    files.write_verdict(REPORTS, RESULT, SPEC)
    other = TrialFiles(tmp_path, 18)
    files.folder.rename(other.folder)
    assert other.verdict() is None
    other.folder.rename(files.folder)
    assert files.verdict(replace(SPEC, seed=5)) is None
    assert files.verdict(replace(SPEC, hyperparameters={"lr": 1e-3})) is None
    assert files.verdict(replace(SPEC, start_epoch=3, is_resumed=True)) is not None


def test_any_damage_is_seen(files: TrialFiles) -> None:
    """Cut anywhere, or with any byte changed, a verdict counts as missing or is the same."""
    assert files.verdict() is None
    files.write_verdict(REPORTS, RESULT)
    path = files.folder / "verdict.json"
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at])
        assert files.verdict() is None
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        assert files.verdict() is None
    for garbage in (b"[]", b"{}", b"null", b'{"body": 1, "checksum": 2}', b"\xff\xfe"):
        path.write_bytes(garbage)
        assert files.verdict() is None


def test_a_verdict_can_be_forgotten(files: TrialFiles) -> None:
    """Afterwards there is none, and doing it again is harmless."""
    files.write_verdict(REPORTS, RESULT)
    for _ in range(2):
        files.remove(VERDICT)
        assert files.verdict() is None


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


def test_only_a_whole_file_is_a_resume_point(files: TrialFiles) -> None:
    """A missing, cut or garbled last.ckpt is none."""
    assert files.whole(RESUME_STATE) is None
    files.folder.mkdir(parents=True)
    path = files.folder / "last.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data/0", os.urandom(1000))
    assert files.whole(RESUME_STATE) == path
    whole = path.read_bytes()
    for damaged in (whole[:-10], whole[:500] + b"!" + whole[501:], b"", b"PK"):
        path.write_bytes(damaged)
        assert files.whole(RESUME_STATE) is None


def test_where_memory_is_out_no_file_is_called_damaged(files: TrialFiles) -> None:
    """Whether it is whole cannot be said then: who calls it damaged trains everything again."""
    files.folder.mkdir(parents=True)
    with zipfile.ZipFile(files.folder / "last.ckpt", "w") as archive:
        archive.writestr("archive/data/0", os.urandom(4 << 20))
    code = f"""
        import resource
        from pathlib import Path
        from sweep.files.trial_files import TrialFiles
        files = TrialFiles({str(files.folder.parents[1])!r}, 17)
        assert files.whole("last.ckpt") is not None
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
            found = files.whole("last.ckpt")
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
        TrialFiles(tmp_path, 17).write_verdict(REPORTS, RESULT)


def test_the_driver_reads_verdicts_without_torch() -> None:
    """Importing trial_files loads nothing heavy."""
    heavy = "{'torch', 'numpy', 'optuna'}"
    code = f"import sys, sweep.files.trial_files; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
