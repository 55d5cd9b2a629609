"""What of a study's folder travels: changes alone, ends of files that grow, nothing elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sweep.errors import StoreError
from sweep.executors.luggage import PIECE, Luggage, Parcel
from sweep.files.trial_files import BEST, RESUME_STATE, STEPS, TrialFiles


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return tmp_path / "here"


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return tmp_path / "there"


def names(parcels: list[Parcel]) -> list[str]:
    return sorted(Path(p.name).name for p in parcels)


def test_changed_files_travel_once(here: Path, there: Path) -> None:
    """A file goes along with the first message after its change, whole or its end."""
    files, sender, receiver = TrialFiles(here, 7), Luggage(here, ["sweep.log"]), Luggage(there)
    files.put(RESUME_STATE, b"first")
    files.append(STEPS, b"one\n")
    (here / "sweep.log").write_text("hello\n")
    receiver.unpack(sender.packed([7]))
    assert sender.packed([7]) == []
    files.put(RESUME_STATE, b"second")
    files.append(STEPS, b"two\n")
    with (here / "sweep.log").open("a") as log:
        log.write("there\n")
    parcels = sender.packed([7])
    assert {Path(p.name).name: p.start for p in parcels} == {
        RESUME_STATE: 0, "steps.jsonl": 4, "sweep.log": 6,
    }  # fmt: skip
    with (there / "sweep.log").open("a") as log:
        log.write("another worker's\n")
    receiver.unpack(parcels)
    told = TrialFiles(there, 7)
    assert told.get(RESUME_STATE) == b"second"
    assert told.get(STEPS) == b"one\ntwo\n"
    assert (there / "sweep.log").read_text() == "hello\nanother worker's\nthere\n"
    assert told.path(RESUME_STATE).stat().st_mtime == files.path(RESUME_STATE).stat().st_mtime


def test_what_is_gone_is_removed(here: Path, there: Path) -> None:
    """The resume file of an ended trial goes on both sides; other trials' files are left alone."""
    sender, receiver = Luggage(here), Luggage(there)
    for number in (1, 2):
        TrialFiles(here, number).put(RESUME_STATE, b"state")
    receiver.unpack(sender.packed([1, 2]))
    TrialFiles(here, 1).remove(RESUME_STATE)
    TrialFiles(here, 1).put(BEST, b"best")
    parcels = sender.packed([1])
    assert names(parcels) == [BEST, RESUME_STATE]
    receiver.unpack(parcels)
    assert TrialFiles(there, 1).get(RESUME_STATE) is None
    assert TrialFiles(there, 2).get(RESUME_STATE) == b"state"


def test_a_file_that_was_made_anew_is_no_longer_one(here: Path, there: Path) -> None:
    """A trial that starts again has new steps: they do not go behind the old ones."""
    files, sender, receiver = TrialFiles(here, 0), Luggage(here), Luggage(there)
    files.append(STEPS, b"old\n")
    receiver.unpack(sender.packed([0]))
    aside = files.path(STEPS).with_name("aside")
    aside.write_bytes(b"new and longer\n")
    aside.replace(files.path(STEPS))
    receiver.unpack(sender.packed([0]))
    assert TrialFiles(there, 0).get(STEPS) == b"new and longer\n"


def test_large_files_travel_in_pieces(here: Path, there: Path) -> None:
    """Each whole piece is held for its receiver; what is left goes with the message."""
    content = os.urandom(PIECE + 5)
    TrialFiles(here, 0).put(BEST, content)
    held: list[bytes] = []

    def hold(piece: bytes) -> int:
        held.append(piece)
        return len(held) - 1

    (parcel,) = Luggage(here, hold=hold).packed([0])
    assert parcel.pieces == [0, content[PIECE:]]
    Luggage(there).unpack([parcel], lambda p: held[p] if isinstance(p, int) else p)
    assert TrialFiles(there, 0).get(BEST) == content


@pytest.mark.parametrize("name", ["../outside", "/outside", "trials/../../outside"])
def test_a_name_elsewhere_is_refused(there: Path, name: str) -> None:
    """A worker writes into its study's folder, nowhere else."""
    with pytest.raises(StoreError, match="outside"):
        Luggage(there).unpack([Parcel(name, [b"x"])])
    assert not (there.parent / "outside").exists()


def test_a_trial_that_is_forgotten_leaves_no_file(here: Path) -> None:
    """A node's disk holds the trials that train there."""
    sender = Luggage(here)
    TrialFiles(here, 3).put(BEST, b"best")
    assert names(sender.packed([3])) == [BEST]
    sender.forget(3)
    assert TrialFiles(here, 3).get(BEST) is None
    assert sender.packed([3]) == []


def test_what_a_user_keeps_travels(here: Path, there: Path) -> None:
    """Hidden files and folders do; pipes, links and what ranks have for themselves do not."""
    own = TrialFiles(here, 0).path("own")
    (own / "deep").mkdir(parents=True)
    (own / ".state").write_bytes(b"state")
    (own / "deep" / "file").write_bytes(b"")
    (own / "link").symlink_to(own / ".state")
    os.mkfifo(own / "pipe")
    TrialFiles(here, 0).put("ranks/1/last.ckpt", b"a copy")
    sender, receiver = Luggage(here), Luggage(there)
    parcels = sender.packed([0])
    assert names(parcels) == [".state", "file"]
    receiver.unpack(parcels)
    (own / "deep" / "file").unlink()
    (own / "deep").rmdir()
    (own / "deep").write_bytes(b"now a file")
    receiver.unpack(sender.packed([0]))
    assert TrialFiles(there, 0).get("own/deep") == b"now a file"
