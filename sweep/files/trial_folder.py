"""A trial's folder: its path, its verdict, its resume state. Free of torch.

    <work_dir>/trials/00017/best.ckpt      the kept checkpoint
                            model.pt2      the same model as a torch.export archive
                            last.ckpt      resume state; gone once the trial has a verdict
                            verdict.json   all reports and the result, written before hand-over

If the driver is killed between a trial's end and its record of it, it finds the verdict at the
next start: the trial is recorded, not trained again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sweep.errors import DiskError
from sweep.trial import EpochReport, Failure, TrialResult, TrialSpec

VERDICT, RESUME_STATE = "verdict.json", "last.ckpt"
_VERSION = 1
FILE_TIME_MS = 1000
"""Tolerance for a file system's clock."""


def trial_folder(work_dir: str | Path, number: int) -> Path:
    """The folder of trial `number` of a study with work folder `work_dir`."""
    return Path(work_dir, "trials", f"{number:05d}")


def spec_digest(spec: TrialSpec) -> str:
    """32 hex digits that change with number, seed, hyperparameters or settings, nothing else.

    Tuples and lists, 1 and 1.0 are equal, as after JSON.
    """
    identity = [spec.number, str(spec.seed), _canonical(spec.hyperparameters)]
    identity += [spec.settings] if spec.settings else []
    return _checksum(json.dumps(identity, sort_keys=True))


def write_verdict(
    folder: Path,
    reports: Sequence[EpochReport],
    result: TrialResult,
    spec: TrialSpec | None = None,
) -> None:
    """Keep a trial's reports and its result in `folder`. Raises DiskError.

    With `spec`, the verdict is bound to that configuration.
    """
    body = {
        "version": _VERSION,
        "spec": spec_digest(spec) if spec else None,
        "reports": [_report_values(report) for report in reports],
        "result": dataclasses.asdict(result),
    }
    text = json.dumps(body, sort_keys=True, allow_nan=False)
    sealed = json.dumps({"checksum": _checksum(text), "body": text})
    replace_file(folder / VERDICT, sealed.encode(), mode=0o600)


