"""Where records wait for MLflow: what a file keeps through kills, damage and a full disk."""

from __future__ import annotations

import math
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tracking_records as records
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sweep.errors import DiskError, UndeliveredError
from sweep.tracking import Pace
from sweep.tracking.codec import DamagedLineError, from_line, to_line
from sweep.tracking.delivery import Delivery
from sweep.tracking.spool import Spool
from sweep.trial import (
    CheckpointDropped,
    EpochReport,
    Notice,
    TrialFinished,
    TrialStarted,
    TrialState,
    WorkerReady,
)

HERE = Path(__file__).parent
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text() | st.just("@"), inner, max_size=3)
    ),
    max_leaves=8,
)


class Taker:
    """A sink that remembers what it was given; `error` is raised instead while it is set."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.taken: list[Any] = []

    def apply(self, entry: Any, reports: Any) -> None:
        self.log_epochs(-1, [*reports, entry])

    def log_epochs(self, number: int, reports: Any) -> None:
        if self.error is not None:
            raise self.error
        self.taken += reports

    def is_lasting(self, error: Exception) -> bool:
        return False

    def answers(self, number: int) -> bool:
        return self.error is None


def left_in(folder: Path) -> list[Any]:
    """What waits in a folder's spool."""
    spool = Spool(folder)
    found = []
    while spool.n_untaken:
        found += spool.take()
    spool.close()
    return found


@given(values, st.sampled_from([math.nan, math.inf, -math.inf, 0.1, 1e-300]))
def test_a_record_comes_back_as_it_was(value: Any, number: float) -> None:
    """Tuples, NaN, infinity, odd keys and any text survive the way to a line and back."""
    started = TrialStarted(3, "name", {"a": value, "hidden": (256, 64)}, {"@": value}, 5)
    report = EpochReport(3, 1, {"val_acc": number}, 7, is_replay=True)
    line = to_line(report)
    assert repr(from_line(line)) == repr(report)
    assert line.count(b"\n") == 1
    if "@" not in str(value):
        assert from_line(to_line(started)) == started


def test_every_kind_of_record_comes_back() -> None:
    """Failures, states, data sets and studies are again what they were."""
    entries = [
        *records.search(None), records.study_info(), Notice(1, "line"),
        WorkerReady(records.DATASET, "cpu", 4, 5), CheckpointDropped(3, 4),
    ]  # fmt: skip
    assert [from_line(to_line(entry)) for entry in entries] == entries
    assert type(from_line(to_line(entries[-6])).state) is TrialState


@given(st.binary(max_size=60), st.integers(0, 200), st.integers(1, 255))
def test_a_changed_line_is_found_out(junk: bytes, place: int, change: int) -> None:
    """No junk and no line with a changed byte is taken for a record."""
    with pytest.raises(DamagedLineError):
        from_line(junk)
    line = bytearray(to_line(EpochReport(3, 1, {"val_acc": 0.5}, 7)).rstrip(b"\n"))
    line[place % len(line)] ^= change
    with pytest.raises(DamagedLineError):
        from_line(bytes(line))


def test_what_was_not_delivered_is_there_again(tmp_path: Path) -> None:
    """A spool that is opened again gives what was not settled, in order, and nothing else."""
    written = records.search(None)
    spool = Spool(tmp_path)
    spool.append(written[:5])
    assert spool.take() == written[:5]
    spool.settle()
    spool.append(written[5:])
    spool.take()
    assert spool.close() == 0
    assert left_in(tmp_path) == written[5:]
    assert left_in(tmp_path) == written[5:]


def test_a_delivered_spool_is_empty_and_private(tmp_path: Path) -> None:
    """The files are 0600 whatever the umask; once all is delivered nothing is left in them."""
    before = os.umask(0)
    try:
        spool = Spool(tmp_path)
        spool.append(records.search(None))
        spool.take()
        spool.settle()
        modes = {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
        spool.close()
    finally:
        os.umask(before)
    assert modes == {0o600}
    assert [file.stat().st_size for file in tmp_path.iterdir()] == [0]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(1, 400))
