"""`retrm sample --score` and what follows it, in process, on the toy backbone."""

import json

import numpy as np
import pytest
from command_line import run
from tiny import save_tiny

from retrm.data.load import load_table
from retrm.errors import DataError
from retrm.scorers.open import open_scorer
from retrm.scorers.reward_model import RewardModel

DRAW = ["-n", "4", "--max-new-tokens", "8", "--batch-size", "8"]
PRUNE = ["--prune", "lower_share:every=2,share=0.5"]


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with questions, and reward models of two methods fitted on the toy backbone."""
    folder = tmp_path_factory.mktemp("work")
    generator = np.random.default_rng(0)
    with (folder / "rollouts.jsonl").open("w") as file:
        for p in range(12):
            right = generator.random(4) < 0.5
            right[:2] = [True, False]
            said = [f"it is {k}{'!' if r else '.'}" for k, r in enumerate(right)]
            row = {"prompt": f"question {p}", "responses": said, "correct": right.tolist()}
            file.write(json.dumps(row) + "\n")
    methods = ["--method", "last_token", "--method", "elhsr"]
    rollouts = folder / "rollouts.jsonl"
    assert run("fit", rollouts, "--model", "fake", *methods, "-o", folder / "rm") == 0
    lines = [json.dumps({"prompt": f"{i} + 1?", "answer": str(i + 1)}) + "\n" for i in range(4)]
    (folder / "problems.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def scored(work):
    path = work / "scored.jsonl"
    problems, head = work / "problems.jsonl", work / "rm" / "last_token"
    assert run("sample", "fake", problems, *DRAW, "--score", head, "-o", path) == 0
    return path


@pytest.mark.parametrize("method", ["last_token", "elhsr"])
def test_the_scores_in_the_file_are_those_that_retrm_score_gives_it(method, work, tmp_path):
    head, out = work / "rm" / method, tmp_path / "scored.jsonl"
    assert run("sample", "fake", work / "problems.jsonl", *DRAW, "--score", head, "-o", out) == 0
    again = tmp_path / "again.jsonl"
    assert run("score", head, out, "-o", again) == 0

    for mine, theirs in zip(rows_of(out), rows_of(again), strict=True):
        assert mine["pruned"] == [False] * 4
        assert mine["score"] == pytest.approx(theirs["score"], abs=1e-4)
        assert len(set(mine["score"])) == 4


def test_scoring_changes_nothing_else_in_the_file(work, scored, tmp_path):
    plain = tmp_path / "plain.jsonl"
    assert run("sample", "fake", work / "problems.jsonl", *DRAW, "-o", plain) == 0

    for one, other in zip(rows_of(plain), rows_of(scored), strict=True):
        assert set(other) - set(one) == {"score", "pruned"}
        assert one == {k: v for k, v in other.items() if k in one}


def test_select_takes_the_stored_scores_and_agrees_with_the_head(work, scored, tmp_path):
    by_file, by_head = tmp_path / "file.jsonl", tmp_path / "head.jsonl"
    assert run("select", "stored", scored, "-o", by_file) == 0
    assert run("select", work / "rm" / "last_token", scored, "-o", by_head) == 0

    kept = rows_of(by_file)
    assert [row["index"] for row in kept] == [row["index"] for row in rows_of(by_head)]
    for place, (row, drawn) in enumerate(zip(kept, rows_of(scored), strict=True)):
        best = int(np.argmax(drawn["score"]))
        assert row["index"] == 4 * place + best
        assert row["score"] == drawn["score"][best]


def test_pruned_candidates_are_marked_counted_and_never_selected(work, scored, tmp_path, capsys):
    out, head = tmp_path / "pruned.jsonl", work / "rm" / "last_token"
    given = ["sample", "fake", work / "problems.jsonl", *DRAW, "--score", head]
    capsys.readouterr()
    assert run(*given, *PRUNE, "-o", out, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    whole = rows_of(scored)

    n_tokens = 0
    for row, unpruned in zip(rows_of(out), whole, strict=True):
        # 4 candidates: 2 are stopped after 2 tokens, 1 after 4, the last one goes on to 8.
        assert sorted(map(len, row["token_ids"])) == [2, 2, 4, 8]
        n_tokens += 2 + 2 + 4 + 8
        for i, is_pruned in enumerate(row["pruned"]):
            assert is_pruned == (len(row["token_ids"][i]) < 8)
            assert (row["score"][i] is None) == is_pruned
            if is_pruned:
                assert row["finished"][i] is False
            else:
                assert row["score"][i] == pytest.approx(unpruned["score"][i], abs=1e-5)
    # Of each question 6 + 6 + 4 tokens at most were not drawn; the four that went on were cut.
    assert summary["pruned"] == 12
    assert summary["tokens"] == n_tokens
    assert summary["tokens_saved_at_most"] == 4 * 16
    assert summary["cut"] == 4
    assert summary["prune"] == PRUNE[1]

    for scorer in ("stored", head, "longest"):
        kept = tmp_path / "kept.jsonl"
        assert run("select", scorer, out, "-o", kept, "--json") == 0
        assert json.loads(capsys.readouterr().out)["n_pruned"] == 12
        for place, row in enumerate(rows_of(kept)):
            assert rows_of(out)[place]["pruned"][row["index"] - 4 * place] is False
    assert load_table(out).counts["answers_pruned"] == 12
    assert load_table(out).counts["answers_cut"] == 4


def test_answers_whose_text_has_other_ids_are_counted(work, scored, capsys, tmp_path):
    problems, head = work / "problems.jsonl", work / "rm" / "last_token"
    capsys.readouterr()
    run("sample", "fake", problems, *DRAW, "--score", head, "-o", tmp_path / "o.jsonl", "--json")
    summary = json.loads(capsys.readouterr().out)

    # The toy draws random bytes: a text with U+FFFD in it has lost them.
    lost = sum("\ufffd" in text for row in rows_of(scored) for text in row["responses"])
    assert summary["text_gives_other_tokens"] == lost > 0


def test_a_killed_run_goes_on_with_the_same_head_and_no_other(work, scored, tmp_path, capsys):
    head, other = work / "rm" / "last_token", work / "rm" / "elhsr"
    out, whole = tmp_path / "o.jsonl", scored.read_text().splitlines(keepends=True)
    given = ["sample", "fake", work / "problems.jsonl", *DRAW, "-o", out]
    # A kill behind the first question.
    stop = tmp_path / "stop.jsonl"
    assert run(*given[:-1], stop, "--score", head, "--json") == 0
    settings = json.loads(capsys.readouterr().out.splitlines()[-1])
    names = ("questions", "answers", "cut", "output", "pruned", "tokens")
    names += ("tokens_saved_at_most", "text_gives_other_tokens")
    begun = {"settings": {k: v for k, v in settings.items() if k not in names}}
    part = out.with_name("o.jsonl.part")

    part.write_text(json.dumps(begun) + "\n" + whole[0])
    assert run(*given, "--score", other) == 2
    assert "begun with other settings" in capsys.readouterr().err
    assert run(*given, "--score", head, "--json") == 0
    assert out.read_text().splitlines(keepends=True) == whole
    # The summary is of the whole run; only what stands in no file is not known of its first part.
    summary = json.loads(capsys.readouterr().out)
    assert summary["text_gives_other_tokens"] is None
    assert {k: v for k, v in summary.items() if k in names and k != "output"} == {
        "questions": 4,
        "answers": 16,
        "cut": settings["cut"],
        "pruned": 0,
        "tokens": settings["tokens"],
        "tokens_saved_at_most": 0,
        "text_gives_other_tokens": None,
    }


def test_a_killed_run_that_pruned_counts_what_was_pruned_before(work, tmp_path, capsys):
    given = ["sample", "fake", work / "problems.jsonl", *DRAW, *PRUNE]
    given += ["--score", work / "rm" / "last_token", "--json", "-o"]
    capsys.readouterr()
    assert run(*given, tmp_path / "whole.jsonl") == 0
    whole = json.loads(capsys.readouterr().out)
    names = ("questions", "answers", "cut", "pruned", "tokens", "tokens_saved_at_most")
    left_out = (*names, "text_gives_other_tokens", "output")
    begun = {"settings": {k: v for k, v in whole.items() if k not in left_out}}
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)

    # A kill behind the last question, before the file took its name: nothing is left to draw.
    (tmp_path / "o.jsonl.part").write_text(json.dumps(begun) + "\n" + "".join(lines))
    assert run(*given, tmp_path / "o.jsonl") == 0
    summary = json.loads(capsys.readouterr().out)

    assert (whole["answers"], whole["pruned"]) == (16, 12)
    assert {name: summary[name] for name in names} == {name: whole[name] for name in names}
    assert run(*given[:-2], "-o", tmp_path / "new.jsonl") == 0  # and in words
    (tmp_path / "p.jsonl.part").write_text(json.dumps(begun) + "\n" + "".join(lines[:2]))
    assert run(*given[:-2], "-o", tmp_path / "p.jsonl") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "questions 4, answers 16, cut 4, pruned 12" in said
    assert "text gives other tokens not known" in said


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--prune", "lower_share"], "--prune compares running scores; add --score DIR"),
        (["--score", "RM", "--endpoint", "http://localhost:1"], "--score reads the states of a"),
        (["--score", "RM", "--prune", "lower_shar"], "Did you mean 'lower_share'"),
        (["--score", "RM", "--prune", "lower_share", "--batch-size", "3"], "got batch_size=3"),
        (["--score", "RM", "--dtype", "bfloat16"], "fitted on float32 states"),
        (["--score", "nowhere"], "nowhere"),
    ],
)
def test_what_does_not_go_together_is_refused_and_leaves_nothing(
    options, reason, work, tmp_path, capsys
):
    options = [str(work / "rm" / "last_token") if o == "RM" else o for o in options]
    out = tmp_path / "o.jsonl"

    assert run("sample", "fake", work / "problems.jsonl", "-n", "4", *options, "-o", out) == 2
    assert reason in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_a_head_of_another_model_is_refused(work, tmp_path, capsys):
    save_tiny(tmp_path / "llama")
    given = ["sample", tmp_path / "llama", work / "problems.jsonl"]
    out = tmp_path / "o.jsonl"

    assert run(*given, "--score", work / "rm" / "last_token", "-o", out) == 2
    assert "this head was fitted on 'fake'" in " ".join(capsys.readouterr().err.split())
    assert not out.with_name("o.jsonl.part").exists()


# What a file states


def table_with(tmp_path, **columns):
    path = tmp_path / "f.jsonl"
    row = {"prompt": "p", "responses": ["a", "b"], **columns}
    path.write_text(json.dumps(row) + "\n")
    return load_table(path)


def test_a_list_of_scores_belongs_to_the_answers_and_a_number_does_not(tmp_path):
    scored = table_with(tmp_path, score=[0.5, None], pruned=[False, True])
    assert [a.score for a in scored.answers] == [0.5, None]
    assert [a.pruned for a in scored.answers] == [False, True]

    foreign = table_with(tmp_path, score=3)
    assert [a.score for a in foreign.answers] == [None, None]
    assert not any(a.pruned for a in foreign.answers)


def test_scores_of_another_number_are_refused(tmp_path):
    with pytest.raises(DataError, match="`score` has 3 values for 2 answers"):
        table_with(tmp_path, score=[1, 2, 3])


def test_stored_scores_that_are_missing_are_named(tmp_path):
    answers = table_with(tmp_path, score=[0.5, None]).answers
    with pytest.raises(DataError, match=r"f.jsonl:1 has no score.*sample with --score"):
        open_scorer("stored").score(answers)


def test_the_python_way_gives_the_same_answers_and_scores(work, scored):
    rm = RewardModel.load(work / "rm" / "last_token")
    prompts = [row["prompt"] for row in rows_of(scored)]
    drawn = list(rm.generate(prompts, n=4, max_new_tokens=8))

    written = [s for row in rows_of(scored) for s in row["score"]]
    assert [one.score for one in drawn] == pytest.approx(written, abs=1e-5)
    assert [list(one.token_ids) for one in drawn] == [
        ids for row in rows_of(scored) for ids in row["token_ids"]
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-n", "1"], "compares candidates of one prompt, got -n 1"),
        (
            ["-n", "4", "--max-new-tokens", "2"],
            "first looks after 2 tokens and answers end after 2",
        ),
    ],
)
def test_a_rule_that_could_stop_nobody_is_refused(options, said, work, tmp_path, capsys):
    head = ["--score", work / "rm" / "last_token", *PRUNE]
    assert run("sample", "fake", work / "p.jsonl", *options, *head, "-o", tmp_path / "o.jsonl") == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_file_in_the_place_of_a_reward_model_is_called_one(tmp_path, capsys):
    (tmp_path / "r.jsonl").write_text("{}")
    (tmp_path / "p.jsonl").write_text('{"prompt": "Hi"}')
    given = ["--score", tmp_path / "r.jsonl", "-o", tmp_path / "o.jsonl"]
    assert run("sample", "fake", tmp_path / "p.jsonl", *given) == 2
    assert "r.jsonl is a file; expected the folder" in " ".join(capsys.readouterr().err.split())
