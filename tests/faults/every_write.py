"""Every write is a place to die: fault one write of a search, run it again, compare the stores.

    python tests/faults/every_write.py --every --fault kill --population auto --jobs 2
    python tests/faults/every_write.py --sample 20 --seed 7 --side worker

A search writes to its folder at some hundred places. At the K-th of them the process dies ("kill";
"torn": within that write), or the operation fails ("eio", "enospc"), or it and all later ones that
need room fail ("full"). Then the same command runs undisturbed, and both stores and all files must
be those of an undisturbed search. `writes.c` counts and faults.

`--side both` trains in the driver's process: the process that forks has loaded all libraries, so
that a place costs a second. `--side driver` and `--side worker` run real commands with a worker
process, ten times slower, and fault the named process.

With `--results FILE` each place is a line of JSON there; those without a violation are not tried
again by the next call.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import ctypes
import dataclasses
import gc
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from stores import differences, facts, stable  # noqa: E402

FAULTS = ("kill", "torn", "eio", "enospc", "full")
SIDES = ("both", "driver", "worker")
EXIT_CODES = (0, 1, 2, 3, 4, 5, 6, 7, 130)
LONGEST_RUN_S = 180.0
MOST_LINES = 8
WORKER = "sweep.executors.worker"


@dataclass(frozen=True)
class Plan:
    """What is searched, and which process is faulted."""

    population: str = "auto"
    side: str = "both"
    trials: int = 3
    epochs: int = 2

    def command(self) -> list[str]:
        """Arguments of `sweep`."""
        return [
            "run", "--study", "s", "--trials", str(self.trials), "--epochs", str(self.epochs),
            "--sampler", "random", "--threads", "1", "--checkpoint-interval", "0.001",
            "--population", self.population,
            "--executor", "inline" if self.side == "both" else "process",
            *(("--keep", "2") if self.population != "1" else ()), "--quiet",
        ]  # fmt: skip


@dataclass(frozen=True)
class Place:
    """The K-th write of a plan's search, and what happens there."""

    plan: Plan
    fault: str
    at: int

    def name(self) -> str:
        return f"{self.plan.side}-{self.plan.population}-{self.fault}-{self.at}"


@dataclass
class Finding:
    """What came of one place."""

    place: str
    where: str = ""
    """The operation that was faulted, and its file; empty: the search ended before."""
    codes: list[int] = dataclasses.field(default_factory=list)
    said: list[str] = dataclasses.field(default_factory=list)
    violations: list[str] = dataclasses.field(default_factory=list)


def build(folder: Path) -> Path:
    """Compile writes.c. Raises OSError or CalledProcessError where that cannot be done."""
    library = folder / "writes.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(HERE / "writes.c"), "-ldl"],
        check=True,
        capture_output=True,
    )
    return library


@dataclass(frozen=True)
class Shim:
    """How one command is faulted, and the files outside the project in which that is noted."""

    root: Path
    fault: str = "count"
    at: int = 0

    def files(self) -> tuple[Path, Path]:
        """Trace of all places; the place that was faulted."""
        return self.root.parent / "trace", self.root.parent / "fired"

    def arm(self) -> None:
        """Count from now on in this process."""
        trace, fired = self.files()
        names = (
            str(self.root),
            self.fault,
            str(trace) if self.fault == "count" else "",
            str(fired),
        )
        root, fault, trace_name, fired_name = (name.encode() for name in names)
        ctypes.CDLL(None).writes_arm(root, ctypes.c_long(self.at), fault, trace_name, fired_name)

    def environment(self, side: str) -> dict[str, str]:
        """For a command that is to be faulted in its driver or its workers."""
        trace, fired = self.files()
        who = {"WRITES_WHO": "sweep.cli", "WRITES_NOT": WORKER}
        return (who if side == "driver" else {"WRITES_WHO": WORKER}) | {
            "WRITES_ROOT": str(self.root), "WRITES_AT": str(self.at),
            "WRITES_FAULT": self.fault, "WRITES_FIRED": str(fired),
            "WRITES_TRACE": str(trace) if self.fault == "count" else "",
        }  # fmt: skip


def sweep(folder: Path, arguments: Sequence[str], name: str, shim: Shim | None = None) -> int:
    """Run `sweep` in a fork of this process; its exit code, negative for a signal.

    What it prints goes to the files `name`.out and `name`.err beside the folder.
    """
    pid = os.fork()
    if pid:
        return _wait(pid)
    os.setsid()
    os.chdir(folder)
    for number, path in ((0, os.devnull), (1, f"../{name}.out"), (2, f"../{name}.err")):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(path, flags, 0o600), number)
    sys.argv = ["sweep", *arguments]
    if shim is not None:
        shim.arm()
    _end(_sweep)
    raise AssertionError


