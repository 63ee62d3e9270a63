"""From tables to token ids: what is learnt, policies for over-long texts, and what is refused before any work."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny import CHATML, tiny_tokenizer
from trained import pair_table

from retrm.backbone.render import ChatRenderer
from retrm.data.load import load_table
from retrm.data.stepwise import load_steps
from retrm.errors import DataError, FitError, FormatError, LabelError, OverlongError, RecipeError
from retrm.finetuning.reward_options import RewardOptions
from retrm.finetuning.reward_rows import check_templates, rows_of, supervision_of
from retrm.finetuning.reward_tasks import AnswerTask, PairTask, as_records
from retrm.records import Answer, AnswerTable, Message, Pair, Prompt

RENDERER = ChatRenderer(tiny_tokenizer())
CONTEXT = 200


def rows(table, context=CONTEXT, **changes):
    options = RewardOptions(**changes)
    return rows_of(table, supervision_of(table, options), RENDERER, options, context)


def table_of(*pairs: tuple[str, str, str]) -> AnswerTable:
    """One prompt, chosen and rejected answer a pair."""
    answers = [Answer.of(prompt, text) for prompt, *texts in pairs for text in texts]
    relations = tuple(Pair(2 * i, 2 * i + 1) for i in range(len(pairs)))
    return AnswerTable(tuple(answers), np.full(len(answers), np.nan), relations)


def test_texts_are_those_that_the_scorer_of_a_classifier_reads(tmp_path):
    made = rows(pair_table(tmp_path, 2))
    answer = Answer.of("q0?", "yes")
    assert made.rendered[0] == RENDERER.render_finished(answer)
    assert RENDERER.text(made.rendered[0].ids).endswith("yes<|im_end|>\n")


def test_a_batch_has_chosen_answers_first_and_padding_on_the_right(tmp_path):
    made = rows(pair_table(tmp_path, 2, margin=0.5))
    batch = PairTask(RewardOptions(), pad_id=256).collate(as_records(made))
    # yes and yesyes, then no and no: the second chosen answer is the longest
    lengths = [len(one.ids) for one in (made.rendered[i] for i in (0, 2, 1, 3))]
    assert batch["stops"].tolist() == batch["attention_mask"].sum(1).tolist() == lengths
    assert batch["input_ids"].shape == (4, max(lengths))
    assert batch["input_ids"][0, lengths[0] :].tolist() == [256] * (max(lengths) - lengths[0])
    assert batch["margins"].tolist() == [0.5, 0.5]


def test_every_prompt_weighs_the_same_whatever_its_pairs():
    answers = [Answer.of("a", text) for text in "xyz"] + [Answer.of("b", text) for text in "uv"]
    pairs = (Pair(0, 1), Pair(0, 2), Pair(1, 2), Pair(3, 4))
    table = AnswerTable(tuple(answers), np.full(5, np.nan), pairs)
    weights = [w for _, _, _, w in supervision_of(table, RewardOptions()).pairs]
    # 1/3 each and 1, over their mean of 1/2
    assert weights == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2.0])


LONG = "q" * 60


def test_a_long_pair_is_refused_by_the_name_of_its_record(tmp_path):
    path = tmp_path / "p.jsonl"
    lines = [
        {"prompt": "a?", "chosen": "yes", "rejected": "no"},
        {"prompt": "b?", "chosen": "y" * 90, "rejected": "no"},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(OverlongError, match=r"p\.jsonl:2.*context holds 100"):
        rows(load_table(path), context=100)


def test_a_long_pair_is_left_out_whole_and_counted():
    made = rows(table_of((LONG, "yes", "n" * 30), ("b", "yes", "no")), context=100, overlong="skip")
    assert (len(made.rows), made.n_read, made.n_skipped, made.n_truncated) == (1, 2, 1, 0)


def test_both_answers_of_a_pair_lose_the_same_tokens_of_their_prompt():
    table = table_of((LONG, "yes", "n" * 30), ("b", "yes", "no"))
    whole, cut = rows(table), rows(table, context=100, overlong="truncate_left")
    n_over = max(len(one.ids) for one in whole.rendered[:2]) - 100
    assert n_over > 0
    # The chosen answer would have fitted: cut alone, it would stand behind another prompt.
    assert len(whole.rendered[0].ids) <= 100
    assert [len(w.ids) - len(c.ids) for w, c in zip(whole.rendered, cut.rendered, strict=True)] == [
        *(n_over, n_over, 0, 0)
    ]
    chosen, rejected = cut.rendered[:2]
    assert chosen.ids[: chosen.start] == rejected.ids[: rejected.start]
    assert (cut.n_truncated, cut.n_skipped) == (1, 0)


def test_an_answer_that_does_not_fit_without_its_prompt_is_never_cut():
    with pytest.raises(OverlongError, match="never cut"):
        rows(table_of(("a", "y" * 120, "no"), ("b", "y", "n")), 100, overlong="truncate_left")


def test_nothing_that_is_left_is_said():
    with pytest.raises(DataError, match="all 2 rows are beyond 20 tokens"):
        rows(table_of(("a", "yes", "no"), ("b", "y", "n")), overlong="skip", max_length=20)


# ------------------------------------------------------------------------------- labels of the wrong kind


def labelled(*labels: float, n_prompts: int = 2) -> AnswerTable:
    answers = tuple(Answer.of(f"q{i % n_prompts}", f"a{i}") for i in range(len(labels)))
    return AnswerTable(answers, np.array(labels, dtype=float))


@pytest.mark.parametrize(
    ("table", "kind", "error", "words"),
    [
        (labelled(1, 0, 1), "pairs", LabelError, "needs preference pairs"),
        (
            table_of(("a", "x", "y"), ("b", "x", "y")),
            "correctness",
            LabelError,
            "right/wrong label",
        ),
        (labelled(1, 1, 1), "correctness", LabelError, "all 3 labelled answers are right"),
        (labelled(1, 0, n_prompts=1), "correctness", FitError, "belong to one prompt"),
        (labelled(1, 0, 1), "ordinal", LabelError, "2 level"),
        (labelled(*np.linspace(0, 1, 40)), "ordinal", LabelError, "40 level"),
        (table_of(("a", "x", "y"), ("b", "x", "y")), "ordinal", LabelError, "needs a grade"),
        (labelled(1, 0, 1), "ratings", LabelError, "needs ratings"),
    ],
)
def test_labels_of_another_kind_are_refused_before_any_work(table, kind, error, words):
    with pytest.raises(error, match=words):
        supervision_of(table, RewardOptions(kind=kind))


def test_grades_become_positions_of_levels_and_a_level_that_never_occurs_keeps_its_place():
    options = RewardOptions(kind="ordinal")
    found = supervision_of(labelled(0, 4, 2, 4), options, levels=[0, 1, 2, 3, 4])
    assert found.levels == (0, 1, 2, 3, 4)
    assert [targets for _, targets in found.answers] == [(0,), (4,), (2,), (4,)]
    with pytest.raises(LabelError, match="grade 4 is none of the levels 0, 1, 2"):
        supervision_of(labelled(0, 4, 2), options, levels=[0, 1, 2])


def test_a_rating_that_is_missing_stays_missing_in_a_batch():
    answers = tuple(Answer.of(f"q{i}", "a") for i in range(3))
    nan = float("nan")
    ratings = {"kind": np.array([0.5, nan, nan]), "true": np.array([1.0, 0.25, nan])}
    table = AnswerTable(answers, np.full(3, nan), ratings=ratings)
    made = rows(table, kind="ratings")
    assert (made.objectives, made.n_outputs, len(made.rows)) == (("kind", "true"), 2, 2)
    batch = AnswerTask("ratings", 256).collate(as_records(made))
    assert np.array_equal(batch["targets"].numpy(), [[0.5, 1.0], [nan, 0.25]], equal_nan=True)


# ------------------------------------------------------------------------------------------- mixed templates


def test_text_that_a_template_has_written_is_refused_and_says_whether_all_is():
    plain, written = Answer.of("a", "b"), Answer.of("<|im_start|>user\na<|im_end|>", "b")
    assert check_templates([plain]) == 0
    with pytest.raises(DataError, match=r"1 of 2 answers .* two templates would be mixed"):
        check_templates([plain, written])
    with pytest.raises(DataError, match=r"all answers hold text(?!.*mixed)"):
        check_templates([written])
    assert check_templates([plain, written], rendered="keep") == 1
    with pytest.raises(RecipeError, match="Did you mean 'keep'"):
        check_templates([plain], rendered="kep")


def test_earlier_turns_are_looked_at_too():
    prompt = Prompt((Message("user", "a"), Message("assistant", "[INST] b"), Message("user", "c")))
    with pytest.raises(DataError, match="a chat template has written"):
        check_templates([Answer.of(prompt, "d")])


def test_a_pad_token_that_ends_every_text_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHATML.removesuffix("{% endif %}") + "{% endif %}<pad>"
    renderer, options = ChatRenderer(tokenizer), RewardOptions()
    table = table_of(("a", "x", "y"), ("b", "x", "y"))
    with pytest.raises(DataError, match="ends with the pad token"):
        rows_of(table, supervision_of(table, options), renderer, options, CONTEXT)


# ------------------------------------------------------------------------------------------------------ steps


def step_file(folder: Path, *records: dict) -> Path:
    path = folder / "steps.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_steps_become_beginnings_with_a_label_each(tmp_path):
    path = step_file(
        tmp_path,
        {"prompt": "p", "completions": ["a", "b", "c", " "], "labels": [True, None, False, True]},
        {"problem": "q", "steps": ["a", "b", "c"], "label": 1},
        {"problem": "r", "steps": ["a"], "label": -1},
    )
    table = load_steps(path)
    assert [a.response for a in table.answers] == ["a", "a\n\nb\n\nc", "a", "a\n\nb", "a"]
    assert table.labels.tolist() == [1, 0, 1, 0, 1]
    assert dict(table.counts) == {
        "records": 3,
        "answers": 5,
        "prompts": 3,
        "steps_unlabelled": 1,
        "steps_blank": 1,
        # behind the first wrong step nothing is known
        "steps_behind_the_first_wrong": 1,
    }


@pytest.mark.parametrize(
    ("record", "error", "words"),
    [
        (
            {"prompt": "p", "steps": ["a", "b"], "labels": [True]},
            LabelError,
            "1 `labels` for 2 steps",
        ),
        ({"prompt": "p", "steps": ["a"], "labels": ["maybe"]}, LabelError, r"labels\[0\]"),
        ({"prompt": "p", "steps": ["a"], "label": 1}, LabelError, "from 0 to 0"),
        ({"prompt": "p", "steps": ["a"], "label": True}, LabelError, "kind=correctness"),
        ({"prompt": "p", "steps": ["a"]}, FormatError, "without `labels`"),
        ({"prompt": "p", "response": "a"}, FormatError, "expected a prompt, `steps`"),
        ({"prompt": "p", "steps": [3], "label": 0}, DataError, r"steps\[0\]"),
        ({"prompt": "p", "steps": ["a"], "labels": [None]}, LabelError, "no step is labelled"),
    ],
)
def test_step_labels_of_the_wrong_kind_are_refused(tmp_path, record, error, words):
    with pytest.raises(error, match=words):
        load_steps(step_file(tmp_path, record))


def test_other_verbs_say_who_learns_from_steps(tmp_path):
    path = step_file(tmp_path, {"prompt": "p", "completions": ["a"], "labels": [True]})
    with pytest.raises(FormatError, match="retrm finetune --kind steps"):
        load_table(path)
