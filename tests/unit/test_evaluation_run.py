"""Scoring items: each answer once, resumable, in files that stand alone."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from scored import reward_model

from retrm.backbone.fake import FakeBackbone
from retrm.errors import (
    DataError,
    EndpointError,
    OutputError,
    OverlongError,
    RecipeError,
    ScoreError,
    StoreError,
)
from retrm.evaluation.benchmarks.base import BenchmarkData, Item
from retrm.evaluation.item_file import read_items
from retrm.evaluation.run import (
    Entrant,
    _Ledger,
    _score_missing,
    distinct_answers,
    entrants_of,
    evaluate,
)
from retrm.evaluation.score_file import common_items, read_scores
from retrm.evaluation.tables import resamples_of
from retrm.features.recipe import Recipe
from retrm.records import Answer
from retrm.scorers.baseline import LengthScorer, LogProbabilityScorer, StoredScorer


def item(id_: str, prompt: str, texts: Sequence[str], subset: str = "all") -> Item:
    answers = tuple(Answer.of(prompt, text) for text in texts)
    return Item(id_, subset, answers[0].prompt_id, answers, where=f"rows[{id_}]")


def data(*items: Item, name: str = "toy") -> BenchmarkData:
    return BenchmarkData(name, tuple(items))


@dataclass
class Counting:
    """Scores by length and remembers what it was asked."""

    name: str = "counting"
    identity: str = "one"
    seen: list[str] = field(default_factory=list)
    fails_after: int = 10**9

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        if len(self.seen) >= self.fails_after:
            raise KeyboardInterrupt
        self.seen += [a.response for a in answers]
        return np.array([float(len(a.response)) for a in answers])


def test_an_answer_in_several_items_and_benchmarks_is_scored_once(tmp_path: Path) -> None:
    first = data(item("1", "q", ["aa", "b"]), item("2", "q", ["b", "ccc"]))
    second = data(item("1", "q", ["aa", "ccc"]), name="other")
    scorer = Counting()
    files = evaluate({"c": Entrant(scorer)}, [first, second], tmp_path)
    assert sorted(scorer.seen) == ["aa", "b", "ccc"]
    assert [row.item.scores.tolist() for row in files[0].rows] == [[2, 1], [1, 3]]
    assert [row.item.scores.tolist() for row in files[1].rows] == [[2, 3]]


def test_equal_texts_to_different_prompts_are_different_answers() -> None:
    found = distinct_answers([data(item("1", "q", ["a", "b"]), item("2", "p", ["a", "b"]))])
    assert len(found) == 4


def test_a_stopped_run_goes_on_without_scoring_anything_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrm.evaluation.run.ANSWERS_PER_CHUNK", 2)
    toy = data(*(item(str(i), f"q{i}", ["a" * (i + 1), "bb" * (i + 1)]) for i in range(3)))
    first = Counting(fails_after=4)
    with pytest.raises(KeyboardInterrupt):
        evaluate({"c": Entrant(first)}, [toy], tmp_path)
    second = Counting()
    files = evaluate({"c": Entrant(second)}, [toy], tmp_path)
    assert len(first.seen) == 4
    assert second.seen == ["aaa", "bbbbbb"]
    whole = evaluate({"c": Entrant(Counting())}, [toy], tmp_path / "fresh")
    assert [r.item.scores.tolist() for r in files[0].rows] == [
        r.item.scores.tolist() for r in whole[0].rows
    ]


def test_a_line_that_a_kill_cut_short_is_scored_again(tmp_path: Path) -> None:
    toy = data(item("1", "q", ["a", "bb"]))
    evaluate({"c": Entrant(Counting())}, [toy], tmp_path)
    path = tmp_path / "answers" / "c.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    again = Counting()
    files = evaluate({"c": Entrant(again)}, [toy], tmp_path)
    assert again.seen == ["bb"]
    assert files[0].rows[0].item.scores.tolist() == [1, 2]


def test_progress_of_another_scorer_is_refused(tmp_path: Path) -> None:
    toy = data(item("1", "q", ["a", "bb"]))
    evaluate({"c": Entrant(Counting())}, [toy], tmp_path)
    with pytest.raises(StoreError, match=r"was written for .*'one'.*now it is .*'two'"):
        evaluate({"c": Entrant(Counting(identity="two"))}, [toy], tmp_path)


def stored(*scores: float) -> BenchmarkData:
    answers = tuple(replace(Answer.of("q", f"a{i}"), score=s) for i, s in enumerate(scores))
    return data(Item("1", "all", "q", answers))


def test_scores_that_the_rows_state_are_taken_anew(tmp_path: Path) -> None:
    evaluate({"stored": Entrant(StoredScorer())}, [stored(1.0, 2.0)], tmp_path)
    (file,) = evaluate({"stored": Entrant(StoredScorer())}, [stored(-1.0, -2.0)], tmp_path)
    assert file.rows[0].item.scores.tolist() == [-1, -2]


def test_a_scorer_that_cannot_say_which_it_is_is_scored_anew(tmp_path: Path) -> None:
    class Nameless:
        name = "nameless"

        def __init__(self, sign: float) -> None:
            self.sign = sign

        def score(self, answers: Sequence[Answer]) -> np.ndarray:
            return self.sign * np.array([float(len(a.response)) for a in answers])

    toy = data(item("1", "q", ["a", "bb"]))
    evaluate({"n": Entrant(Nameless(1))}, [toy], tmp_path)
    (file,) = evaluate({"n": Entrant(Nameless(-1))}, [toy], tmp_path)
    assert file.rows[0].item.scores.tolist() == [-1, -2]


def test_after_an_answer_that_is_too_long_another_policy_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrm.evaluation.run.ANSWERS_PER_CHUNK", 2)
    backbone = FakeBackbone()
    model = reward_model(backbone, Recipe())
    turns = [{"role": "user", "content": "many words " * 2 * backbone.context_length}]
    long = Item("2", "all", "p", tuple(Answer.of(turns, text) for text in ("a", "b")))
    toy = data(item("1", "q", ["a", "b"]), long)
    with pytest.raises(OverlongError):
        evaluate({"rm": Entrant(model)}, [toy], tmp_path)
    ledger = tmp_path / "answers" / "rm.jsonl"
    kept = ledger.read_text()
    assert kept.count("\n") == 3
    (skipped,) = evaluate({"rm": Entrant(model)}, [toy], tmp_path, overlong="skip")
    assert ledger.read_text().startswith(kept)
    assert [row.is_complete for row in skipped.rows] == [True, False]
    # What was skipped or cut is no score under another policy.
    (cut,) = evaluate({"rm": Entrant(model)}, [toy], tmp_path, overlong="truncate_left")
    assert [row.is_cut for row in cut.rows] == [(False, False), (True, True)]
    assert cut.n_overlong == 0
    with pytest.raises(OverlongError):
        evaluate({"rm": Entrant(model)}, [toy], tmp_path)
    (skipped,) = evaluate({"rm": Entrant(model)}, [toy], tmp_path, overlong="skip")
    assert (skipped.n_overlong, skipped.n_cut) == (1, 0)


@pytest.mark.parametrize(
    "line", ['["k", 1.0', '["k", NaN, null, false]', '["k", "1", null, false]']
)
def test_a_damaged_line_of_progress_is_named(tmp_path: Path, line: str) -> None:
    toy = data(item("1", "q", ["a", "bb"]))
    evaluate({"c": Entrant(Counting())}, [toy], tmp_path)
    path = tmp_path / "answers" / "c.jsonl"
    head, first, second = path.read_text().splitlines()
    path.write_text("\n".join([head, first, line, second]) + "\n")
    with pytest.raises(StoreError, match=r"c\.jsonl:3 is damaged: .*Delete the line"):
        evaluate({"c": Entrant(Counting())}, [toy], tmp_path)


def test_progress_without_a_whole_first_line_begins_anew(tmp_path: Path) -> None:
    toy = data(item("1", "q", ["a", "bb"]))
    evaluate({"c": Entrant(Counting())}, [toy], tmp_path)
    (tmp_path / "answers" / "c.jsonl").write_text("")
    (file,) = evaluate({"c": Entrant(Counting())}, [toy], tmp_path)
    assert file.rows[0].item.scores.tolist() == [1, 2]


def test_a_scorer_that_cannot_be_reached_is_no_full_disk(tmp_path: Path) -> None:
    class Gone(Counting):
        def score(self, answers: Sequence[Answer]) -> np.ndarray:
            raise EndpointError("did not answer")

    with pytest.raises(EndpointError, match=r"^did not answer$"):
        evaluate({"c": Entrant(Gone())}, [data(item("1", "q", ["a", "b"]))], tmp_path)


def test_progress_that_cannot_be_written_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, *args: object, **kwargs: object) -> object:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("retrm.evaluation.run.Path.open", full)
    with pytest.raises(OutputError, match="No space left on device"):
        _score_missing({"c": Counting()}, {"c": _Ledger(tmp_path / "c")}, {}, "error", None)


def test_log_probability_is_told_apart_by_whether_the_end_counts(tmp_path: Path) -> None:
    backbones = [FakeBackbone(counts_end=flag) for flag in (True, False)]
    scorers = {str(i): reward_model(b, Recipe()) for i, b in enumerate(backbones)}
    found = entrants_of(scorers, ["log_probability"])
    names = [name for name, entrant in found.items() if entrant.kind == "baseline"]
    assert [name.rpartition(", ")[2] for name in names] == ["with end", "without end"]
    # The mark stands in the identity itself, whatever the fingerprint of the template says.
    backbones[1].fingerprint = backbones[0].fingerprint
    first, second = (LogProbabilityScorer(b).identity for b in backbones)
    assert first != second


def test_a_limit_keeps_the_items_of_a_cluster_together() -> None:
    pairs = [
        Item(f"{kind}:{k}", "Ties", f"ties:{k}", (Answer.of(f"{kind} {k}", "a"),))
        for kind in ("ref", "tied")
        for k in range(51)
    ]
    for seed in range(4):
        drawn = data(*pairs).some(10, seed=seed)
        assert len(drawn.items) == 10
        of_kind = [
            {i.cluster for i in drawn.items if i.id.startswith(kind)} for kind in ("ref", "tied")
        ]
        assert of_kind[0] == of_kind[1]
    # Also across subsets, such as solutions and their controls.
    drawn = data(*(replace(i, subset=i.id.partition(":")[0]) for i in pairs)).some(5)
    assert len({i.cluster for i in drawn.items}) == 5
    drawn = data(*pairs).some(1)
    assert (len(drawn.items), drawn.notes) == (2, ("only 2 of 102 items, about 1 of a subset",))


def test_heads_on_one_backbone_and_its_log_probability_read_every_answer_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = FakeBackbone()
    last, mean = (reward_model(backbone, Recipe(pooling=p)) for p in ("last", "mean"))
    toy = data(item("1", "2 + 2?", ["It is 4.", "It is 5."]))
    expected = {name: rm.score(toy.items[0].answers) for name, rm in (("a", last), ("b", mean))}
    n_passes = 0
    forward = type(backbone).forward

    def counted(self: FakeBackbone, *args: object, **kwargs: object) -> object:
        nonlocal n_passes
        n_passes += 1
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(backbone), "forward", counted)
    entrants = entrants_of({"a": last, "b": mean}, ["log_probability", "longest"])
    assert list(entrants) == ["a", "b", "log_probability", "longest"]
    files = evaluate(entrants, [toy], tmp_path)
    assert n_passes == 1
    for file in files[:2]:
        np.testing.assert_allclose(file.rows[0].item.scores, expected[file.scorer], atol=1e-6)
    assert files[0].rows[0].n_tokens is not None
    assert files[3].rows[0].n_tokens is None


def test_scores_are_read_back_as_they_were(tmp_path: Path) -> None:
    toy = data(item("1", "q", ["a", "bb"]), item("2", "p", ["ä\u2028", "c"], subset="s"))
    (file,) = evaluate({"runs/x": Entrant(Counting())}, [toy], tmp_path)
    again = read_scores(tmp_path / "scores" / "toy.runs-x.jsonl")
    assert (again.benchmark, again.scorer, again.kind) == ("toy", "runs/x", "scorer")
    for got, want in zip(again.rows, file.rows, strict=True):
        assert got.item.scores.tolist() == want.item.scores.tolist()
        assert (got.item.id, got.item.subset, got.item.cluster) == (
            want.item.id,
            want.item.subset,
            want.item.cluster,
        )
        assert got.item.n_characters == want.item.n_characters


def test_items_are_read_back_with_their_texts(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "q\u2028"}]
    answers = tuple(Answer.of(turns, text) for text in ("a", "ä"))
    toy = BenchmarkData(
        "toy",
        (Item("1", "s", "c", answers, {"labels": [0, 1]}, are_prefixes=True),),
        {"empty": 2},
        ("a note",),
    )
    evaluate({"c": Entrant(Counting())}, [toy], tmp_path)
    again = read_items(tmp_path / "items" / "toy.jsonl")
    (got,), (want,) = again.items, toy.items
    assert [(a.prompt, a.response, a.prompt_id) for a in got.answers] == [
        (a.prompt, a.response, a.prompt_id) for a in want.answers
    ]
    assert (got.id, got.subset, got.cluster, got.facts) == ("1", "s", "c", {"labels": [0, 1]})
    assert (got.are_prefixes, again.excluded, again.notes) == (True, {"empty": 2}, ("a note",))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"scores": [1.0, "high"]}, ScoreError, r":2: `scores\[1\]` is 'high'"),
        ({"scores": [1.0, True]}, ScoreError, r"`scores\[1\]` is True"),
        ({"scores": [1.0]}, DataError, "`n_characters` has 2 values for 1 scores"),
        ({"scores": []}, DataError, "`scores` is an empty list"),
        ({"item": None}, DataError, "there is no field 'item'"),
        ({"scores": [1.0, 10**400]}, ScoreError, r":2: `scores\[1\]` is 10000"),
        ({"facts": [1]}, DataError, r":2: `facts` is \[1\]; expected an object"),
        ({"n_characters": ["x", 1]}, DataError, r"`n_characters\[0\]` is 'x'; expected a whole"),
        ({"n_tokens": 5}, DataError, "`n_tokens` is 5; expected a list"),
        ({"n_tokens": [5, 1.5]}, DataError, r"`n_tokens\[1\]` is 1.5; expected a whole number"),
        ({"is_cut": 3}, DataError, "`is_cut` is 3; expected a list"),
        ({"is_cut": [0, 1]}, DataError, r"`is_cut\[0\]` is 0; expected true or false"),
    ],
)
def test_a_damaged_file_of_scores_is_refused_by_line_and_field(
    tmp_path: Path, change: dict, error: type[Exception], message: str
) -> None:
    evaluate({"c": Entrant(Counting())}, [data(item("1", "q", ["a", "bb"]))], tmp_path)
    path = tmp_path / "scores" / "toy.c.jsonl"
    head, line = path.read_text().splitlines()
    row = {**json.loads(line), **change}
    row = {key: value for key, value in row.items() if value is not None or key == "n_tokens"}
    path.write_text(head + "\n" + json.dumps(row) + "\n")
    with pytest.raises(error, match=message):
        read_scores(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "basline"}, r":1: `kind` is 'basline'.*Did you mean 'baseline'"),
        ({"notes": "abc"}, "`notes` is 'abc'; expected a list"),
        ({"notes": [1]}, r"`notes\[0\]` is 1; expected a text"),
        ({"excluded": "x"}, "`excluded` is 'x'; expected an object"),
        ({"excluded": {"empty": "2"}}, r"`excluded.empty` is '2'; expected a whole number"),
        ({"about": 1}, "`about` is 1; expected an object"),
        ({"n_items": 3}, r"holds 1 items; expected 3, as its first line says"),
    ],
)
def test_a_damaged_first_line_is_refused_by_field(
    tmp_path: Path, change: dict, message: str
) -> None:
    evaluate({"c": Entrant(Counting())}, [data(item("1", "q", ["a", "bb"]))], tmp_path)
    path = tmp_path / "scores" / "toy.c.jsonl"
    head, line = path.read_text().splitlines()
    path.write_text(json.dumps({**json.loads(head), **change}) + "\n" + line + "\n")
    with pytest.raises(DataError, match=message):
        read_scores(path)


def test_a_null_cluster_is_refused(tmp_path: Path) -> None:
    evaluate({"c": Entrant(Counting())}, [data(item("1", "q", ["a", "bb"]))], tmp_path)
    path = tmp_path / "scores" / "toy.c.jsonl"
    head, line = path.read_text().splitlines()
    path.write_text(head + "\n" + json.dumps({**json.loads(line), "cluster": None}) + "\n")
    with pytest.raises(DataError, match=":2: `cluster` is null"):
        read_scores(path)


def test_items_that_stand_twice_or_are_missing_are_refused(tmp_path: Path) -> None:
    toy = data(item("1", "q", ["a", "bb"]), item("2", "p", ["a", "bb"]))
    evaluate({"c": Entrant(Counting())}, [toy], tmp_path)
    path = tmp_path / "scores" / "toy.c.jsonl"
    head, first, second = path.read_text().splitlines()
    assert json.loads(head)["n_items"] == 2
    path.write_text("\n".join([head, first, second, first]) + "\n")
    with pytest.raises(DataError, match=r":4: the item '1' stands at .*:2 already"):
        read_scores(path)
    path.write_text("\n".join([head, first]) + "\n")
    with pytest.raises(DataError, match="holds 1 items; expected 2"):
        read_scores(path)


def test_another_file_is_no_file_of_scores(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "q", "response": "a"}\n')
    with pytest.raises(DataError, match="no file of scores of version 1"):
        read_scores(path)


def test_items_beyond_a_context_take_no_part_and_are_counted(tmp_path: Path) -> None:
    backbone = FakeBackbone()
    model = reward_model(backbone, Recipe())
    long = "many words " * 2 * backbone.context_length
    toy = data(item("1", "q", ["a", "b"]), item("2", "p", ["a", long]))
    entrants = {
        "rm": Entrant(model),
        "longest": Entrant(LengthScorer(prefers="longest"), "baseline"),
    }
    files = evaluate(entrants, [toy], tmp_path, overlong="skip")
    kept, lacking = common_items(files)
    assert kept == ["1"]
    assert lacking == {"rm": 1}


def test_scores_of_different_items_cannot_be_compared(tmp_path: Path) -> None:
    one = evaluate({"a": Entrant(Counting())}, [data(item("1", "q", ["a", "b"]))], tmp_path / "1")
    two = evaluate({"b": Entrant(Counting())}, [data(item("2", "q", ["a", "b"]))], tmp_path / "2")
    with pytest.raises(DataError, match="different items of toy"):
        common_items([*one, *two])


def test_unknown_baselines_are_refused_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'longest'"):
        entrants_of({}, ["longst"])


def test_ids_that_stand_twice_are_refused() -> None:
    with pytest.raises(DataError, match=r"rows\[1\]: the id '1' stands at rows\[1\] already"):
        data(item("1", "q", ["a", "b"]), item("1", "p", ["a", "b"]))


def test_every_resample_keeps_the_sizes_of_the_strata(tmp_path: Path) -> None:
    items = [item(f"a{i}", f"a{i}", ["x", "y"], "a") for i in range(3)]
    items += [item(f"b{i}", f"b{i}", ["x", "y"], "b") for i in range(5)]
    (file,) = evaluate({"c": Entrant(Counting())}, [data(*items)], tmp_path)
    scored = [row.item for row in file.rows]
    resamples = resamples_of(scored, n_resamples=50)
    is_a = np.array(
        [any(s.cluster == c and s.subset == "a" for s in scored) for c in resamples.prompts]
    )
    counts = np.concatenate(list(resamples._counts()))
    assert (counts[:, is_a].sum(axis=1) == 3).all()
    assert (counts[:, ~is_a].sum(axis=1) == 5).all()
    assert counts.max() > 1


def about_of(scorer: Any, items: BenchmarkData, folder: Path) -> dict[str, Any]:
    (file,) = evaluate({"s": Entrant(scorer)}, [items], folder)
    return dict(file.about)


def test_what_scores_hang_on_is_written_beside_them(tmp_path: Path) -> None:
    """Tokens are those that were read in this run: the second reads none."""
    backbone = FakeBackbone()
    scorer = LogProbabilityScorer(backbone)
    items = data(item("1", "q", ["one answer", "another"]))
    about = about_of(scorer, items, tmp_path)
    assert about["backbone"] == backbone.name
    assert about["tokenizer"] == backbone.fingerprint.tokenizer
    assert about["template"] == backbone.fingerprint.template
    assert about["weights"] == backbone.fingerprint.weights
    assert about["dtype"] == str(backbone.dtype).removeprefix("torch.")
    assert (about["device"], about["states_from"]) == ("cpu", backbone.states_from)
    assert about["answers_of_this_run"] == 2
    assert about["tokens_per_s"] > 0
    again = about_of(scorer, items, tmp_path)
    assert again["answers_of_this_run"] == 0
    assert "tokens_per_s" not in again


def test_a_scorer_that_reads_no_tokens_has_no_speed_in_tokens(tmp_path: Path) -> None:
    about = about_of(Counting(), data(item("1", "q", ["a", "bb"])), tmp_path)
    assert set(about) == {"identity", "answers_of_this_run", "seconds_of_this_run"}
    assert about["answers_of_this_run"] == 2


def test_a_scorer_may_say_itself_what_its_scores_hang_on(tmp_path: Path) -> None:
    class Telling(Counting):
        provenance: ClassVar[dict[str, str]] = {"tokenizer": "abc"}

    about = about_of(Telling(), data(item("1", "q", ["a", "bb"])), tmp_path)
    assert about["tokenizer"] == "abc"