def _end(command: Callable[[], None]) -> None:
    """End this process with the command's exit code, without a second of taking libraries down."""
    code: object = 0
    try:
        command()
    except SystemExit as left:
        code = left.code
    threading._shutdown()  # waits for threads, as the interpreter does
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def sweep_process(
    folder: Path, arguments: Sequence[str], name: str, shim: Shim | None = None, side: str = ""
) -> int:
    """The same in a process of its own, with workers; the shim faults one side of it."""
    env = dict(os.environ) | (shim.environment(side) if shim else {})
    out, err = (folder.parent / f"{name}.{what}" for what in ("out", "err"))
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", "from sweep.cli import main; main()", *arguments],
            cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
            start_new_session=True,
        )  # fmt: skip
    code = _wait(process.pid)
    process.returncode = code
    return code


def _wait(pid: int) -> int:
    deadline = time.monotonic() + LONGEST_RUN_S
    pause_s = 0.002
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            _end_group(pid)
            return os.waitstatus_to_exitcode(status)
        time.sleep(pause_s)
        pause_s = min(0.05, 1.2 * pause_s)
    _end_group(pid)
    os.waitpid(pid, 0)
    return -signal.SIGALRM  # it hung


def _end_group(pid: int) -> None:
    """Workers leave within a second of their driver's death; here they leave at once."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def run(plan: Plan, folder: Path, name: str, shim: Shim | None = None) -> int:
    """The plan's search in `folder`, once."""
    if plan.side == "both":
        return sweep(folder, plan.command(), name, shim)
    return sweep_process(folder, plan.command(), name, shim, plan.side)


def reference(plan: Plan, folder: Path) -> tuple[dict[str, object], list[str]]:
    """What an undisturbed search leaves, and its places in order ("operation file").

    Two searches are compared: what differs between them (times, ids) is no fact.
    """
    found = []
    for part in ("a", "b"):
        project = folder / part / "project"
        project.mkdir(parents=True)
        code = run(plan, project, "run", Shim(project))
        if code:
            raise RuntimeError((folder / part / "run.err").read_text())
        found.append(facts(project))
    trace = [line.split(" ", 1)[1] for line in Shim(project).files()[0].read_text().splitlines()]
    return stable(*found), trace


def try_place(place: Place, expected: dict[str, object], folder: Path) -> Finding:
    """Fault the search there, run it again until it is done, and compare."""
    project = folder / "project"
    project.mkdir(parents=True)
    shim = Shim(project, place.fault, place.at)
    finding = Finding(place.name())
    finding.codes.append(run(place.plan, project, "run1", shim))
    _listen(finding, folder, "run1", is_killed=place.fault in ("kill", "torn"))
    fired = shim.files()[1]
    if not fired.is_file():
        return finding
    finding.where = fired.read_text().splitlines()[0].split(" ", 1)[1]
    for again in ("run2", "run3"):
        finding.codes.append(run(place.plan, project, again))
        _listen(finding, folder, again)
        if finding.codes[-1] == 0:
            break
    if finding.codes[1] != 0:
        finding.violations.append(f"the next run left with {finding.codes[1]}")
    if said := examined(project):
        finding.violations.append(f"doctor: {said}")
    try:
        finding.violations += differences(facts(project), expected)
    except Exception as error:  # noqa: BLE001 - a store that cannot be read is a finding
        finding.violations.append(f"cannot be compared: {error!r}")
    return finding


