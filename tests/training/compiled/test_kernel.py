"""Where the kernel comes from: compiler, cache, check; and what is said where there is none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from searches import in_this_process
from waiting import wait_until

from sweep.training.compiled.kernel import FLAGS, TYPES, _compile, _NoKernelError

LOAD = """
    from sweep.training.compiled.kernel import load_kernel
    loaded = load_kernel({value_bytes})
    print(loaded.kernel is not None, loaded.why_not, sep="|")
"""

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


def load(home: Path, *, value_bytes: int = 4, **environment: str) -> tuple[bool, str]:
    """Whether a new process gets a kernel, and why not."""
    code = textwrap.dedent(LOAD.format(value_bytes=value_bytes))
    kept = {k: v for k, v in os.environ.items() if k not in ("CC", "SWEEP_KERNEL")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=kept | {"XDG_CACHE_HOME": str(home)} | environment,
    )  # fmt: skip
    found, why_not = done.stdout.strip().split("|")
    assert not done.stderr
    return found == "True", why_not


def kernels(home: Path) -> list[Path]:
    """What the cache has of them."""
    return sorted((home / "sweep" / "kernels").glob("*"))


def counting_compiler(folder: Path) -> str:
    """A compiler that leaves a mark each time it is called; it optimizes nothing, to be fast."""
    script = folder / "mycc"
    script.write_text(f'#!/bin/sh\necho called >> {folder / "calls"}\nexec cc "$@" -O0\n')
    script.chmod(0o755)
    return str(script)


def n_calls(folder: Path) -> int:
    """How often that compiler was called."""
    calls = folder / "calls"
    return len(calls.read_text().splitlines()) if calls.exists() else 0


def test_it_is_compiled_once(tmp_path):
    """The second process takes what the first has left in the user's cache, for each type."""
    compiler = counting_compiler(tmp_path)
    for _ in range(2):
        assert load(tmp_path, CC=compiler) == (True, "")
    assert n_calls(tmp_path) == 1
    assert load(tmp_path, CC=compiler, value_bytes=8) == (True, "")
    assert n_calls(tmp_path) == 2
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in kernels(tmp_path))


def test_a_damaged_one_is_compiled_again(tmp_path):
    """A file that was cut off in the cache is not loaded."""
    compiler = counting_compiler(tmp_path)
    load(tmp_path, CC=compiler)
    (file,) = kernels(tmp_path)
    file.write_bytes(file.read_bytes()[:-100])
    assert load(tmp_path, CC=compiler) == (True, "")
    assert n_calls(tmp_path) == 2


def test_no_home_is_no_obstacle(tmp_path):
    """Where there is no cache folder it is compiled each time."""
    (tmp_path / "sweep").write_text("a file where the folder should be")
    assert load(tmp_path, CC=counting_compiler(tmp_path)) == (True, "")
    assert n_calls(tmp_path) == 1


def test_no_compiler(tmp_path):
    """One line says what is missing."""
    assert load(tmp_path, PATH=str(tmp_path)) == (
        False,
        "no C compiler (cc, gcc or clang) is installed",
    )


def test_a_compiler_that_fails(tmp_path):
    """What it says is said, and the next search tries again."""
    found, why_not = load(tmp_path, CC="cc -include missing.h")
    assert not found
    assert why_not.startswith("cc failed: ")
    assert "missing.h" in why_not
    assert not kernels(tmp_path)


def test_a_compiler_that_makes_something_else(tmp_path):
    """A library that does not train as numpy does is not used."""
    compiler = counting_compiler(tmp_path)
    found, why_not = load(tmp_path, CC=f"{compiler} -Dexpf=coshf")
    assert (found, why_not) == (False, f"{compiler} compiled it to something else")
    assert not kernels(tmp_path)


def test_a_compiler_that_does_not_know_the_processor(tmp_path):
    """Where it cannot be told to compile for this one, it compiles for all."""
    script = tmp_path / "plaincc"
    script.write_text(
        "#!/bin/sh\nfor a; do case $a in -march=native|-mcpu=native) exit 1;; esac; done\n"
        'exec cc "$@" -O0\n'
    )
    script.chmod(0o755)
    assert load(tmp_path, CC=str(script)) == (True, "")


