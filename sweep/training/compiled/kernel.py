"""`kernel.c` as machine code for this processor: compiled once per user, then loaded and checked.

Needs a C compiler on the machine, like torch.compile; without one `load_kernel` gives the reason,
and torch trains the trials. Free of torch: a worker compiles while it imports torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sweep.files.cache import cache_file, keep, kept
from sweep.hyperparameters import OPTIMIZERS

SWITCH = "SWEEP_KERNEL"
"""Environment variable; "off" disables the kernel."""
MOST_LAYERS = 8
"""Most layers of a network, output layer included; must match kernel.c."""
KINDS = {"uint8": 0, "float32": 1, "float64": 2}
"""Codes of input types; must match kernel.c."""
COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-std=gnu11", "-O3", "-fno-math-errno", "-shared", "-fPIC")
PROCESSOR_FLAGS = ("-march=native", "-mcpu=native", None)
"""Flags to compile for this processor; the first one accepted by the compiler is used."""
TYPES = {4: ("float", "int32_t"), 8: ("double", "int64_t")}
"""Bytes of a value -> its C type, and the integer type of the same size."""
COMPILING_S = 120.0
"""Timeout for the compiler: it takes one or two seconds of CPU time, longer on a busy machine."""
_SOURCE = Path(__file__).with_name("kernel.c")
_DONE = 0
_pointer, _int, _double = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


class Trial(ctypes.Structure):
    """`trial` of kernel.c; its comments describe the fields."""

    _fields_ = (
        ("widths", _pointer), ("params", _pointer), ("states", _pointer * 3),
        ("rates", _pointer), ("kept", _pointer),
        ("n_layers", _int), ("activation", _int), ("rule", _int),
        ("is_nesterov", _int), ("is_centered", _int), ("n_steps", _int),
        ("weight_decay", _double), ("momentum", _double), ("dampening", _double),
        ("beta1", _double), ("beta2", _double), ("eps", _double), ("carried", _double),
        ("clip_norm", _double), ("dropout", _double),
        ("loss", _double), ("n_correct", _int), ("hits", _pointer), ("losses", _pointer),
    )  # fmt: skip


class CBatches(ctypes.Structure):
    """`batches` of kernel.c."""

    _fields_ = (
        ("x", _pointer), ("y", _pointer), ("order", _pointer),
        ("kind", _int), ("n_samples", _int), ("n_features", _int), ("n_classes", _int),
        ("batch_size", _int), ("mean", _double), ("std", _double),
    )  # fmt: skip


class Kernel:
    """The functions of kernel.c for float32 or float64. Calls release the GIL."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._train, self._evaluate = library.sweep_train, library.sweep_evaluate
        self._train.argtypes = (_pointer, _int, _pointer, _int, _int)
        self._evaluate.argtypes = (_pointer, _int, _pointer, _int, _int)
        self._update = library.sweep_update
        self._update.argtypes = (_pointer, _int, _pointer, _pointer, _int)

    def train(self, trials: ctypes.Array[Trial], data: CBatches, first: int, n_steps: int) -> None:
        """Train `n_steps` minibatches from number `first` on; adds up losses and correct samples.

        Raises MemoryError before any change.
        """
        if self._train(trials, len(trials), ctypes.byref(data), first, n_steps) != _DONE:
            raise MemoryError("no memory for a minibatch's activations")

    def evaluate(
        self, trials: ctypes.Array[Trial], data: CBatches, first: int, n_samples: int
    ) -> None:
        """Add up losses and correct samples of `n_samples` samples from number `first` on.

        Raises MemoryError before any change.
        """
        if self._evaluate(trials, len(trials), ctypes.byref(data), first, n_samples) != _DONE:
            raise MemoryError("no memory for a minibatch's activations")

    def update(
        self, trials: ctypes.Array[Trial], grads: ctypes.Array[Any],
        n_params: ctypes.Array[Any], step: int,
    ) -> None:  # fmt: skip
        """Take step `step` of those that `rates` of the trials are for.

        Args:
            trials: Their `params` and `states` point to n_params[k] values each.
            grads: Pointers to the gradients; those of clipped trials are changed.
            n_params: Values of each trial.
            step: From 0.
        """
        self._update(trials, len(trials), grads, n_params, step)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A kernel, or the reason for its absence."""

    kernel: Kernel | None
    why_not: str = ""
    """In a few words; empty if the kernel is disabled."""


def stride(n: int) -> int:
    """Distance between rows of `n` weights, in values."""
    return -(-n // 16) * 16


def load_kernel(value_bytes: int) -> Loaded:
    """The kernel for values of 4 or 8 bytes; compiles it if the user's cache has none."""
    if os.environ.get(SWITCH, "").lower() in ("off", "0", "no", "false"):
        return Loaded(None)
    return _load(value_bytes)


