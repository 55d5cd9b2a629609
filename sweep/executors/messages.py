"""What a worker says beside reports."""

from __future__ import annotations

from dataclasses import dataclass

from sweep.errors import SweepError


@dataclass(frozen=True)
class Crash:
    """The trainer itself broke, outside of any trial."""

    traceback: str
    error: SweepError | None
    """Set for an error that the user should read as it is: bad data files, a wrong name."""

    @property
    def message(self) -> str:
        """The last line of the traceback."""
        return self.traceback.strip().rsplit("\n", 1)[-1]
