"""A trial's folder: its path, its verdict, its resume state. Free of torch.

    <work_dir>/trials/00017/best.ckpt      the kept checkpoint
                            model.pt2      the same model as a torch.export archive
                            last.ckpt      resume state; gone once the trial has a verdict
                            verdict.json   all reports and the result, written before hand-over
                            logged/        what a module's logger got: steps.jsonl, figures, ...

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
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sweep.errors import DiskError
from sweep.trial import EpochReport, Failure, TrialResult, TrialSpec

BEST, MODEL, RESUME_STATE, VERDICT = "best.ckpt", "model.pt2", "last.ckpt", "verdict.json"
LOGGED = "logged"
"""Folder of what a module's logger got: values by step in STEPS, figures and other files."""
STEPS = f"{LOGGED}/steps.jsonl"
RANKS = "ranks"
"""Folder of a trial on several devices: what all ranks but the first write, which nobody keeps."""
BROKEN_OFF = re.compile(r"\..*\.[0-9a-f]{16}\.\d+")
"""Names under which `replace_file` writes aside."""
_VERSION = 1
FILE_TIME_MS = 1000
"""Tolerance for a file system's clock."""


class TrialFiles:
    """The files of one trial, in a folder of this machine.

    Args:
        work_dir: The study's work folder.
        number: The trial's number.
    """

    def __init__(self, work_dir: str | Path, number: int) -> None:
        self.number = number
        self.folder = Path(work_dir, "trials", f"{number:05d}")

    def make_folder(self) -> str:
        """Make the folder, for what a user's code writes there; returns its path.

        Raises DiskError.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DiskError(f"{self.folder} cannot be made: {error.strerror or error}") from error
        return str(self.folder)

    def path(self, name: str) -> Path:
        """The path of a file, for libraries that read or write one."""
        return self.folder / name

    def put(self, name: str, content: bytes | bytearray, *, mode: int = 0o666) -> None:
        """Write a file, whole or not at all. Raises DiskError."""
        replace_file(self.folder / name, content, mode=mode)

    def append(self, name: str, content: bytes) -> None:
        """Add to the end of a file. Raises DiskError."""
        path = self.folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.write(content)
        except OSError as error:
            raise DiskError(f"{path} cannot be written: {error.strerror or error}") from error

    def get(self, name: str) -> bytes | None:
        """The content of a file; None if it is missing or unreadable."""
        try:
            return self.path(name).read_bytes()
        except OSError:
            return None

    def size(self, name: str) -> int:
        """The size of a file in bytes; 0 if it is missing. Raises DiskError if nobody can say."""
        try:
            return self.path(name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return 0
        except OSError as error:
            raise DiskError(f"{self.path(name)} cannot be read: {error.strerror}") from error

    def steps(self) -> list[tuple[int, int, dict[str, float]]]:
        """(Unix time in ms, step, values) of each line of STEPS; torn lines are left out."""
        return steps_in(self.path(LOGGED))

    @property
    def has_logged(self) -> bool:
        """Whether the module's logger got anything."""
        return self.path(LOGGED).is_dir()

    def remove(self, *names: str) -> None:
        """Delete files, as far as they exist."""
        for name in names:
            with contextlib.suppress(OSError):
                self.path(name).unlink()

    def whole(self, name: str) -> Path | None:
        """The path of a checkpoint; None if it is missing or damaged."""
        return self.path(name) if is_whole_checkpoint(self.path(name)) else None

    def has_all_of(self, result: TrialResult) -> bool:
        """Whether the checkpoint of a verdict's result, if it has one, is here and whole."""
        return not result.has_checkpoint or self.whole(BEST) is not None

    def write_verdict(
        self, reports: Sequence[EpochReport], result: TrialResult, spec: TrialSpec | None = None
    ) -> None:
        """Keep a trial's reports and its result. Raises DiskError.

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
        self.put(VERDICT, sealed.encode(), mode=0o600)

    def verdict(
        self, spec: TrialSpec | None = None
    ) -> tuple[list[EpochReport], TrialResult] | None:
        """(reports, result) from `write_verdict`; None if missing, torn or of another trial.

        Another trial has another number or, with `spec`, another configuration (a deleted study
        of the same name).
        """
        try:
            sealed = json.loads(self.get(VERDICT) or b"")
            if _checksum(sealed["body"]) != sealed["checksum"]:
                return None
            body = json.loads(sealed["body"])
            if body["version"] != _VERSION or (spec and body["spec"] != spec_digest(spec)):
                return None
            values = dict(body["result"])
            failure = values.pop("failure")
            result = TrialResult(**values, failure=Failure(**failure) if failure else None)
            reports = [_report(values) for values in body["reports"]]
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        is_own = {result.number, *(report.number for report in reports)} == {self.number}
        return (reports, result) if is_own else None

    def usable_verdict(self, spec: TrialSpec) -> tuple[list[EpochReport], TrialResult] | None:
        """The verdict if it is of `spec` and its checkpoint is still there."""
        verdict = self.verdict(spec)
        return verdict if verdict is not None and self.has_all_of(verdict[1]) else None

    def lost_epochs(self, told_ms: Sequence[int], n_ahead: int = 0) -> str:
        """One sentence on the lost epochs of an interrupted trial, or "" if none is lost.

        Args:
            told_ms: Unix time of each reported epoch; an older resume state lacks it.
            n_ahead: Reported epochs beyond the state of the current worker.
        """
        try:
            written_ms = self.path(RESUME_STATE).stat().st_mtime_ns // 1_000_000
        except OSError:
            return f"trial {self.number} starts again: it was stopped before its first checkpoint"
        n_lost = max(n_ahead, sum(written_ms + FILE_TIME_MS < time_ms for time_ms in told_ms))
        if n_lost == 0:
            return ""
        epochs = "epoch" if n_lost == 1 else f"{n_lost} epochs"
        return f"trial {self.number} trains its last {epochs} again: its checkpoint is older"


def steps_in(logged: Path) -> list[tuple[int, int, dict[str, float]]]:
    """(Unix time in ms, step, values) of each line of STEPS in a folder LOGGED."""
    found: list[tuple[int, int, dict[str, float]]] = []
    with contextlib.suppress(OSError):
        for line in (logged / Path(STEPS).name).read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError, TypeError, AttributeError):  # torn by a kill
                time_ms, step, values = json.loads(line)
                numbers = {str(name): float(value) for name, value in values.items()}
                found.append((int(time_ms), int(step), numbers))
    return found


def spec_digest(spec: TrialSpec) -> str:
    """32 hex digits that change with number, seed, hyperparameters or settings, nothing else.

    Tuples and lists, 1 and 1.0 are equal, as after JSON.
    """
    identity = [spec.number, str(spec.seed), _canonical(spec.hyperparameters)]
    identity += [spec.settings] if spec.settings else []
    return _checksum(json.dumps(identity, sort_keys=True))


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


def replace_file(
    path: Path, content: bytes | bytearray | Iterable[bytes], *, mode: int = 0o666,
    is_flushed: bool = True,
) -> None:  # fmt: skip
    """Write aside, flush to the disk, rename: a file of that name is always whole.

    `content` may come in pieces. `mode` is reduced by the umask. Not flushed, it may be torn after
    a crash of the machine. Raises DiskError without space
    or permission; an earlier file stays.
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
                whole = (content,) if isinstance(content, bytes | bytearray) else content
                file.writelines(whole)
                if is_flushed:
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
        TrialFiles(study_dir, number).remove(RESUME_STATE)


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
