"""CSV files as records: every value a text, places by line, faults named."""

import gzip

import pytest

from retrm.data.read import read_records
from retrm.errors import DataError


def write(path, text):
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.CSV"])
def test_rows_are_records_of_texts_with_the_line_on_which_they_begin(tmp_path, name):
    # The answer of the first row goes on over a line break, so the second row begins on line 4.
    path = write(tmp_path / name, '\ufeff,prompt,response\n1,p,"a, ""b""\nc"\n2,q,d\u2028e\n\n')
    records = list(read_records(path))
    assert [r.fields for r in records] == [
        {"": "1", "prompt": "p", "response": 'a, "b"\nc'},
        {"": "2", "prompt": "q", "response": "d\u2028e"},
    ]
    assert [r.where for r in records] == [f"{name}:2", f"{name}:4"]


def test_an_empty_file_and_a_header_alone_give_no_record(tmp_path):
    assert list(read_records(write(tmp_path / "a.csv", ""))) == []
    assert list(read_records(write(tmp_path / "b.csv", "prompt,response\n"))) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n1,2,3\n", "a.csv:3: the row has 3 values; expected 2, one a column"),
        ("a,a\n1,2\n", "a.csv:1: two columns are named 'a'"),
        ('a,b\n1,"2\n', "a.csv, after line 1: no readable CSV"),
        ("a,b\n1," + "x" * 140_000, "a.csv, after line 1: no readable CSV (field larger"),
    ],
)
def test_broken_files_are_refused_with_the_place(tmp_path, text, said):
    with pytest.raises(DataError) as caught:
        list(read_records(write(tmp_path / "a.csv", text)))
    assert said in str(caught.value)


def test_other_encodings_and_damaged_gzip_are_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("a\né\n".encode("latin-1"))
    with pytest.raises(DataError, match="expected UTF-8 text"):
        list(read_records(path))
    packed = tmp_path / "b.csv.gz"
    packed.write_bytes(gzip.compress(b"a,b\n" + b"1,2\n" * 999)[:-12])
    with pytest.raises(DataError, match="damaged or cut off"):
        list(read_records(packed))
