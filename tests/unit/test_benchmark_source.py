"""Where the records of a benchmark lie: which files are its own, and how their places are named."""

import json
import sys
from types import SimpleNamespace

import pytest

from retrm.errors import DataError, MissingExtraError
from retrm.evaluation.benchmarks import benchmark
from retrm.evaluation.benchmarks.source import open_source

HH = benchmark("hh_rlhf")
PAIR = {
    "chosen": "\n\nHuman: Name a tree.\n\nAssistant: An oak.",
    "rejected": "\n\nHuman: Name a tree.\n\nAssistant: No.",
}
OTHER = {"question": "2 + 2?", "answer": "4"}


def lay(root, **rows):
    """A `test.jsonl` with one row in each folder; `_` stands for a dash."""
    for name, fields in rows.items():
        folder = root / name.replace("_of_", "-")
        folder.mkdir(parents=True)
        (folder / "test.jsonl").write_text(json.dumps(fields) + "\n")
    return root


def source_of(root):
    return open_source(root, hub=HH.hub, pattern=HH.pattern, name=HH.name)


def test_files_of_one_name_in_several_folders_are_refused_and_the_likely_one_is_offered(tmp_path):
    root = lay(tmp_path, gsm8k=OTHER, hh_rlhf_test=PAIR)
    with pytest.raises(DataError) as refused:
        source_of(root)
    said = str(refused.value)
    assert "test.jsonl in 2 folders (gsm8k, hh_rlhf_test)" in said
    assert f"--data hh_rlhf={root / 'hh_rlhf_test'}" in said


def test_the_published_folders_are_taken_whatever_stands_beside_them(tmp_path):
    root = lay(tmp_path, gsm8k=OTHER, harmless_of_base=PAIR, helpful_of_base=PAIR)
    assert [part.folder for part in source_of(root).parts] == ["harmless-base", "helpful-base"]


def test_a_single_folder_of_another_name_is_taken_and_named(tmp_path):
    root = lay(tmp_path, mine=PAIR)
    source = source_of(root)
    assert source.name == str(root / "mine")
    (item,) = HH.read(source).items
    assert item.where == f"{root / 'mine' / 'test.jsonl'}:1"


def test_a_record_of_another_kind_is_refused_with_the_path_of_its_file(tmp_path):
    root = lay(tmp_path, gsm8k=OTHER)
    with pytest.raises(DataError, match=r"gsm8k/test\.jsonl:1: there is no field 'chosen'"):
        HH.read(source_of(root))


def test_a_line_that_is_no_json_is_refused_with_the_path_of_its_file(tmp_path):
    path = tmp_path / "mine" / "test.jsonl"
    path.parent.mkdir()
    path.write_text(json.dumps(PAIR) + "\n{broken\n")
    with pytest.raises(DataError) as refused:
        HH.read(source_of(tmp_path))
    assert str(refused.value).startswith(f"{path}:2: malformed JSON")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (None, "has no records"),
        ({"prompt": "2 + 2?", "responses": ["4", "5"]}, "has no labels"),
    ],
)
def test_a_file_of_answers_that_cannot_be_measured_is_named(row, words, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("" if row is None else json.dumps(row) + "\n")
    with pytest.raises(Exception, match=rf"mine\.jsonl {words}"):
        benchmark("best_of_n").read(open_source(path, name="best_of_n"))


def test_without_network_the_remedy_is_data(monkeypatch):
    def load_dataset(name, config, split):
        raise ConnectionError("Couldn't reach the Hub")

    fake = SimpleNamespace(
        load_dataset=load_dataset, exceptions=SimpleNamespace(DatasetsError=RuntimeError)
    )
    monkeypatch.setitem(sys.modules, "datasets", fake)
    with pytest.raises(DataError) as refused:
        open_source(None, hub=HH.hub, name="hh_rlhf")
    said = str(refused.value)
    assert "since --data was not given" in said
    assert "Couldn't reach the Hub" in said
    assert "give its files with --data PATH" in said
    assert "Check owner" not in said  # nobody typed them


def test_without_the_extra_data_is_offered_as_well(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"retrm\[hub\].*--data PATH"):
        open_source("hub", hub=HH.hub, name="hh_rlhf")
