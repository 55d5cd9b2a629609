"""A bar for notebooks and scripts: finished trials and the best score so far."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from typing import Any

from sweep.reporting.formats import format_metric
from sweep.reporting.progress import Progress
from sweep.trial import Record, StudyInfo, TrialFinished


class Bar:
    """A Listener with tqdm's bar: a widget in a notebook with ipywidgets, else text."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._bar: Any = None

    def open(self, study: StudyInfo) -> None:
        """Draw the bar."""
        self._progress = Progress(study)
        self._bar = _tqdm()(
            total=study.n_trials, initial=study.n_done, desc=study.name, unit="trial",
            file=sys.stdout,
        )  # fmt: skip

    def write(self, records: Sequence[Record]) -> None:
        """Move it on by each trial that ended."""
        assert self._progress is not None
        for record in records:
            self._progress.apply(record)
            self._bar.total = self._progress.study.n_trials
            if isinstance(record, TrialFinished) and record.state.is_finished:
                best = self._progress.best_value
                if best is not None:
                    said = f"best {self._progress.study.metric} {format_metric(best)}"
                    self._bar.set_postfix_str(said, refresh=False)
                self._bar.update()

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


def is_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


def _tqdm() -> Any:
    if is_notebook() and importlib.util.find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm as in_notebook

        return in_notebook
    from tqdm import tqdm

    return tqdm