def test_a_compiler_that_is_replaced(tmp_path):
    """Another compiler under the same name compiles anew; what the first has left is not used."""
    compiler = Path(counting_compiler(tmp_path))
    load(tmp_path, CC=str(compiler))
    compiler.write_text(compiler.read_text() + "\n# a new version\n")
    assert load(tmp_path, CC=str(compiler)) == (True, "")
    assert n_calls(tmp_path) == 2


def test_a_command_that_is_none(tmp_path):
    """What CC holds is said where it cannot be read as a command."""
    found, why_not = load(tmp_path, CC='gcc "')
    assert not found
    assert why_not.startswith("CC='gcc \"' is no command")


def test_a_compiler_that_makes_no_library(tmp_path):
    """What cannot be loaded is no kernel."""
    script = tmp_path / "notcc"
    script.write_text(
        '#!/bin/sh\nfor last; do [ "$past" = -o ] && echo no > "$last"; past=$last; done\n'
    )
    script.chmod(0o755)
    found, why_not = load(tmp_path, CC=str(script))
    assert not found
    assert "something else" in why_not


@pytest.mark.parametrize(("command", "code"), [("false", 1), ("true", 0)])
def test_a_compiler_that_says_nothing(tmp_path, command, code):
    """How it ended is said."""
    found, why_not = load(tmp_path, CC=command)
    assert (found, why_not) == (False, f"{command} failed: exit code {code}, and no file")


def test_a_compiler_that_hangs(tmp_path):
    """It is ended with all that it started, and that is said."""
    script, pid = tmp_path / "slowcc", tmp_path / "pid"
    script.write_text(f"#!/bin/sh\nsleep 300 &\necho $! > {pid}\nwait\n")
    script.chmod(0o755)
    with pytest.raises(_NoKernelError, match="slowcc did not end within 2 s"):
        _compile([str(script)], *TYPES[4], limit_s=2.0)
    wait_until(lambda: not is_alive(int(pid.read_text())))


def is_alive(pid):
    """A zombie is not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("value", ["off", "OFF", "0"])
def test_it_can_be_switched_off(tmp_path, value):
    """Then nothing is compiled and nothing is said."""
    assert load(tmp_path, SWEEP_KERNEL=value) == (False, "")
    assert not kernels(tmp_path)


def test_both_types_in_one_process(tmp_path):
    """The loader must not take the second library for the first."""
    code = """
        from sweep.training.compiled.kernel import load_kernel
        for value_bytes in (8, 4):
            assert load_kernel(value_bytes).kernel, load_kernel(value_bytes).why_not
    """
    own = {"XDG_CACHE_HOME": str(tmp_path), "CC": counting_compiler(tmp_path)}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    subprocess.run(command, check=True, env=os.environ | own)
    assert n_calls(tmp_path) == 2


def test_it_compiles_without_warnings(tmp_path):
    """For both types."""
    source = Path(__file__).resolve().parents[3] / "sweep" / "training" / "compiled" / "kernel.c"
    for real, index in TYPES.values():
        done = subprocess.run(
            ["cc", *FLAGS, "-march=native", f"-DREAL={real}", f"-DINDEX={index}", "-Wall",
             "-Wextra", "-Wconversion", "-Werror", "-o", str(tmp_path / real), str(source),
             "-lm"],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("ready_store")
def test_a_search_without_a_compiler_says_so(tmp_path):
    """It takes longer, and says why; its worker is a process that has no kernel yet."""
    own = {"XDG_CACHE_HOME": str(tmp_path), "CC": "", "PATH": str(tmp_path)}
    done = in_this_process(tmp_path, own, "run", "--trials", "3", "--epochs", "1")
    assert done.returncode == 0, done.stderr
    assert "no C compiler (cc, gcc or clang) is installed" in done.stdout
    assert not kernels(tmp_path)