def read_verdict(
    folder: Path, spec: TrialSpec | None = None
) -> tuple[list[EpochReport], TrialResult] | None:
    """(reports, result) from `write_verdict`; None if missing, torn or of another trial.

    Another trial has another number than the folder or, with `spec`, another configuration (a
    deleted study of the same name).
    """
    try:
        sealed = json.loads((folder / VERDICT).read_bytes())
        if _checksum(sealed["body"]) != sealed["checksum"]:
            return None
        body = json.loads(sealed["body"])
        if body["version"] != _VERSION or (spec and body["spec"] != spec_digest(spec)):
            return None
        values = dict(body["result"])
        failure = values.pop("failure")
        # Absolute paths of before the folder was moved or copied, if it was.
        values |= {key: _in(folder, values.get(key)) for key in ("checkpoint", "model_file")}
        result = TrialResult(**values, failure=Failure(**failure) if failure else None)
        reports = [_report(values) for values in body["reports"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    numbers = {result.number, *(report.number for report in reports)}
    if {f"{number:05d}" for number in numbers} != {folder.name}:
        return None
    return reports, result


def _in(folder: Path, file: str | None) -> str | None:
    """The file of the same name in `folder` if there is one, else `file`."""
    own = folder.absolute() / Path(file or "").name
    return str(own) if file and own.is_file() else file


def usable_verdict(folder: Path, spec: TrialSpec) -> tuple[list[EpochReport], TrialResult] | None:
    """The verdict if it is of `spec` and its checkpoint is still there."""
    verdict = read_verdict(folder, spec)
    return verdict if verdict is not None and has_what_it_names(folder, verdict[1]) else None


def forget_verdict(folder: Path) -> None:
    """Delete the verdict of an earlier try: the trial is to be trained again."""
    with contextlib.suppress(OSError):
        (folder / VERDICT).unlink()


def resume_file(folder: Path) -> str | None:
    """The trial's resume state, not checked for damage; None if there is none."""
    path = folder / RESUME_STATE
    return str(path.resolve()) if path.is_file() else None


def starts_again(folder: Path, number: int, told_ms: Sequence[int], n_ahead: int = 0) -> str:
    """One sentence on the lost epochs of interrupted trial `number`, or "" if none is lost.

    Args:
        folder: The trial's.
        number: Its number.
        told_ms: Unix time of each reported epoch; an older resume state lacks it.
        n_ahead: Reported epochs beyond the state of the current worker.
    """
    try:
        written_ms = (folder / RESUME_STATE).stat().st_mtime_ns // 1_000_000
    except OSError:
        return f"trial {number} starts again: it was stopped before its first checkpoint"
    n_lost = max(n_ahead, sum(written_ms + FILE_TIME_MS < time_ms for time_ms in told_ms))
    if n_lost == 0:
        return ""
    epochs = "epoch" if n_lost == 1 else f"{n_lost} epochs"
    return f"trial {number} trains its last {epochs} again: its checkpoint is older"


def resume_point(folder: Path) -> Path | None:
    """The trial's resume state; None if it is missing or damaged."""
    path = folder / RESUME_STATE
    return path if is_whole_checkpoint(path) else None


def is_whole_checkpoint(path: str | Path) -> bool:
    """Whether the file is a zip archive, as torch writes it, with correct checksums.

    Raises MemoryError if there is no memory to read it: the file may be fine.
    """
    try:
        import zipfile  # 10 ms that `--help` does not need

        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except MemoryError:
        raise
    except Exception as error:  # zipfile raises a dozen kinds on garbage
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            raise MemoryError(str(error)) from error
        return False


def kept_checkpoint(study_dir: str | Path, number: int) -> Path | None:
    """The trial's best checkpoint in the work folder; None if it is missing or damaged."""
    path = trial_folder(study_dir, number) / "best.ckpt"
    return path if is_whole_checkpoint(path) else None


def has_what_it_names(folder: Path, result: TrialResult) -> bool:
    """Whether the checkpoint of a verdict's result, if it has one, is in `folder` and whole."""
    return result.checkpoint is None or is_whole_checkpoint(folder / "best.ckpt")


def folder_bytes(folder: Path) -> int:
    """Total size of the files in and below `folder`; 0 if there is no such folder."""
    total = 0
    for inner, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(inner, name).stat().st_size
    return total


def make_private_folder(folder: Path) -> None:
    """Make `folder` with mode 0700; an existing one is not changed.

    A missing parent gets the mode of its own parent. Raises OSError.
    """
    if folder.is_dir():
        return
    above = folder.parent
    if not above.is_dir():
        above.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            above.mkdir()
            above.chmod(stat.S_IMODE(above.parent.stat().st_mode))
    folder.mkdir(0o700, exist_ok=True)


def replace_file(path: Path, content: bytes | bytearray, *, mode: int = 0o666) -> None:
    """Write aside, flush to the disk, rename: a file of that name is always whole.

    `mode` is reduced by the umask. Raises DiskError without space or permission; an earlier file
    stays.
    """
    # A random name and O_EXCL: in a folder open to others, a link in its place would lead the
    # write to any file of the user. `resuming.clear_folder` reads the process from the suffix.
    aside = path.with_name(f".{path.name}.{os.urandom(8).hex()}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(aside, flags, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise DiskError(f"{path} cannot be written: {error.strerror or error}") from error


def remove_broken_off_writes(study_dir: Path) -> None:
    """Remove temporary files of killed processes, in a study's folder and its trials'.

    Those of this process stay: a thread may be writing one.
    """
    own = f".{os.getpid()}"
    for part in (*study_dir.glob(".*.*"), *(study_dir / "trials").glob("*/.*")):
        if part.suffix != own and (part.parent != study_dir or part.suffix[1:].isdigit()):
            with contextlib.suppress(OSError):
                part.unlink()


def remove_resume_states(study_dir: Path, numbers: Iterable[int]) -> None:
    """Remove the resume states of ended trials: a kill may have left one beside a verdict."""
    for number in numbers:
        with contextlib.suppress(OSError):
            (trial_folder(study_dir, number) / RESUME_STATE).unlink()


def _report_values(report: EpochReport) -> dict[str, Any]:
    values = dataclasses.asdict(report) | {"is_replay": False}
    # JSON has no NaN and no infinity: those go as words.
    values["metrics"] = {
        name: float(value) if math.isfinite(value) else str(float(value))
        for name, value in report.metrics.items()
    }
    return values


def _report(values: Mapping[str, Any]) -> EpochReport:
    metrics = {name: float(value) for name, value in values["metrics"].items()}
    return EpochReport(**{**values, "metrics": metrics})


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _canonical(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, bool | str) or value is None:
        return value
    return float(value) if isinstance(value, int | float) else str(value)


def _checksum(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
