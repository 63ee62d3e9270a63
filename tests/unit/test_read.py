"""Streaming of raw records from JSON Lines, JSON arrays, Parquet and hub data sets."""

import builtins
import gzip
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrm.data.read import read_records, records_of
from retrm.errors import DataError, MissingExtraError

ROWS = [
    {"prompt": f"p{i}", "response": f"r{i}\u2028\u0085 é", "label": i % 2 == 0} for i in range(5)
]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def fields(source, **options):
    return [dict(record.fields) for record in read_records(source, **options)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson"])
def test_lines_split_at_newline_only_and_keep_unicode_separators_in_texts(tmp_path, name):
    (tmp_path / name).write_bytes(LINES)
    records = list(read_records(tmp_path / name))
    assert [r.fields for r in records] == ROWS
    assert [r.where for r in records] == [f"{name}:{i}" for i in range(1, 6)]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "misnamed.jsonl"])
def test_gzip_is_told_from_the_bytes(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(LINES))
    assert fields(tmp_path / name) == ROWS


def test_byte_order_mark_blank_lines_and_crlf_are_tolerated_and_lines_keep_their_numbers(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": 2}')
    assert [(r.fields["a"], r.where) for r in read_records(path)] == [
        (1, "a.jsonl:1"),
        (2, "a.jsonl:3"),
    ]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf", b" \n"])
def test_array_files_are_read_element_by_element(tmp_path, indent, mark):
    path = tmp_path / "a.json"
    path.write_bytes(mark + json.dumps(ROWS, indent=indent).encode() + b"\n")
    records = list(read_records(path))
    assert [r.fields for r in records] == ROWS
    assert records[3].where == "a.json[3]"


def test_array_elements_longer_than_the_window_are_whole(tmp_path):
    rows = [{"text": "x" * 200_000, "n": 1.5}, {"text": '\\"[]{},' * 30_000, "n": -2}]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))
    assert fields(path) == rows


def test_parquet_rows_are_numbered_across_batches(tmp_path):
    path = tmp_path / "a.parquet"
    rows = [{"prompt": f"p{i}", "responses": ["x", "y"], "label": None} for i in range(600)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=100)
    records = list(read_records(path))
    assert [dict(r.fields) for r in records] == rows
    assert records[599].where == "a.parquet:600"


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_empty_file_gives_no_record(tmp_path, content):
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / "b.json").write_text("[]")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(content))
    for name in ("a.jsonl", "b.json", "c.jsonl.gz"):
        assert fields(tmp_path / name) == []


@pytest.mark.parametrize(("limit", "n"), [(0, 0), (2, 2), (99, 5), (None, 5)])
def test_limit_stops_before_the_rest_is_read(tmp_path, limit, n):
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES + b"broken" if limit == 2 else LINES)
    assert len(fields(path, limit=limit)) == n


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_a_hundred_thousand_rows_stream_in_bounded_memory(tmp_path, kind):
    path, n = tmp_path / f"big.{kind}", 100_000
    row = {"prompt": "p" * 60, "response": "r" * 60}
    if kind == "parquet":
        pq.write_table(pa.table({"prompt": ["p" * 60] * n, "response": ["r" * 60] * n}), path)
    else:
        line = json.dumps(row)
        text = "\n".join([line] * n) if kind == "jsonl" else "[" + ",\n".join([line] * n) + "]"
        path.write_text(text)
    n_read = sum(1 for _ in read_records(path, limit=1))
    tracemalloc.start()
    n_read = sum(1 for _ in read_records(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n_read == n
    # The file holds 15 MB of text; a reader that keeps it all needs more than 20 MB of objects.
    assert peak < 3_000_000


def test_plain_dicts_become_records_with_their_index():
    assert [r.where for r in records_of([{"a": 1}, {"a": 2}], name="mine")] == [
        "mine[0]",
        "mine[1]",
    ]
    with pytest.raises(DataError, match=r"mine\[0\]: got str; expected a dict"):
        list(records_of(["text"], name="mine"))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A data set that lies where `datasets` looks, without any network."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "someone" / "tiny"
    folder.mkdir(parents=True)
    for split, n in (("train", 5), ("test", 2)):
        text = "".join(json.dumps(row) + "\n" for row in ROWS[:n])
        (folder / f"{split}.jsonl").write_text(text)
    monkeypatch.chdir(tmp_path)
    return "hub:someone/tiny"


@pytest.mark.parametrize(
    ("suffix", "n"), [("", 5), (":test", 2), (":train[:3]", 3), (":test:default", 2)]
)
def test_hub_data_sets_are_read_by_split_and_config(hub, suffix, n):
    records = list(read_records(hub + suffix))
    assert [r.fields for r in records] == ROWS[:n]
    assert records[1].where == "hub:someone/tiny:2"


def test_hub_data_set_with_an_unknown_split_names_those_there_are(hub):
    with pytest.raises(
        DataError, match=r"hub:someone/tiny:tset: .*could not be loaded.*tset.*train"
    ):
        list(read_records(hub + ":tset"))


def test_hub_data_set_that_is_not_in_the_cache_says_so(hub):
    with pytest.raises(DataError, match=r"hub:no/such: .*could not be loaded.*Check owner, name"):
        list(read_records("hub:no/such"))


def test_hub_without_the_extra_says_the_pip_line(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'retrm\[hub\]'"):
        read_records("hub:someone/tiny")
