"""One line per trial that can be grepped."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import textwrap
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reporting_records import a_study, curve, finished, ready, report, started
from waiting import PATIENCE_S

from sweep.reporting.display import Display
from sweep.reporting.lines import KEYS, Lines, format_line, parse_line
from sweep.trial import Failure, Notice, StudyFinished, TrialFinished, TrialState


def lines_of(records, verbosity=0, **study):
    stream = io.StringIO()
    display = Display(Lines(stream, verbosity))
    display.open(a_study(**study))
    display.write(records)
    display.close()
    return stream.getvalue().splitlines()


@given(st.dictionaries(st.text(min_size=1), st.text(), max_size=8))
def test_any_pairs_parse_back(pairs):
    """Whatever text keys and values hold, a line is one ASCII line and gives them back."""
    line = format_line(pairs)
    assert line.isascii()
    assert len(line.splitlines()) <= 1
    assert parse_line(line + "\n") == pairs


@pytest.mark.parametrize("text", ["trial", "trial=", 'trial="3', "a=1  b=2", "=3", "a=b=c"])
def test_other_text_is_refused(text):
    """Text that no line can be raises ValueError."""
    with pytest.raises(ValueError, match="not a key=value pair"):
        parse_line(text)


def test_a_finished_trial_is_one_line():
    """A finished trial is one line with its value, the best so far and its hyperparameters."""
    records = [started(12), finished(12, 0.9833), started(17)]
    records += [report(17, 1, 0.9, epoch_s=2.0), report(17, 2, 0.91, epoch_s=1.1)]
    records += [finished(17, 0.9822)]
    assert lines_of(records)[1] == (
        "trial=17 state=COMPLETE val_acc=0.9822 best=0.9833@12 epoch=10/10 best_epoch=7 "
        "seconds=3.1 optimizer=Adam lr=1.2e-3 hidden=256-64"
    )


def test_a_failed_trial_says_why_and_what_is_unknown():
    """A failed trial's line holds the class and the message; unknown values are dashes."""
    failure = Failure("nan", 'loss is "nan" at step 3')
    record = finished(3, None, state=TrialState.FAIL, best_epoch=None, failure=failure)
    pairs = parse_line(lines_of([record])[0])
    assert pairs["message"] == 'loss is "nan" at step 3'
    assert [pairs[k] for k in ("state", "val_acc", "best", "best_epoch", "failure")] == [
        *("FAIL", "-", "-", "-", "nan")
    ]


def test_the_epoch_that_counts_and_the_last_one_are_told_apart():
    """`epoch` is how far the trial was trained, `best_epoch` which checkpoint was kept."""
    pruned = TrialFinished(2, TrialState.PRUNED, 0, 0.5, 3, {}, 8)
    pairs = parse_line(lines_of([started(2), pruned], epochs=60)[0])
    assert (pairs["epoch"], pairs["best_epoch"]) == ("8/60", "3")


@pytest.mark.parametrize("order", [(2, 5), (5, 2)])
def test_of_equal_values_the_earliest_trial_is_the_best(order):
    """Whichever of two equal trials ends first, the best is the one with the lower number."""
    records = [finished(number, 0.98) for number in order]
    assert parse_line(lines_of(records)[-1])["best"] == "0.98@2"


def test_an_interrupted_trial_has_no_line():
    """A trial that waits for the next session is not finished, so nothing is said of it."""
    assert lines_of([started(0), finished(0, 0.9, state=TrialState.WAITING)]) == []


@pytest.mark.parametrize(("direction", "best"), [("maximize", "0.9@0"), ("minimize", "0.5@1")])
def test_best_follows_the_direction(direction, best):
    """The best so far is the largest or the smallest value; a pruned trial is never the best."""
    records = [finished(0, 0.9), finished(1, 0.5), finished(2, 0.95, state=TrialState.PRUNED)]
    records.append(finished(3, 0.1, state=TrialState.PRUNED))
    assert parse_line(lines_of(records, direction=direction)[-1])["best"] == best


def test_a_continued_study_keeps_its_best():
    """The best of earlier sessions and its trial stand until they are beaten."""
    first, second = lines_of(
        [finished(7, 0.97), finished(8, 0.99)], n_done=7, best_value=0.98, best_number=4
    )
    assert parse_line(first)["best"] == "0.98@4"
    assert parse_line(second)["best"] == "0.99@8"


