"""What does a report cost? Size and time of the page for 100 and for 1,000 trials.

    python benchmarks/report.py [--trials 100 1000] [--epochs 20] [--keep DIR]

The studies are written by the real ledger; nothing is trained. `sweep report` runs as a process of
its own, three times: the time is the median, and the pages must be the same to the byte. If
Chromium and chromedriver are installed, they open the page with the network cut off: until it is
drawn, and what its console says. `--keep` leaves the pages in a folder.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests/reporting/report")]

from report_browser import CHROMIUM, DRIVER, browser  # noqa: E402
from report_studies import write_study  # noqa: E402

N_TIMES = 3
LIMITS = {100: (400_000, 3.0), 1000: (2_000_000, 20.0)}
"""Trials -> bytes and seconds that the page may take."""


def measure(n_trials: int, n_epochs: int, keep: Path | None) -> None:
    """Make a study and its page; print a row."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_study(folder, n_trials, epochs=n_epochs)
        times, pages = [], []
        for _ in range(N_TIMES):
            begin = time.perf_counter()
            command = [sys.executable, "-m", "sweep", "report", "digits-mlp", "-o", "page.html"]
            subprocess.run([*command, "--no-samples"], cwd=folder, check=True, capture_output=True)
            times.append(time.perf_counter() - begin)
            pages.append((folder / "page.html").read_bytes())
        drawn = in_browser(folder / "page.html") if CHROMIUM and DRIVER else "no Chromium here"
        if keep is not None:
            keep.mkdir(exist_ok=True)
            shutil.copy(folder / "page.html", keep / f"{n_trials}.html")
    taken_s, n_bytes, is_same = statistics.median(times), len(pages[0]), len({*pages}) == 1
    print(f"| {n_trials} | {n_bytes / 1000:.0f} | {taken_s:.1f} | {drawn} | {is_same} |")
    most_bytes, most_s = LIMITS.get(n_trials, (2_000_000, 20.0))
    if n_bytes > most_bytes or taken_s > most_s or not is_same:
        print(f"beyond the limits: {most_bytes} bytes, {most_s} s, the same bytes each time")


def in_browser(page: Path) -> str:
    """How long Chromium takes to open and draw the page, and what went wrong there."""
    with browser() as chromium:
        begin = time.perf_counter()
        chromium.get(page.as_uri())
        drawn_ms = chromium.execute_script("return document.documentElement.dataset.drawnMs")
        whole_s = time.perf_counter() - begin
        said = chromium.get_log("browser")
    return f"{drawn_ms} ms of {whole_s * 1000:.0f} ms to open; {len(said)} errors"


def main() -> None:
    """Measure each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args()
    print("| trials | kB | s | drawn | same bytes |\n| --- | --- | --- | --- | --- |")
    for n_trials in args.trials:
        measure(n_trials, args.epochs, args.keep)


if __name__ == "__main__":
    main()