def examined(project: Path) -> str:
    """What `sweep doctor` says of the study, in this process; empty where it finds nothing."""
    os.chdir(project)
    sys.argv = ["sweep", "doctor", "s"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            _sweep()
        except SystemExit as left:
            return said.getvalue().strip() if left.code else ""
    raise AssertionError


def _sweep() -> None:
    from sweep.cli.main import main

    main()


def _listen(finding: Finding, folder: Path, name: str, *, is_killed: bool = False) -> None:
    """What a run said on standard error: one line that says what to do, and no traceback."""
    code, said = finding.codes[-1], (folder / f"{name}.err").read_text().splitlines()
    finding.said += [f"{name}: {line}" for line in said]
    if code == -signal.SIGKILL and is_killed:
        return
    if code not in EXIT_CODES:
        finding.violations.append(f"{name} left with {code}")
    if any("Traceback" in line or "bug in sweep" in line for line in said) or len(said) > 1:
        finding.violations.append(f"{name} said {said[-1][:300]}")
    if code and not said:
        finding.violations.append(f"{name} left with {code} and said nothing")


def places_of(plan: Plan, faults: Sequence[str], trace: Sequence[str]) -> list[Place]:
    """Every place of a search with every fault."""
    return [Place(plan, fault, at + 1) for fault in faults for at in range(len(trace))]


def try_all(
    places: Sequence[Place],
    expected: dict[Plan, dict[str, object]],
    folder: Path,
    n_jobs: int = 1,
) -> Iterator[Finding]:
    """Try places, some at a time, each in a fork of this process that ends with it."""
    waiting, running = list(reversed(places)), dict[int, tuple[Place, Path]]()
    while waiting or running:
        while waiting and len(running) < n_jobs:
            place = waiting.pop()
            own = folder / place.name()
            own.mkdir(parents=True)
            pid = os.fork()
            if not pid:
                _leave(lambda p=place, f=own: try_place(p, expected[p.plan], f), own / "finding")
            running[pid] = (place, own)
        pid, status = os.wait()
        if pid not in running:
            continue
        place, own = running.pop(pid)
        if status:
            yield Finding(place.name(), "?", violations=[f"the harness failed with {status}"])
            continue
        finding = Finding(**json.loads((own / "finding").read_text()))
        if not finding.violations:
            shutil.rmtree(own)
        yield finding


def _leave(work: Callable[[], Finding], file: Path) -> None:
    """Ends this process, which is a fork, with its finding in `file`."""
    finding = work()  # its own forks end in here, by SystemExit
    file.write_text(json.dumps(dataclasses.asdict(finding)))
    os._exit(0)


def warm_up(folder: Path) -> None:
    """Load what a search loads, by one of each population."""
    before, arguments = Path.cwd(), sys.argv
    project = folder / "warm"
    project.mkdir(parents=True)
    os.chdir(project)
    with (folder / "warm.out").open("w") as out, contextlib.redirect_stdout(out):
        for number, population in enumerate(("1", "auto")):
            command = Plan(population).command()
            sys.argv = ["sweep", *command, "--study", f"warm{number}"]
            with contextlib.suppress(SystemExit):
                _sweep()
        for command in (["doctor", "warm1"], ["trials", "warm1"]):
            sys.argv = ["sweep", *command]
            with contextlib.suppress(SystemExit):
                _sweep()
    os.chdir(before)
    sys.argv = arguments
    gc.collect()
    gc.freeze()  # a fork leaves these pages shared


def preloaded(folder: Path) -> dict[str, str]:
    """The environment in which this script can fault, with the shim."""
    cache = os.environ.get("XDG_CACHE_HOME", str(folder / "cache"))
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SWEEP_", "MLFLOW_"))}
    return kept | {
        "LD_PRELOAD": str(build(folder)), "XDG_CACHE_HOME": cache, "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), kept.get("PYTHONPATH", "")]),
    }  # fmt: skip


def main() -> None:
    """Try places from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--every", action="store_true", help="all places")
    which.add_argument("--sample", type=int, metavar="N", help="N places, chosen by the seed")
    which.add_argument("--at", type=int, nargs="+", metavar="K", help="these places")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--side", choices=SIDES, default=["both"], nargs="+")
    parser.add_argument("--fault", choices=FAULTS, default=list(FAULTS), nargs="+")
    parser.add_argument("--population", default=["auto", "1"], nargs="+")
    parser.add_argument("--jobs", type=int, default=1, help="places tried side by side")
    parser.add_argument("--step", type=int, default=1, help="with --every: each STEP-th place")
    parser.add_argument("--results", type=Path, help="file of findings, to go on with")
    parser.add_argument("--keep", type=Path, help="folder in which violated projects stay")
    args = parser.parse_args()
    if "WRITES_FOLDER" not in os.environ:
        with tempfile.TemporaryDirectory(prefix="every-write-") as folder:
            env = preloaded(Path(folder)) | {"WRITES_FOLDER": folder}
            done = subprocess.run([sys.executable, *sys.argv], env=env, check=False)
        sys.exit(done.returncode)
    folder = Path(os.environ["WRITES_FOLDER"])
    print(f"seed {args.seed}", flush=True)
    if not soak(args, folder):
        sys.exit(1)


def soak(args: argparse.Namespace, folder: Path) -> bool:
    """Whether no place was violated. Prints each that was."""
    warm_up(folder)
    expected, places = {}, list[Place]()
    for side in args.side:
        for population in args.population:
            plan = Plan(population, side)
            expected[plan], trace = reference(plan, folder / f"reference-{side}-{population}")
            print(f"{side}, population {population}: {len(trace)} places", flush=True)
            places += places_of(plan, args.fault, trace)
    if args.sample:
        places = random.Random(args.seed).sample(places, min(args.sample, len(places)))
    if args.at:
        places = [place for place in places if place.at in args.at]
    places = places[args.seed % args.step :: args.step]
    known = _known(args.results)
    places = [place for place in places if place.name() not in known]
    n_tried = n_reached = n_violated = 0
    for finding in try_all(places, expected, args.keep or folder / "places", args.jobs):
        n_tried, n_reached = n_tried + 1, n_reached + bool(finding.where)
        n_violated += bool(finding.violations)
        if finding.violations:
            print(f"{finding.place} {finding.where}: codes {finding.codes}", flush=True)
            more = len(finding.violations) - MOST_LINES
            lines = finding.violations[:MOST_LINES] + [f"... and {more} more"] * (more > 0)
            print("".join(f"    {line}\n" for line in lines), end="", flush=True)
        if args.results:
            with args.results.open("a") as file:
                file.write(json.dumps(dataclasses.asdict(finding)) + "\n")
    print(f"{n_tried} places, {n_reached} reached, {n_violated} violated")
    return not n_violated


def _known(results: Path | None) -> set[str]:
    if results is None or not results.is_file():
        return set()
    findings = map(json.loads, results.read_text().splitlines())
    return {finding["place"] for finding in findings if not finding["violations"]}


if __name__ == "__main__":
    main()
