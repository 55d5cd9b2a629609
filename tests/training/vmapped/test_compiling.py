"""A traced step is compiled where that pays, and nowhere else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from sweep.training.vmapped.compiling import Program


def given() -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Weights, a buffer that the step changes, and a minibatch."""
    generator = torch.Generator().manual_seed(0)
    weights, x = (torch.randn(2, 8, 8, generator=generator).double() for _ in range(2))
    return [weights], [torch.zeros(2, 8).double()], [x]


def step(weights: list[Tensor], buffers: list[Tensor], batch: list[Tensor]) -> tuple[Tensor, ...]:
    """Of two trials."""
    found = torch.bmm(batch[0], weights[0]).relu()
    buffers[0].add_(found.sum(1))
    return found.mean((1, 2)), found


def program(said: list[str], compile_s: float) -> Program:
    """The step, traced."""
    return Program(make_fx(step)(*given()), said.append, compile_s)


def see_that_it_is_right(made: Program) -> None:
    """The step's results, and what it adds to the buffer, once a step."""
    ours = given()
    for n in range(1, 4):
        wanted = given()
        right = step(*wanted)
        for a, b in zip(made(*ours), right, strict=True):
            assert torch.allclose(a, b, rtol=1e-12, atol=0)
        assert torch.allclose(ours[1][0], n * wanted[1][0], rtol=1e-12, atol=0)


@pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None
    or not Path(sysconfig.get_path("include"), "Python.h").exists(),
    reason="needs a C++ compiler and Python's headers",
)
def test_it_is_compiled_after_the_time_that_compiling_takes() -> None:
    """And gives the same numbers."""
    said: list[str] = []
    made = program(said, compile_s=1e-9)
    made.n_left = 1e9
    see_that_it_is_right(made)
    assert len(said) == 1
    assert said[0].startswith("steps that many trials share are compiled, in ")


@pytest.mark.parametrize(("compile_s", "n_left"), [(1e9, 1e9), (1e-9, 0.0)])
def test_it_is_left_alone_where_compiling_would_not_pay(compile_s: float, n_left: float) -> None:
    """It has run for too short a time, or too little is left."""
    said: list[str] = []
    made = program(said, compile_s)
    made.n_left = n_left
    see_that_it_is_right(made)
    assert said == []


def test_without_a_compiler_it_goes_on_as_it_is() -> None:
    """One line says so. (torch looks for the compiler once a process.)"""
    code = """
        import sys
        sys.path.insert(0, sys.argv[1])
        from test_compiling import program, see_that_it_is_right
        said = []
        made = program(said, compile_s=1e-9)
        made.n_left = 1e9
        see_that_it_is_right(made)
        print(said)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(Path(__file__).parent)],
        env={**os.environ, "CXX": "/nonexistent", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("['steps are not compiled (")