@functools.cache
def _load(value_bytes: int) -> Loaded:
    try:
        compiler = _compiler()
        source = _SOURCE.read_bytes()
        made_by = source, FLAGS, value_bytes, compiler, _version(compiler[0]), _processor()
        file = cache_file("kernels", *made_by)
        code = kept(file)
        if code is not None and (kernel := _sound(code, value_bytes)) is not None:
            return Loaded(kernel)
        code = _compile(compiler, *TYPES[value_bytes])
        if (kernel := _sound(code, value_bytes)) is None:
            raise _NoKernelError(f"{compiler[0]} compiled it to something else")
    except (OSError, subprocess.SubprocessError, _NoKernelError) as error:
        return Loaded(None, _one_line(error))
    keep(file, code)
    return Loaded(kernel)


class _NoKernelError(Exception):
    """No kernel can be made; the message gives the reason."""


def _compiler() -> list[str]:
    """The command of the C compiler: the first installed one of $CC and COMPILERS."""
    given = os.environ.get("CC", "")
    try:
        commands = [shlex.split(given), *([name] for name in COMPILERS)]
    except ValueError as error:
        raise _NoKernelError(f"CC={given!r} is no command: {error}") from error
    for words in commands:
        if words and shutil.which(words[0]):
            return words
    raise _NoKernelError("no C compiler (cc, gcc or clang) is installed")


def _version(command: str) -> tuple[int, int]:
    """Size and modification time of the compiler: quicker than calling it for its version."""
    status = os.stat(os.path.realpath(shutil.which(command) or command))  # noqa: PTH116
    return status.st_size, status.st_mtime_ns


def _compile(compiler: list[str], real: str, index: str, limit_s: float = COMPILING_S) -> bytes:
    said = ""
    with tempfile.TemporaryDirectory(prefix="sweep-") as folder:
        out = Path(folder, "kernel.so")
        types = (f"-DREAL={real}", f"-DINDEX={index}")
        for flag in PROCESSOR_FLAGS:
            flags = (*types, *FLAGS, *((flag,) if flag else ()))
            command = [*compiler, *flags, "-o", str(out), str(_SOURCE), "-lm"]
            code, errors = _call(command, limit_s)
            if code == 0 and out.is_file():
                return out.read_bytes()
            said = said or errors or f"exit code {code}, and no file"
    raise _NoKernelError(f"{compiler[0]} failed: {_one_line(said)}")


