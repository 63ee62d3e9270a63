"""`retrm compare` as people run it."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from score_files import pairs, texts_of

from retrm.evaluation.item_file import write_items
from retrm.evaluation.run import slug
from retrm.evaluation.score_file import ScoreFile, write_scores

RNG = np.random.default_rng(0)
MARGINS = {name: np.round(RNG.normal(0.5, 1, 40), 2) for name in ("one", "two", "three")}


def folder(path: Path, *files: ScoreFile) -> Path:
    """What retrm eval leaves: scores and texts."""
    for file in files:
        write_scores(path / "scores" / f"{file.benchmark}.{slug(file.scorer)}.jsonl", file)
        texts = [(f"answer ten{len(r.item.id)}"[:10], "other text"[:10]) for r in file.rows]
        write_items(path / "items" / f"{file.benchmark}.jsonl", texts_of(file, texts))
    return path


def of(name: str, **fields: object) -> ScoreFile:
    from dataclasses import replace

    return replace(pairs(name, MARGINS[name]), **fields)


def test_two_scorers_stand_beside_each_other_with_the_items_they_differ_on(tmp_path, capsys):
    a, b = folder(tmp_path / "a", of("one")), folder(tmp_path / "b", of("two"))
    assert run("compare", a, b, "--shown", "1", "-o", tmp_path / "out") == 0
    shown = capsys.readouterr().out

    for part in ("A = one, B = two; 40 items", "A - B", "only A", "agreement:", "is right; A"):
        assert part in shown
    assert "answer ten" in shown
    result = json.loads((tmp_path / "out" / "comparison.json").read_text())
    (found,) = result["comparisons"]
    assert (found["first"], found["second"]) == ("one", "two")
    one, two = ((MARGINS[n] > 0).mean() for n in ("one", "two"))
    assert found["figures"][0]["difference"]["value"] == pytest.approx(one - two)
    assert result["items"] == []


def test_three_scorers_of_one_folder_bring_the_items_under_all_of_them(tmp_path, capsys):
    source = folder(tmp_path / "a", *(of(name) for name in MARGINS))
    assert run("compare", source, "--json") == 0
    result = json.loads(capsys.readouterr().out)

    (headline,) = result["headlines"]
    assert len(headline["differences"]) == 3
    (items,) = result["items"]
    assert [e["scorer"] for e in items["examinees"]] == ["one", "three", "two"]
    assert "need 20" in items["no_rasch"]
    assert run("compare", source) == 0
    shown = capsys.readouterr().out
    for part in ("Holm = p for 3 comparisons", "under 3 scorers", "no Rasch model", "length alone"):
        assert part in shown


def test_baselines_of_folders_take_part_only_where_asked(tmp_path, capsys):
    source = folder(tmp_path / "a", of("one"), of("two"), of("three", kind="baseline"))
    run("compare", source, "--json")
    assert len(json.loads(capsys.readouterr().out)["comparisons"]) == 1
    run("compare", source, "--json", "--baselines")
    assert len(json.loads(capsys.readouterr().out)["items"]) == 1


def test_scorers_of_one_name_are_told_apart_by_their_folders(tmp_path, capsys):
    a, b = folder(tmp_path / "a", of("one")), folder(tmp_path / "b", of("one", about={"run": 2}))
    assert run("compare", a, b, "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)["comparisons"]
    assert found["first"] == f"one ({a})"
    assert found["second"] == f"one ({b})"


def test_a_benchmark_that_only_one_has_is_left_out_and_said(tmp_path, capsys):
    extra = of("one", benchmark="reward_bench")
    a = folder(tmp_path / "a", of("one"), extra)
    b = folder(tmp_path / "b", of("two"))
    assert run("compare", a, b) == 0
    assert "reward_bench: only one of 2 scorers; left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "more", "message"),
    [
        (["one"], [], "got scores of one on hh_rlhf; expected at least two scorers"),
        (["one", "two"], ["--benchmark", "hh_rlf"], "Did you mean 'hh_rlhf'"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, capsys, names, more, message):
    sources = [folder(tmp_path / name, of(name)) for name in names]
    assert run("compare", *sources, *more) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_single_files_are_compared_and_texts_found_beside_them(tmp_path, capsys):
    source = folder(tmp_path / "a", *(of(name) for name in MARGINS))
    files = [source / "scores" / f"hh_rlhf.{name}.jsonl" for name in ("one", "two")]
    assert run("compare", *files, "--shown", "1") == 0
    shown = capsys.readouterr().out
    assert "A = one, B = two" in shown
    assert "answer ten" in shown


def test_without_texts_the_items_are_named_only(tmp_path, capsys):
    sources = [folder(tmp_path / name, of(name)) for name in ("one", "two")]
    for source in sources:
        (source / "items" / "hh_rlhf.jsonl").unlink()
    assert run("compare", *sources, "--shown", "1") == 0
    assert "its texts are not beside the scores" in capsys.readouterr().out


def test_a_file_that_is_not_there_is_refused_with_the_nearest(tmp_path, capsys):
    source = folder(tmp_path / "a", of("one"), of("two"))
    scores = source / "scores"
    assert run("compare", scores / "hh_rlhf.on.jsonl", scores / "hh_rlhf.two.jsonl") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "expected a folder of retrm eval or one of its files of scores" in said
    assert "Did you mean 'hh_rlhf.one.jsonl'?" in said
    assert "hub:" not in said


def test_few_prompts_are_said_to_give_no_p(tmp_path, capsys):
    few = [pairs(name, MARGINS[name][:6]) for name in MARGINS]
    files = []
    for file in few:
        files.append(tmp_path / f"{file.scorer}.jsonl")
        write_scores(files[-1], file)
    assert run("compare", *files[:2]) == 0
    assert "no p and no visible difference from fewer than 10 prompts" in capsys.readouterr().out
    assert run("compare", *files) == 0
    assert "no p from fewer than 10 prompts" in capsys.readouterr().out
    whole = [folder(tmp_path / name, of(name)) for name in ("one", "two")]
    assert run("compare", *whole) == 0
    assert "fewer than 10 prompts" not in capsys.readouterr().out
