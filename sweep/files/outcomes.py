"""What a trial's model said of each validation sample, epoch by epoch. Free of torch.

    <work_dir>/outcomes/00017.bin      a line of JSON, then rows and sizes as numbers

Beside the trials' folders, not in them: those go with `--keep`, this is small and stays.

Axes: E reports of a trial (epochs, or validations within epochs), U units. A unit is a sample or,
where only the means of several are known, those samples together. The metric is the mean of the
units' values, each weighted by its number of samples.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.files.trial_files import replace_file

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

OUTCOMES = "outcomes"
"""Key of what a module's `validation_step` may return: metric -> (B,), a value for each sample of
the minibatch."""
MOST_BYTES = 1_000_000
"""Of a trial: above, neighbouring samples are kept as their mean."""
TOLERANCE = 1e-3
"""Of a metric: larger differences to the mean of the outcomes are no rounding."""
MEAN_OF_OTHERS = "is not the mean of the values of its validation samples"
UNKNOWN = "comes without values of its validation samples"


@dataclass(frozen=True, eq=False)
class Outcomes:
    """All outcomes of one trial."""

    values: Array
    """(E, U) float32."""
    sizes: Array
    """(U,) number of samples in each unit."""
    is_hits: bool = False
    """Whether each value is 0 or 1, of one sample."""
    why_not: str = ""
    """Why there are none: a clause that begins with a verb; its subject is the metric."""


class OutcomesInMemory:
    """Outcomes of a trial that trains.

    Args:
        n_reports: Reports of a whole trial, about: bounds how much of each is kept.
    """

    def __init__(self, n_reports: int) -> None:
        self._n_reports = max(1, n_reports)
        self._rows: list[Array] = []
        self._sizes: Array | None = None
        self._is_hits, self._n_units, self.why_not = False, 0, ""
        self._is_half = True
        """Whether float16 holds the values."""

    def add(self, score: float, values: Array | None, sizes: Array | None, why: str = "") -> None:
        """Keep a report's outcomes.

        Args:
            score: The metric, which must be their mean.
            values: (U,) bool or float; None: unknown.
            sizes: (U,) samples in each unit; None: one.
            why: Why they are unknown.
        """
        import numpy as np

        if self.why_not:
            return
        if values is None or not len(values):
            self.forget(why or UNKNOWN)
            return
        weights = np.ones(len(values)) if sizes is None else np.asarray(sizes, np.float64)
        mean = float(np.average(values, weights=weights))
        if not math.isclose(mean, score, rel_tol=TOLERANCE, abs_tol=TOLERANCE * 1e-3):
            self.forget(MEAN_OF_OTHERS)
            return
        is_hits = values.dtype == bool
        kept: Array = values
        block = self._block(len(values), 1 / 8 if is_hits else 4)
        if block > 1:
            starts = np.arange(0, len(values), block)
            sums = np.add.reduceat(np.asarray(values, np.float64) * weights, starts)
            weights = np.add.reduceat(weights, starts)
            kept, is_hits = sums / weights, False
        before = weights if self._sizes is None else self._sizes
        if self._rows and not (is_hits == self._is_hits and np.array_equal(weights, before)):
            self.forget("was computed from different samples in different epochs")
            return
        self._is_hits, self._n_units, self._sizes = is_hits, len(kept), weights
        if is_hits:
            self._rows.append(np.packbits(kept))
        else:
            self._rows.append(kept.astype(np.float32))
            with np.errstate(over="ignore", under="ignore"):
                half = self._rows[-1].astype(np.float16)
            as_half = float(np.average(half.astype(np.float64), weights=weights))
            self._is_half &= math.isclose(as_half, score, rel_tol=TOLERANCE)

    def _block(self, n_units: int, n_bytes: float) -> int:
        """How many neighbours are kept as one, so that a whole trial needs at most MOST_BYTES."""
        n_all = self._n_reports * n_units
        return 1 if n_all * n_bytes <= MOST_BYTES else math.ceil(n_all * 4 / MOST_BYTES)

    def forget(self, why: str) -> None:
        """Keep none of this trial's; `why` is a clause whose subject is the metric."""
        self._rows, self.why_not = [], why

    @property
    def content(self) -> bytes:
        """Of the trial's file."""
        import numpy as np

        sizes = self._sizes
        is_plain = sizes is None or bool((sizes == 1).all())
        head = {
            "n_rows": len(self._rows), "n_units": self._n_units, "is_hits": self._is_hits,
            "is_half": self._is_half,
            "sizes": None if sizes is None or is_plain else sizes.astype(int).tolist(),
            "why_not": self.why_not,
        }  # fmt: skip
        as_half = self._is_half and not self._is_hits
        rows = [row.astype(np.float16) for row in self._rows] if as_half else self._rows
        return b"".join([json.dumps(head).encode(), b"\n", *(row.tobytes() for row in rows)])

    def restore(self, content: bytes | None, n_reports: int) -> None:
        """Go on from `content`, if it has that many reports."""
        import numpy as np

        found = None if content is None else outcomes_in(content)
        if found is None or (not found.why_not and len(found.values) != n_reports):
            self.forget("was trained by a version of sweep that kept no outcomes")
            return
        self.why_not, self._is_hits = found.why_not, found.is_hits
        self._n_units, self._sizes = found.values.shape[1], found.sizes.astype(np.float64)
        if found.is_hits:
            self._rows = list(np.packbits(found.values.astype(bool), axis=1))
        else:
            self._rows = list(found.values)
            with np.errstate(over="ignore"):  # what float16 has kept, it holds
                self._is_half = np.array_equal(found.values.astype(np.float16), found.values)


def outcomes_in(content: bytes) -> Outcomes | None:
    """The outcomes in a file's content; None if it is damaged."""
    import numpy as np

    try:
        line, _, numbers = content.partition(b"\n")
        head = json.loads(line)
        n_rows, n_units, is_hits = head["n_rows"], head["n_units"], head["is_hits"]
        sizes = np.ones(n_units) if head["sizes"] is None else np.array(head["sizes"])
        floats = np.float16 if head["is_half"] else np.float32
        rows: Array = np.frombuffer(numbers, np.uint8 if is_hits else floats)
        rows = rows.reshape(n_rows, -(-n_units // 8) if is_hits else n_units)
        if is_hits and n_rows:
            rows = np.unpackbits(rows, axis=1, count=n_units)
        return Outcomes(rows.astype(np.float32), sizes, is_hits, str(head["why_not"]))
    except (ValueError, KeyError, TypeError):
        return None


def outcomes_path(work_dir: str | Path, number: int) -> Path:
    """The file of a trial's outcomes in a study's work folder."""
    return Path(work_dir, "outcomes", f"{number:05d}.bin")


def read_outcomes(work_dir: str | Path, number: int) -> Outcomes | None:
    """The outcomes of a trial; None if there are none, or the file is damaged."""
    try:
        return outcomes_in(outcomes_path(work_dir, number).read_bytes())
    except OSError:
        return None


def write_outcomes(work_dir: str | Path, number: int, kept: OutcomesInMemory) -> None:
    """Write a trial's outcomes. Raises DiskError.

    Not flushed to the disk: after a crash of the machine the trial is without.
    """
    replace_file(outcomes_path(work_dir, number), kept.content, is_flushed=False)
