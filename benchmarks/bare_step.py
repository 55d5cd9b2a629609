"""Time of one model-step of the fused trainer without Lightning, against the arithmetic.

    python benchmarks/bare_step.py [--slots 1 4 16 50] [--features 784] [--optimizer mixed]

A model-step is one minibatch of one trial: forward, loss, backward, update. The bound is the
useful floating-point operations (no padding) over the matrix-product rate that this machine
shows on large squares in the same minutes. Each number is the fastest of `--repeats` runs of
`--steps` steps: on a machine that others use, only the fastest is the program's own.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time

import torch

from sweep.testing import example_data
from sweep.training.compiled.kernel import load_kernel
from sweep.training.fused.population import Population
from sweep.training.members import Member
from sweep.training.optimizers import make_rule

BATCH, N_CLASSES = 64, 10
OPTIMIZERS = {
    "SGD": ("SGD", {}),
    "momentum": ("SGD", {"momentum": 0.9}),
    "Adam": ("Adam", {}),
    "RMSprop": ("RMSprop", {}),
    "RMSprop-momentum": ("RMSprop", {"momentum": 0.9}),
}
MIXED = ("SGD", "momentum", "Adam", "RMSprop")


def matmul_rate() -> float:
    """Floating-point operations per second on 2048 x 2048 squares; the best of ten products."""
    a, b = torch.randn(2, 2048, 2048)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(times)


def random_widths(rng: random.Random) -> tuple[int, ...]:
    """Widths of the setting in which the first prototypes were measured."""
    return rng.randrange(32, 257, 8), rng.randrange(16, 129, 8)


def useful_operations(widths: tuple[int, ...]) -> int:
    """Of one step: forward, weight gradients, and input gradients but for the first layer."""
    products = [a * b for a, b in itertools.pairwise(widths)]
    return 2 * BATCH * (3 * sum(products) - products[0])


def make_population(
    n_slots: int, n_steps: int, n_features: int, optimizer: str, *, is_stacked: bool
) -> tuple[Population, int]:
    """A population of random two-layer MLPs, and the useful operations of one of its steps."""
    rng, n = random.Random(0), BATCH * n_steps
    y = torch.randint(0, N_CLASSES, (n,))
    x = torch.rand(n, n_features)
    data = example_data((x, y), (x[:BATCH], y[:BATCH]), N_CLASSES, mean=0.5, std=0.3)
    names = MIXED if optimizer == "mixed" else (optimizer,)
    members, n_operations = [], 0
    for number in range(n_slots):
        hidden = random_widths(rng)
        widths = (n_features, *hidden, N_CLASSES)
        n_operations += useful_operations(widths)
        rule = make_rule(*OPTIMIZERS[names[number % len(names)]])
        weights = [
            (torch.randn(b, a) * a**-0.5, torch.zeros(b)) for a, b in itertools.pairwise(widths)
        ]
        members.append(Member(number, hidden, "relu", rule, 1e-3, weights))
    kernel = None if is_stacked else load_kernel(4).kernel
    population = Population(data, BATCH, 1, kernel=kernel)
    population.change(joining=members)
    return population, n_operations


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 4, 16, 50, 128, 256])
    parser.add_argument("--features", type=int, default=784)
    parser.add_argument("--optimizer", choices=["mixed", *OPTIMIZERS], default="mixed")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--stacked", action="store_true", help="without the compiled kernel")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {BATCH}")
    print("slots  ms/model-step  bound  ratio  GFLOP/s peak")
    for n_slots in arguments.slots:
        population, n_operations = make_population(
            n_slots,
            arguments.steps,
            arguments.features,
            arguments.optimizer,
            is_stacked=arguments.stacked,
        )
        rates, times = [], []
        for _ in range(arguments.repeats):
            rates.append(matmul_rate())
            start = time.perf_counter()
            population.train_epoch()
            times.append((time.perf_counter() - start) / arguments.steps)
        per_model, bound = min(times) / n_slots, n_operations / n_slots / max(rates)
        print(
            f"{n_slots:5d}  {1e3 * per_model:13.3f}  {1e3 * bound:5.3f}  "
            f"{per_model / bound:5.2f}  {max(rates) / 1e9:.0f}"
        )


if __name__ == "__main__":
    main()