def _call(command: list[str], limit_s: float) -> tuple[int, str]:
    """Exit code and standard error of a program. On a timeout, kills its whole process group."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, errors="replace", start_new_session=True,
    ) as process:  # fmt: skip
        try:
            _, errors = process.communicate(timeout=limit_s)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                said = f"{command[0]} did not end within {limit_s:g} s"
                raise _NoKernelError(said) from error
            raise
    return process.returncode, errors


def _sound(code: bytes, value_bytes: int) -> Kernel | None:
    """The kernel in `code`; None if it cannot be loaded or computes wrong results."""
    try:
        kernel = Kernel(_library(code))
    except (OSError, AttributeError):
        return None
    return kernel if _is_sound(kernel, value_bytes) else None


def _library(code: bytes) -> ctypes.CDLL:
    """Load exactly these bytes: from memory if the system can, else from a temporary file."""
    with contextlib.suppress(OSError, AttributeError):
        # Never closed: for a path used before, the loader would return the earlier library.
        file = os.memfd_create("sweep-kernel")
        with os.fdopen(os.dup(file), "wb") as out:
            out.write(code)
        return ctypes.CDLL(f"/proc/self/fd/{file}")
    with tempfile.NamedTemporaryFile(prefix="sweep-", suffix=".so") as named:
        named.write(code)
        named.flush()
        return ctypes.CDLL(named.name)


def _processor() -> str:
    """Cache key of the processor: its features and libc, or the host name if they are unknown."""
    described = ""
    with contextlib.suppress(OSError):
        described = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    found = re.findall(r"^(?:model name|flags|Features|CPU part)\s*:.*$", described, re.MULTILINE)
    return f"{platform.machine()} {platform.libc_ver()} {sorted(set(found)) or platform.node()}"


def _is_sound(kernel: Kernel, value_bytes: int) -> bool:
    """Whether the kernel trains and evaluates a small network like textbook formulas in numpy.

    The sizes cover full and partial tiles, panels and transposed squares at any vector width.
    """
    dtype: Any = {4: np.float32, 8: np.float64}[value_bytes]
    n_samples, batch_size, widths = 91, 85, np.array([37, 23, 5], np.int64)
    n_in, n_hidden, n_out = map(int, widths)
    random = np.random.default_rng(0)
    x, y = random.normal(size=(n_samples, n_in)), random.integers(0, n_out, n_samples)
    order, rates = np.arange(n_samples), np.full(2, 0.1)
    shapes = ((n_hidden, n_in), n_hidden, (n_out, n_hidden), n_out)
    w1, b1, w2, b2 = (random.normal(size=shape) / 4 for shape in shapes)
    row1, row2 = stride(n_in), stride(n_hidden)
    ends = np.cumsum([n_hidden * row1, row2, n_out * row2, stride(n_out)])
    params = np.zeros(ends[-1], dtype)
    parts = np.split(params, ends[:-1])
    own = (parts[0].reshape(n_hidden, row1)[:, :n_in], parts[1][:n_hidden],
           parts[2].reshape(n_out, row2)[:, :n_hidden], parts[3][:n_out])  # fmt: skip
    for mine, given in zip(own, (w1, b1, w2, b2), strict=True):
        mine[:] = given
    trial = Trial(
        widths.ctypes.data, params.ctypes.data, rates=rates.ctypes.data, n_layers=2,
        rule=OPTIMIZERS["SGD"].kernel_rule, clip_norm=math.inf,
    )  # fmt: skip
    data = CBatches(x.ctypes.data, y.ctypes.data, order.ctypes.data, KINDS["float64"], n_samples,
                   n_in, n_out, batch_size, 0.0, 1.0)  # fmt: skip
    trials = (Trial * 1)(trial)
    kernel.train(trials, data, 0, 2)
    for rows in (slice(0, batch_size), slice(batch_size, n_samples)):
        a = np.maximum(x[rows] @ w1.T + b1, 0.0)
        shares = np.exp(a @ w2.T + b2)
        d = (shares / shares.sum(1, keepdims=True) - np.eye(n_out)[y[rows]]) / len(a)
        d1 = (d @ w2) * (a > 0.0)
        w2, b2 = w2 - 0.1 * d.T @ a, b2 - 0.1 * d.sum(0)
        w1, b1 = w1 - 0.1 * d1.T @ x[rows], b1 - 0.1 * d1.sum(0)
    trials[0].loss = 0.0
    kernel.evaluate(trials, data, 0, n_samples)
    logits = np.maximum(x @ w1.T + b1, 0.0) @ w2.T + b2
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(n_samples), y]
    near = {4: 1e-4, 8: 1e-10}[value_bytes]
    pairs = [*zip(own, (w1, b1, w2, b2), strict=True), (trials[0].loss, losses.sum())]
    return all(np.allclose(mine, right, near, near) for mine, right in pairs)


def _one_line(said: object) -> str:
    lines = str(said).strip().splitlines() or [type(said).__name__]
    return next((line for line in lines if "error" in line), lines[0]).strip()[:200]
