"""What is printed while a verb works, where there is no terminal."""

import pytest

from retrm.cli.console import out, progress, reading_progress, size_in_words, table
from retrm.features.read import Progress


def test_the_time_left_of_a_reading_follows_from_the_rate_beside_it(capsys, monkeypatch):
    monkeypatch.setattr("retrm.cli.console.PLAIN_INTERVAL_S", 0.0)
    with reading_progress("reading") as on_progress:
        on_progress(Progress(1, 4, 100, 400, 50.0))

    # 100 tokens in 50 s are 2 a second, so the other 300 take 150 s, whenever the line was begun.
    printed = " ".join(capsys.readouterr().err.split())
    assert printed == "reading: 100/400 1/4 answers, 2 tokens/s 0:02:30 left"


def test_before_the_first_step_no_time_is_told(capsys, monkeypatch):
    monkeypatch.setattr("retrm.cli.console.PLAIN_INTERVAL_S", 0.0)
    with progress("fitting") as report:
        report(0, 5, "folds")

    assert capsys.readouterr().err == "fitting: 0/5  folds\n"


@pytest.mark.parametrize(
    ("n_bytes", "words"),
    [
        (999, "999 B"),
        (3_100, "3.1 kB"),
        (64_000_000, "64.0 MB"),
        (1_080_000_000, "1.1 GB"),
        (5_310_000_000_000, "5.3 TB"),
    ],
)
def test_a_size_has_the_largest_unit_that_it_reaches(n_bytes, words):
    assert size_in_words(n_bytes) == words


def test_a_table_without_names_of_columns_has_no_line_for_them(capsys):
    out.print(table("dry run", ["", ""], [["answers", "48"]]))
    out.print(table("dry run", ["", "n"], [["answers", "48"]]))

    bare, named = capsys.readouterr().out.split("dry run\n")[1:]
    assert [line.strip() for line in bare.splitlines() if line.strip()] == ["answers   48"]
    assert next(line.split() for line in named.splitlines() if line.strip()) == ["n"]
