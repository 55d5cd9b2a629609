"""The same trials with sweep, as a user's script; prints what `stock.py` prints.

python benchmarks/ours.py trials.json --data digits --epochs 10 --population auto
"""

from __future__ import annotations

import time

BEGAN = time.time()

import argparse  # noqa: E402
import json  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from pathlib import Path  # noqa: E402

import sweep  # noqa: E402
from sweep.trial import Record, StudyInfo, WorkerReady  # noqa: E402


class Clock:
    """A listener that notes when the worker had imported everything and loaded the data."""

    ready_at = 0.0
    n_slots = 0

    def open(self, study: StudyInfo) -> None:
        """Nothing to note."""

    def write(self, records: Sequence[Record]) -> None:
        """Note the worker."""
        for record in records:
            if isinstance(record, WorkerReady) and not self.ready_at:
                # Not now: listeners are told behind the driver's answers.
                self.ready_at, self.n_slots = record.time_ms / 1e3, record.n_slots

    def close(self) -> None:
        """Nothing to close."""


def main() -> None:
    """Run the study and print how long it took."""
    args = parse()
    configurations = json.loads(Path(args.trials).read_text())
    Path("ours.yaml").write_text(space_of(configurations))
    clock = Clock()
    outcome = sweep.run(
        listeners=[clock], trials=len(configurations), epochs=args.epochs, data=args.data,
        data_dir=args.data_dir, batch_size=args.batch_size, threads=args.threads,
        space="ours.yaml", population=args.population, baseline=False, study="ours",
        checkpoint_interval_s=args.checkpoint_interval,
    )  # fmt: skip
    ended = time.time()
    print(json.dumps({"import_s": clock.ready_at - BEGAN, "work_s": ended - clock.ready_at,
                      "best": outcome.end.best_value, "n_slots": clock.n_slots}))  # fmt: skip


def space_of(configurations: list[dict]) -> str:
    """A search space whose first trials are `configurations`."""
    lines = [
        "# Use this in the benchmark.",
        "parameters:",
        "  optimizer: {choices: [SGD, Adam, RMSprop]}",
        "  lr: {float: [1e-4, 0.3], log: true}",
        "  hidden: {widths: [16, 512], layers: [1, 3]}",
        "  momentum: {float: [0.0, 0.95], when: {optimizer: [SGD, RMSprop]}}",
        "first:",
    ]
    return "\n".join([*lines, *(f"  - {json.dumps(c)}" for c in configurations)]) + "\n"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("trials")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-dir")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--population", default="auto")
    parser.add_argument("--checkpoint-interval", type=float, default=30.0, help="seconds")
    return parser.parse_args()


if __name__ == "__main__":
    main()