def test_a_torn_last_line_is_dropped(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    """Cut anywhere, the file gives all records whose line is whole, and takes new ones."""
    folder = tmp_path_factory.mktemp("torn")
    written = records.epochs(0)
    spool = Spool(folder)
    spool.append(written)
    spool.close()
    file = folder / "spool.jsonl"
    data = file.read_bytes()
    kept = data[: max(0, len(data) - cut)]
    file.write_bytes(kept)
    n_whole = max(0, kept.count(b"\n") - 1)  # the first line is the header
    assert left_in(folder) == written[:n_whole]
    spool = Spool(folder)
    spool.append([Notice(1, "after")])
    spool.close()
    assert left_in(folder) == [*written[:n_whole], Notice(1, "after")]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_garbled_byte_costs_at_most_its_lines(
    tmp_path_factory: pytest.TempPathFactory, place: int, change: int
) -> None:
    """One wrong byte loses the record it is in (two where it was the line's end): the others
    come, in order, and the loss is counted unless it hit the header's own line."""
    folder = tmp_path_factory.mktemp("garbled")
    written = [*records.epochs(0), *records.epochs(1)]
    spool = Spool(folder)
    spool.append(written)
    spool.close()
    file = folder / "spool.jsonl"
    data = bytearray(file.read_bytes())
    data[place % len(data)] ^= change
    file.write_bytes(bytes(data))
    spool = Spool(folder)
    found = []
    while spool.n_untaken:
        found += spool.take()
    spool.close()
    assert len(found) >= len(written) - 2
    assert found == [entry for entry in written if entry in found]
    is_torn_end = place % len(data) == len(data) - 1
    assert spool.n_dropped > 0 or len(found) == len(written) or is_torn_end


def test_a_cursor_of_another_file_counts_for_nothing(tmp_path: Path) -> None:
    """After a power cut an old cursor beside a new file skips no record."""
    spool = Spool(tmp_path)
    spool.append(records.epochs(0))
    spool.take()
    spool.settle()
    cursor = (tmp_path / "spool.cursor").read_bytes()
    spool.close()
    spool = Spool(tmp_path)
    spool.append(records.search(None))
    spool.close()
    (tmp_path / "spool.cursor").write_bytes(cursor)
    assert left_in(tmp_path) == records.search(None)
    (tmp_path / "spool.cursor").write_bytes(b"")
    assert left_in(tmp_path) == records.search(None)


def test_a_full_spool_drops_epochs_first(tmp_path: Path) -> None:
    """Beyond its limit a spool keeps starts and results and counts the epochs it dropped; beyond
    twice the limit it takes nothing, so its size is bounded."""
    spool = Spool(tmp_path, limit_bytes=20_000)
    for number in range(200):
        spool.append(records.epochs(number))
    n_epochs_dropped = spool.n_dropped
    spool.append([records.finished(7, TrialState.PRUNED)])
    assert spool.n_dropped == n_epochs_dropped > 0
    for number in range(400):
        spool.append([records.started(number)])
    spool.close()
    assert (tmp_path / "spool.jsonl").stat().st_size < 2 * 20_000 + 1000
    left = left_in(tmp_path)
    assert len(left) + spool.n_dropped == 600 + 1 + 400
    assert records.finished(7, TrialState.PRUNED) in left


def test_a_long_search_keeps_its_spool_small(tmp_path: Path) -> None:
    """What is delivered is thrown away while the search goes on, with records still coming."""
    spool = Spool(tmp_path)
    sizes, taken = [], []
    for number in range(3000):
        spool.append(records.epochs(number))
        if number % 10 == 0:
            taken += spool.take()
            spool.append([Notice(number, "not taken yet")])
            spool.settle()
            sizes.append((tmp_path / "spool.jsonl").stat().st_size)
    while spool.n_untaken:
        taken += spool.take()
    assert max(sizes) < 1.5 * (1 << 20)
    assert sum(isinstance(entry, EpochReport) for entry in taken) == 9000
    assert [e.number for e in taken if isinstance(e, EpochReport)][::3] == list(range(3000))
    spool.close()


def test_a_killed_writer_loses_nothing_it_wrote(tmp_path: Path) -> None:
    """After SIGKILL in the midst of writing, all records whose append returned are there."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import tracking_records as r\n"
        "from pathlib import Path\n"
        "from sweep.tracking.spool import Spool\n"
        "spool, n = Spool(Path(sys.argv[2])), 0\n"
        "while True:\n"
        "    spool.append(r.epochs(n)); n += 1\n"
        "    print(n, flush=True)\n"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(HERE), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(HERE.parent)}, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert writer.stdout is not None
    time.sleep(0.2)
    writer.stdout.readline()
    time.sleep(0.2)
    os.kill(writer.pid, signal.SIGKILL)
    said = writer.stdout.read().split()
    writer.wait()
    writer.stdout.close()
    n_appended = int(said[-2]) if len(said) > 1 else 1  # the last word may be torn
    left = left_in(tmp_path)
    assert len(left) >= 3 * n_appended
    assert left == [e for n in range(len(left) // 3 + 1) for e in records.epochs(n)][: len(left)]


def test_a_full_disk_stops_no_search(tmp_path: Path) -> None:
    """Where the file cannot grow records stay in memory, in order, and are delivered; those
    that are not are said to be lost, and those in the file still wait."""
    code = """if True:
        import resource, sys
        sys.path.insert(0, sys.argv[1])
        import tracking_records as r
        from pathlib import Path
        from test_spool import Taker
        from sweep.errors import UndeliveredError
        from sweep.tracking import Pace
        from sweep.tracking.delivery import Delivery
        from sweep.tracking.spool import Spool

        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        pace = Pace(first_retry_s=0.01, retry_s=0.05, grace_s=0.2)
        written = [e for number in range(100) for e in r.epochs(number)]
        for name, sink in (("back", Taker()), ("away", Taker(ConnectionError("no answer")))):
            spool = Spool(Path(sys.argv[2], name))
            for number in range(100):
                spool.append(r.epochs(number))
            assert spool.n_untaken == 300 and spool.n_dropped == 0
            delivery = Delivery(lambda: sink, spool, pace)
            try:
                delivery.close()
                print(sink.taken == written)
            except UndeliveredError as error:
                print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", code, str(HERE), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(HERE.parent)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    delivered, lost = done.stdout.splitlines()
    assert delivered == "True"
    n_kept = len(left_in(tmp_path / "away"))
    assert 0 < n_kept < 300
    assert f"{300 - n_kept} records could not be delivered" in lost
    assert f"{n_kept} records for MLflow wait in" in lost


def test_the_end_says_what_waits_and_the_next_time_delivers_it(tmp_path: Path) -> None:
    """close() names the number of records and the file; the next delivery brings them, once."""
    pace = Pace(first_retry_s=0.01, retry_s=0.05, grace_s=0.2)
    written = records.search(None)
    delivery = Delivery(lambda: Taker(ConnectionError("no answer")), Spool(tmp_path), pace)
    delivery.put(written)
    with pytest.raises(UndeliveredError) as caught:
        delivery.close()
    assert f"{len(written)} records for MLflow wait in {tmp_path / 'spool.jsonl'}" in str(
        caught.value
    )
    assert "the same command delivers them" in str(caught.value)
    assert "no answer" in str(caught.value)
    sink = Taker()
    Delivery(lambda: sink, Spool(tmp_path), pace).close()
    assert sorted(map(repr, sink.taken)) == sorted(map(repr, written))
    assert left_in(tmp_path) == []


def test_a_call_that_hangs_does_not_hold_the_end(tmp_path: Path) -> None:
    """Where a call never returns, close() gives up after its grace and the file keeps all."""

    class Hanging(Taker):
        def log_epochs(self, number: int, reports: Any) -> None:
            time.sleep(5)

    pace = Pace(grace_s=0.2)
    delivery = Delivery(Hanging, Spool(tmp_path), pace)
    delivery.put(records.epochs(0))
    time.sleep(0.2)
    began = time.monotonic()
    with pytest.raises(UndeliveredError, match="3 records for MLflow wait"):
        delivery.close()
    assert time.monotonic() - began < 4
    assert left_in(tmp_path) == records.epochs(0)


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    """A file in the place of the folder, or a link in the place of the spool, is a DiskError."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match=r"spool\.jsonl cannot be written"):
        Spool(tmp_path / "file")
    (tmp_path / "spool.jsonl").symlink_to(tmp_path / "file")
    with pytest.raises(DiskError, match=r"spool\.jsonl cannot be written"):
        Spool(tmp_path)
    assert (tmp_path / "file").read_text() == ""


def test_credentials_are_left_out(tmp_path: Path) -> None:
    """A traceback that names an address with a password is kept without it."""
    failed = records.finished(2, TrialState.FAIL)
    assert isinstance(failed, TrialFinished)
    spool = Spool(tmp_path)
    spool.append([Notice(1, "no answer from http://me:hunter2@host:5000/api")])
    spool.close()
    assert b"hunter2" not in (tmp_path / "spool.jsonl").read_bytes()
    assert left_in(tmp_path) == [Notice(1, "no answer from http://***@host:5000/api")]