@pytest.mark.parametrize("name", [*KEYS, "val_acc"])
def test_a_hyperparameter_never_hides_a_key_of_the_line(name):
    """A hyperparameter that is named like a key gets `hp.` before its name."""
    pairs = parse_line(lines_of([started(0, **{name: "mine"}), finished(0)])[0])
    assert pairs[f"hp.{name}"] == "mine"


def test_verbose_adds_a_line_per_epoch():
    """-v writes each epoch; without it epochs are silent."""
    records = [started(3), report(3, 2, 0.91, train_loss=0.5)]
    assert lines_of(records) == []
    assert lines_of(records, verbosity=1) == [
        "trial=3 state=RUNNING val_acc=0.91 best=- epoch=2/10 seconds=1 train_loss=0.5"
    ]


def test_quiet_writes_nothing():
    """-q writes nothing at all."""
    records = [started(0), report(0, 1, 0.9), Notice(0, "halved"), finished(0)]
    assert lines_of(records, verbosity=-1) == []


def test_the_first_line_says_what_is_searched_and_where():
    """When the first worker is ready, a line names study, trials, metric, population, device."""
    lines = lines_of([ready(), ready()], n_done=7)
    assert lines == [
        "study=mnist-mlp trials=50 done=7 epochs=10 metric=val_acc direction=maximize "
        'population=32 device="cpu, 2 threads"'
    ]


def test_a_line_every_minute_however_long_the_first_trials_take():
    """In each interval a line says how far the search is, before and after a worker is ready."""
    reader, writer = os.pipe()
    with os.fdopen(reader) as source, os.fdopen(writer, "w") as sink:
        display = Display(Lines(sink, status_every_s=0.1))
        display.open(a_study(n_trials=4))
        assert parse_line(source.readline())["notice"].startswith("starting: a worker loads")
        display.write([ready(), *curve(0, 5), *curve(1, 3)])
        lines = [parse_line(source.readline()) for _ in range(4)]
        display.close()
    pairs = next(line for line in lines if line.get("running") == "2")
    expected = {"progress": "0.2", "trials": "0/4", "best": "-", "leading": "0.94@0"}
    assert expected.items() <= pairs.items()
    assert float(pairs["elapsed"]) < 60


def test_a_stop_is_acknowledged_at_once():
    """A signal handler's call is a line, though a record is just being taken in."""
    reader, writer = os.pipe()
    with os.fdopen(reader) as source, os.fdopen(writer, "w") as sink:
        display = Display(Lines(sink))
        display.open(a_study())
        display.acknowledge()
        said = parse_line(source.readline())["notice"]
        display.close()
    assert said == "stopping and saving; Ctrl-C again stops now"


def test_a_notice_is_a_line():
    """A notice is a line of its own, and the end of a study none."""
    end = StudyFinished(0, {}, None, None, None, "done")
    assert lines_of([Notice(0, "population halved to 16"), end]) == [
        'notice="population halved to 16"'
    ]


def test_each_line_is_flushed_and_a_paused_reader_holds_up_nobody():
    """Lines arrive while the display is open, and write() returns while the pipe is full."""
    reader, writer = os.pipe()
    with os.fdopen(reader) as source, os.fdopen(writer, "w") as sink:
        display = Display(Lines(sink))
        display.open(a_study())
        display.write([started(0), finished(0)])
        assert parse_line(source.readline())["trial"] == "0"
        many = [finished(i) for i in range(2000)]  # 140 kB, twice what a pipe holds
        display.write(many)
        closer = threading.Thread(target=display.close)
        closer.start()
        numbers = [parse_line(source.readline())["trial"] for _ in many]
        closer.join(PATIENCE_S)
    assert numbers == [str(i) for i in range(2000)]


def test_a_reader_that_goes_away_does_not_stop_the_search():
    """`sweep run | head -1`: the rest is dropped, and the process ends with code 0, silent."""
    code = """
        import sys, time
        from reporting_records import a_study, finished
        from sweep.reporting.display import Display
        from sweep.reporting.lines import Lines
        display = Display(Lines(sys.stdout))
        display.open(a_study())
        for number in range(30):
            display.write([finished(number)] * 50)
            time.sleep(0.005)
        display.close()
        print("the words at the end")
        sys.stderr.write("searched to the end")
    """
    search = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        text=True,
    )
    search.stdout.readline()
    search.stdout.close()
    with search.stderr as stderr:
        assert stderr.read() == "searched to the end"
    assert search.wait(PATIENCE_S) == 0
