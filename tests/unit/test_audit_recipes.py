"""The recipes of the audit: what they read, choose and compare."""

import importlib.util
import json
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model, tiny_tokenizer

from retrm.audit.plan import AuditPlan
from retrm.audit.reading import read_answers
from retrm.backbone.base import Fingerprint
from retrm.backbone.fake import FakeBackbone
from retrm.backbone.render import ChatRenderer
from retrm.backbone.states import TransformersBackbone
from retrm.data.load import load_table
from retrm.data.read import Record
from retrm.errors import DataError, StoreError
from retrm.features.read import read, render_all
from retrm.features.recipe import Recipe
from retrm.metrics import clustered_bootstrap, mean_statistic, within_prompt_auroc
from retrm.records import Answer, AnswerTable

FOLDER = Path(__file__).parents[2] / "recipes" / "audit"


def script(name: str):
    """A recipe as a module; it is no part of the package."""
    spec = importlib.util.spec_from_file_location(f"audit_recipe_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


prepare, generators, finetuned, gates, own_questions = (
    script(n) for n in ("prepare", "generators", "finetuned", "gates", "own_questions")
)


def refusal(module, monkeypatch, capsys, *words) -> str:
    """The last line that a recipe ends with, which loads no model."""
    monkeypatch.setattr(sys, "argv", ["recipe.py", *map(str, words)])
    if hasattr(module, "load_backbone"):
        monkeypatch.setattr(module, "load_backbone", None)
    try:
        code = module.main()
    except SystemExit as ended:
        code = ended.code
    assert code
    return capsys.readouterr().err.strip().splitlines()[-1]


# ------------------------------------------------------------------------------- prepare: replies


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"reasoning": "2+2", "answer": "4"}', ("2+2", "4")),
        ('```json\n{"reasoning": "a\nb", "answer": 4}\n```', ("a\nb", "4")),
        # of two objects the later one counts
        ('{"reasoning": "x", "answer": "1"} No: {"reasoning": "y", "answer": "2"}', ("y", "2")),
        ('{x} {"reasoning": "r", "answer": "5"}', ("r", "5")),
        ('{"reasoning": "r", "answer": true}', None),
        ('{"reasoning": "r", "answer": "4"', None),
        ('{"answer": "4"}', None),
        ("The answer is 4.", None),
    ],
)
def test_a_reply_is_read_from_its_last_whole_json_object(text, expected):
    assert prepare.read_reply(text) == expected


@pytest.mark.parametrize(
    ("stated", "n"),
    [("$1,200.50", 1), ("6 + 7 = 13", 1), ("2 hours 5 minutes", 2), ("none", 0), ("1/2", 2)],
)
def test_numbers_of_an_answer_are_counted_behind_the_last_equals_sign(stated, n):
    assert prepare.n_numbers(stated) == n


def test_a_reply_is_right_when_its_number_equals_the_gold_whatever_its_form():
    def judged(text):
        return prepare.judge("q", "?", text, "1200", "m")

    right = judged('{"reasoning": "r", "answer": "$1,200.00"}')
    wrong = judged('{"reasoning": "so 1200", "answer": "12"}')
    broken = judged("I get 1200")
    double = judged('{"reasoning": "r", "answer": "1200 or 1300"}')

    assert (right.label, right.key, right.response) == (1, "1200", "r\nAnswer: $1,200.00")
    assert (wrong.label, wrong.fault) == (0, None)
    # Unreadable JSON is graded, so that a model's accuracy does not hang on its wrapper, but not used.
    assert (broken.label, broken.fault) == (1, "no readable JSON")
    assert double.fault == "several numbers stated"


def replies_of(labels: dict[tuple[int, str], int]) -> list:
    return [
        prepare.Reply(f"q{q}", f"question {q}", "text", label, None, name)
        for (q, name), label in labels.items()
    ]


def test_the_weakest_generators_come_in_the_order_of_their_accuracy():
    # a: 1/2, b: 0/2, c: 2/2
    replies = replies_of(
        {(0, "a"): 1, (1, "a"): 0, (0, "b"): 0, (1, "b"): 0, (0, "c"): 1, (1, "c"): 1}
    )

    assert prepare.weakest(replies, 2) == ["b", "a"]
    with pytest.raises(DataError, match="got 3 models; expected at least 4"):
        prepare.weakest(replies, 4)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 1), min_size=5, max_size=5), min_size=4, max_size=8),
    st.integers(0, 99),
)
def test_chosen_answers_are_of_different_authors_and_mixed(rows, seed):
    labels = {(q, f"m{g}"): label for q, row in enumerate(rows) for g, label in enumerate(row)}
    n_mixed = sum(0 < sum(row) < 5 for row in rows)
    counts: Counter[str] = Counter()

    def choose(n):
        return prepare.choose(
            replies_of(labels), n_questions=n, n_answers=3, seed=seed, counts=counts
        )

    with pytest.raises(DataError, match=f"got {n_mixed} questions"):
        choose(n_mixed + 1)
    if n_mixed == 0:
        return
    chosen = choose(n_mixed)
    assert chosen == choose(n_mixed)
    for q in {reply.prompt_id for reply in chosen}:
        mine = [reply for reply in chosen if reply.prompt_id == q]
        assert len({reply.generator for reply in mine}) == len(mine) == 3
        assert {reply.label for reply in mine} == {0, 1}


def test_a_file_of_models_becomes_records_that_retrm_reads(tmp_path, monkeypatch, capsys):
    gold = tmp_path / "test.jsonl"
    gold.write_text(
        "".join(json.dumps({"question": f"Q {q}?", "answer": f"#### {q}"}) + "\n" for q in range(3))
    )
    folder = tmp_path / "models"
    folder.mkdir()
    for g in range(3):
        # model g answers question q with g: right exactly where g = q; the last one is cut off
        rows = [
            {
                "id": f"gsm#{q}",
                "question": f"Q  {q}?",
                "output": [
                    f'{{"reasoning": "r", "answer": "{g}"' + ("}" if (g, q) != (2, 0) else "")
                ],
            }
            for q in range(3)
        ]
        (folder / f"model{g}.json").write_text(json.dumps(rows))
    out = tmp_path / "out.jsonl"
    options = ["--questions", "3", "--answers", "2", "--generators", "3"]
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "prepare.py",
            "gsm8k-models",
            f"--source={folder}",
            f"--gold={gold}",
            "-o",
            str(out),
            *options,
        ],
    )

    assert prepare.main() == 0
    table = load_table(out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]

    assert "1  no readable JSON, left out" in capsys.readouterr().out
    assert len(table) == 6
    assert [sum(s == 1 for s in table.labels[list(g.rows)]) for g in table.candidate_sets()] == [
        1
    ] * 3
    assert json.loads(prepare.sidecar(out).read_text()) == [row["generator"] for row in rows]
    assert all(row["answer_id"] == f"{row['prompt_id']}/{row['generator']}" for row in rows)


def test_the_gold_of_another_file_is_refused(tmp_path):
    (tmp_path / "m.json").write_text(
        json.dumps([{"id": "#0", "question": "Other?", "output": ["x"]}])
    )
    questions = [Record({"question": "Mine?", "answer": "#### 1"}, "test.jsonl:1")]

    with pytest.raises(DataError, match=r"the question is not that of test\.jsonl:1"):
        prepare.read_models(tmp_path, questions)
    with pytest.raises(DataError, match=r"holds no \.json"):
        prepare.read_models(tmp_path / "nowhere", questions)


# ------------------------------------------------------------------------------- prepare: pairs


def test_a_pair_is_left_out_when_empty_equal_or_long():
    def fault(chosen, rejected):
        return prepare.unusable_pair({"prompt": "p", "chosen": chosen, "rejected": rejected}, 3)

    assert fault("a", "b") is None
    assert fault(" ", "b") == "empty answer"
    assert fault("a", "a") == "identical answers"
    assert fault("aaa", "bbb") is None
    assert fault("aaaa", "b") == "answer over 3 characters"


def test_transcripts_become_messages_and_pairs_of_two_prompts_are_counted(tmp_path):
    def talk(question, answer):
        return f"\n\nHuman: {question}\n\nAssistant: {answer}"

    rows = [
        {"chosen": talk("hi", "A"), "rejected": talk("hi", "B")},
        {"chosen": talk("hi", "A"), "rejected": talk("ho", "B")},
    ]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts: Counter[str] = Counter()

    (group,) = prepare.hh(tmp_path, counts)

    assert group[0]["prompt"] == [{"role": "user", "content": "hi"}]
    assert (group[0]["chosen"], group[0]["rejected"]) == ("A", "B")
    assert counts == {"pairs read": 2, "different prompts, left out": 1}


def test_the_better_output_is_chosen_and_other_labels_are_refused(tmp_path):
    path = tmp_path / "LLMBar" / "Natural" / "dataset.json"
    path.parent.mkdir(parents=True)
    row = {"input": "do", "output_1": "one", "output_2": "two", "label": 2}
    path.write_text(json.dumps([row]))
    ((pair,),) = prepare.llmbar(tmp_path, Counter())

    assert (pair["chosen"], pair["rejected"], pair["source"]) == ("two", "one", "LLMBar/Natural/0")
    path.write_text(json.dumps([{**row, "label": 0}]))
    with pytest.raises(DataError, match="`label` is 0; expected 1 or 2"):
        list(prepare.llmbar(tmp_path, Counter()))


def test_answers_are_compared_within_their_style_only(tmp_path):
    row = {"id": 7, "prompt": "p", "chosen": ["c1", "c2", "c3"], "rejected": ["r1", "r2", "r3"]}
    for domain in prepare.RM_BENCH:
        (tmp_path / f"{domain}_filtered.json").write_text(json.dumps([row]))
    groups = list(prepare.rm_bench(tmp_path, Counter()))

    assert len(groups) == 4
    assert [(r["chosen"], r["rejected"]) for r in groups[0]] == [
        ("c1", "r1"),
        ("c2", "r2"),
        ("c3", "r3"),
    ]
    assert groups[1][2]["source"] == "code/7/markdown"


def test_skipped_questions_do_not_come_again(tmp_path, monkeypatch):
    source = tmp_path / "train.jsonl"
    lines = [{"question": f"Q{i}?", "answer": f"so\n#### {i},000"} for i in range(10)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def run(n, skip):
        out = tmp_path / "out.jsonl"
        words = [
            "gsm8k-questions",
            f"--source={source}",
            "-o",
            str(out),
            f"-n{n}",
            f"--skip={skip}",
        ]
        monkeypatch.setattr(sys, "argv", ["prepare.py", *words])
        assert prepare.main() == 0
        return [json.loads(line) for line in out.read_text().splitlines()]

    first, rest = run(4, 0), run(6, 4)

    assert {row["prompt_id"] for row in first + rest} == {f"gsm8k-train-{i}" for i in range(10)}
    assert all(row["answer"] == row["prompt_id"].rpartition("-")[2] + "000" for row in first)


# ----------------------------------------------------------------------------------- generators


def test_close_pairs_leave_out_pairs_of_unlike_authors():
    scores, labels = np.array([3.0, 2.0, 1.0, 0.0, 5.0, 5.0]), np.array([0, 1, 0, 1, 1, 0])
    trait = np.array([0.80, 0.82, 0.82, 0.50, 0.7, 0.7])
    ids = ["a", "a", "a", "a", "b", "b"]
    close = generators.close_pair_statistic(scores, labels, ids, trait, 0.02)

    # Question a: right row 1 is close to the wrong rows 0 (lost) and 2 (won), right row 3 to none.
    # Question b: a tie, one half. (0 + 1 + 0.5) / 3.
    assert clustered_bootstrap(close).value == pytest.approx(0.5)
    assert close.n == 3
    with pytest.raises(DataError, match="no pair of a right and a wrong answer"):
        generators.close_pair_statistic(scores[:2], labels[:2], ids[:2], np.array([0.0, 1.0]), 0.5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_close_pairs_without_a_bound_are_all_pairs_of_a_question(seed):
    rng = np.random.default_rng(seed)
    scores, labels = rng.integers(0, 5, 24).astype(float), rng.integers(0, 2, 24)
    labels[:2] = 0, 1
    ids = [f"q{i // 6}" for i in range(24)]
    everything = generators.close_pair_statistic(scores, labels, ids, rng.random(24), 1.0)

    expected = within_prompt_auroc(scores, labels, ids).pair_weighted
    assert clustered_bootstrap(everything, n_resamples=2).value == pytest.approx(expected)


def test_the_figure_within_authors_is_the_mean_of_their_own_and_skips_one_sided_ones():
    scores = np.array([1.0, 0.0, 0.0, 1.0, 9.0])
    labels = np.array([1, 0, 1, 0, 1])
    answers = generators.Answers(np.zeros((5, 1)), labels, list("ababb"), list("xxyyz"))
    found = generators._shared_statistics(scores, answers, generators.Settings(tolerance=1.0))
    statistic = found["within_generator"]

    # x: 1, y: 0, z has right answers only.
    assert statistic(np.ones((1, 2)))[0] == pytest.approx(0.5)
    assert statistic.n == 4


def planted(*, author: bool, answer: bool):
    """Four authors of unlike accuracy on 60 questions; features show who wrote, or what is right."""
    rng = np.random.default_rng(0)
    who = np.tile(np.arange(4), 60)
    labels = (rng.random(240) < np.array([0.2, 0.4, 0.6, 0.8])[who]).astype(float)
    x = rng.normal(size=(240, 6)).astype(np.float32)
    x[:, :4] += author * 4 * np.eye(4, dtype=np.float32)[who]
    x[:, 4] += answer * 3 * labels
    ids = [f"q{i // 4}" for i in range(240)]
    return generators.Answers(x, labels, ids, [f"m{g}" for g in who])


def test_an_author_reader_wins_within_questions_and_fails_on_authors_it_never_saw():
    answers = planted(author=True, answer=False)
    found = generators.statistics_of(answers, None, generators.Settings(n_groups=2, tolerance=0.9))
    value = {name: float(s(np.ones((1, 60)))[0]) for name, s in found.items()}

    assert value["within_prompt"] > 0.6
    # One author's answers differ by noise only. (100 pairs an author and more: +-0.1 is two errors.)
    assert value["within_generator"] == pytest.approx(0.5, abs=0.1)
    assert value["seen_authors"] > value["unseen_authors"] + 0.1


def test_an_answer_reader_wins_everywhere_and_names_no_author():
    answers = planted(author=False, answer=True)
    found = generators.statistics_of(answers, None, generators.Settings(n_groups=2, tolerance=0.9))
    folds = generators.prompt_folds(answers.prompt_ids, 3)
    value = {name: float(s(np.ones((1, 60)))[0]) for name, s in found.items()}

    assert min(value.values()) > 0.9
    assert generators.named_authors(answers, folds).mean() < 0.4
    assert generators.named_authors(planted(author=True, answer=False), folds).mean() > 0.8


def test_the_score_of_an_author_comes_from_other_questions():
    answers = generators.Answers(
        np.zeros((4, 1), np.float32), np.array([1.0, 0.0, 0.0, 1.0]), list("aabb"), list("xyxy")
    )

    # Fold 0 = question a, judged by what x and y did on question b, and the other way round.
    assert generators.author_scores(answers, np.array([0, 0, 1, 1])).tolist() == [0, 1, 1, 0]


def test_the_random_subspaces_that_do_as_well_are_counted_in_each_figure():
    def figures(value):
        return dict.fromkeys(generators.METRICS, mean_statistic([value, value], ["a", "b"]))

    draws = [figures(0.5), figures(0.6), figures(0.7)]
    counted = generators._draws({"reasoning": figures(0.6)}, draws)

    # .6 itself and .7
    assert counted == {"n": 3, "at_least_as_good": dict.fromkeys(generators.METRICS, 2)}


def audited(folder: Path, backbone, table):
    """What the study needs of an audit of `table`."""
    plan = AuditPlan(poolings=("last",), layers="last2")
    read_answers(backbone, table, plan, folder / "reading", overlong="skip")
    header = {"plan": plan.as_dict(), "overlong": "skip"}
    (folder / "plan.json").write_text(json.dumps(header))
    (folder / "audit.json").write_text("{}")


def test_states_are_opened_from_a_finished_audit_and_never_read(tmp_path):
    rows = [
        {"prompt": f"{q}?", "responses": ["yes", "no"], "correct": [True, False]} for q in range(3)
    ]
    data, backbone = tmp_path / "data.jsonl", FakeBackbone()
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "data.jsonl.generators.json").write_text(json.dumps(["m", "n"] * 3))
    folder = tmp_path / "audit"

    with pytest.raises(StoreError, match="holds no finished audit; run retrm audit"):
        generators.load_features(data, folder, backbone)
    assert not folder.exists()

    audited(folder, backbone, load_table(data))
    found = generators.load_features(data, folder, backbone)
    assert found.features.shape == (6, backbone.width)
    assert found.generators == ["m", "n"] * 3

    before = sorted(path.name for path in (folder / "reading").iterdir())
    data.write_text(data.read_text() + json.dumps({**rows[0], "prompt": "new?"}) + "\n")
    with pytest.raises(StoreError, match="lacks the states of some of the 8 answers"):
        generators.load_features(data, folder, backbone)
    assert sorted(path.name for path in (folder / "reading").iterdir()) == before


def test_rows_that_do_not_match_and_a_single_group_are_refused():
    x = np.zeros((2, 1), np.float32)
    with pytest.raises(DataError, match="2 features, 2 labels, 2 prompt_ids, 1 generators"):
        generators.Answers(x, np.zeros(2), ["a", "b"], ["m"])
    answers = generators.Answers(x, np.array([0.0, 1.0]), ["a", "b"], ["m", "m"])
    with pytest.raises(DataError, match="got one group of authors"):
        generators.leave_authors_out(answers, np.array([0, 1]), np.zeros(2))


# ------------------------------------------------------------------------------------ finetuned


def trial(**changes):
    values = {
        "model": "fake", "rollouts": "r", "train_prompts": 5, "test_prompts": 2, "epochs": 2,
        "prompts_per_step": 2, "max_steps": 0, "blocks": 0, "rank": 2, "alpha": 4,
        "update_rate": 0.01, "head_rate": 0.1, "weight_decay": 0.0, "size": "5%", "n_draws": 2,
        "seed": 0,
    }  # fmt: skip
    return finetuned.Settings(**{**values, **changes})


def test_every_epoch_takes_every_prompt_once_and_a_bound_ends_it():
    groups = [(0, 1), (2,), (3, 4), (5,), (6,)]
    steps = list(finetuned.steps_of(groups, trial()))

    assert [(number, total) for number, total, _ in steps] == [(i, 6) for i in range(1, 7)]
    for epoch in (steps[:3], steps[3:]):
        assert sorted(row for _, _, rows in epoch for row in rows) == list(range(7))
    assert steps == list(finetuned.steps_of(groups, trial()))
    assert len(list(finetuned.steps_of(groups, trial(max_steps=4)))) == 4


def test_the_share_of_energy_is_that_of_the_coefficients():
    states = torch.tensor([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]])

    # 9/25, 0 and nothing at all: mean 0.12.
    assert finetuned.energy_share(states, torch.tensor([[1.0, 0.0]])) == pytest.approx(0.12)


def test_a_head_scores_along_its_direction_and_begins_with_coefficients_of_unit_length():
    torch.manual_seed(0)
    states = torch.randn(400, 6) * torch.tensor([1.0, 5.0, 0.1, 1.0, 2.0, 3.0]) + 7
    basis = torch.linalg.qr(torch.randn(6, 3))[0].T
    for chosen in (basis, None):
        head = finetuned.SubspaceHead(chosen, states)
        lengths = head.coefficients(states).square().sum(dim=1)
        torch.nn.init.normal_(head.weight)
        moved = states + head.direction()

        assert float(lengths.mean()) == pytest.approx(1.0, abs=0.01)
        rise = (head(moved) - head(states)).detach()
        torch.testing.assert_close(
            rise, head.direction().square().sum().expand(400), rtol=1e-3, atol=1e-3
        )
    assert (
        finetuned.energy_share(finetuned.SubspaceHead(basis, states).direction()[None], basis) == 0
    )


def test_states_that_carry_a_gradient_are_those_of_the_frozen_reading():
    model = tiny_model("llama")
    backbone = TransformersBackbone(
        model, ChatRenderer(tiny_tokenizer()), Fingerprint("", "", "", ""), "tiny"
    )
    answers = [Answer.of(p, r) for p in ("2+2?", "Hello") for r in ("4", "four, I think", "5")]
    expected = read(backbone, answers, {"last": Recipe(pooling="last")}).features["last"].values
    reader = finetuned.reader(backbone, render_all(backbone, answers).rendered)

    found = finetuned.read_all(reader, [4, 0, 1, 5, 2, 3], backbone.width)

    torch.testing.assert_close(found, expected[[4, 0, 1, 5, 2, 3]], atol=1e-5, rtol=1e-4)
    model.requires_grad_(True)
    for _, states in reader([0, 3]):
        states.sum().backward()
    assert all(p.grad is not None for block in backbone.located.blocks for p in block.parameters())


def test_only_comparisons_of_what_is_there_are_made():
    found = [("frozen", "reasoning"), ("frozen", "random"), ("tuned", "reasoning")]

    assert set(finetuned.contrasts(found)) == {
        "frozen: reasoning - random",
        "reasoning: tuned - frozen",
    }


def test_random_arms_that_do_as_well_are_counted_in_each_regime():
    table = AnswerTable(tuple(Answer.of("p", f"{i}") for i in range(4)), np.array([1.0, 1, 0, 0]))
    data = finetuned.Data(table, (), (), (0, 1, 2, 3))
    result = {"training_s": 0.0, "first_loss": None, "last_loss": None, "shares": {}}
    # Right x wrong pairs won, of 4: reasoning 2, random 4, 2 and 0.
    scores = {
        ("reasoning", 0): [1.0, 4, 3, 2],
        ("random", 0): [3.0, 4, 2, 1],
        ("random", 1): [1.0, 4, 3, 2],
        ("random", 2): [1.0, 2, 3, 4],
    }
    done = {
        finetuned.Arm("frozen", kind, draw): {**result, "scores": found}
        for (kind, draw), found in scores.items()
    }
    made = finetuned.summarise(done, data)

    # Best of four: reasoning right; random right, right, wrong.
    counts = {"within_auroc": 2, "best_of_n": 2}
    assert made["draws"] == {"frozen": {"n": 3, "at_least_as_good": counts}}
    assert made["figures"]["frozen random"]["within_auroc"]["value"] == 0.5


def test_an_arm_of_other_settings_is_not_taken_over(tmp_path):
    arm = finetuned.Arm("tuned", "random", 1)
    (tmp_path / "tuned.random.1.json").write_text(
        json.dumps({"settings": finetuned.asdict(trial()), "scores": [1.0]})
    )

    assert finetuned.kept(tmp_path, arm, trial())["scores"] == [1.0]
    assert finetuned.kept(tmp_path, arm, trial(seed=1)) is None
    assert arm in finetuned.arms_of(trial())
    assert len(finetuned.arms_of(trial())) == 15  # 3 regimes x (3 kinds + 2 random draws)


# ---------------------------------------------------------------------------------------- gates


def test_random_gates_stand_for_their_mean_and_those_that_do_as_well_are_counted():
    labels, ids = np.array([1.0, 0, 1, 0]), np.array(list("aabb"), dtype=object)
    right, half, wrong = (np.array(x) for x in ([1.0, 0, 1, 0], [1.0, 0, 0, 1], [0.0, 1, 0, 1]))
    scores = dict.fromkeys(("elhsr", "retrm", "last_token"), right)
    scores |= {"retrm_elhsr": half, "random_elhsr@0": right, "random_elhsr@1": wrong}
    rows = {
        (row["second"], row["metric"]): row
        for row in gates.differences(scores, labels, ids)
        if row["first"] == "retrm_elhsr"
    }
    random, full = rows["random_elhsr", "within_auroc"], rows["elhsr", "within_auroc"]

    # .5 minus the mean of 1 and 0; one of the two does as well. .5 minus 1.
    assert (random["value"], random["n_draws"], random["n_at_least_as_good"]) == (0.0, 2, 1)
    assert (full["value"], full["n_draws"], full["n_at_least_as_good"]) == (-0.5, 0, 0)
    assert [m.name for m in gates.methods(2)][-2:] == ["random_elhsr@0", "random_elhsr@1"]


ROLLOUTS = [
    {"prompt": f"{q}?", "responses": ["yes", "no"], "correct": [True, False]} for q in range(4)
]


def written(path: Path, rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("words", "telling"),
    [
        (["--limit", "99999"], "got --limit 99999; .* holds 8 answers"),
        (["--limit", "-5"], "got --limit -5; expected 1 or more"),
        (["--limit", "0"], "got --limit 0; expected 1 or more"),
        (["--draws", "0"], "got --draws 0; expected 1 or more"),
        (["--folds", "1"], "got --folds 1; expected 2 or more"),
        (["--folds", "5"], "error: .*4 prompt"),
        (["--rollouts", "no-file.jsonl"], "error: .*no-file.jsonl"),
        (["-o", "."], r"error: \. is a folder; expected the name of a file"),
        (["-o", "data.jsonl/gates.json"], "error: data.jsonl is a file; expected a folder"),
    ],
)
def test_gates_refuse_before_a_model_is_loaded(tmp_path, monkeypatch, capsys, words, telling):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "data.jsonl", ROLLOUTS)
    given = ["--rollouts=data.jsonl", "-o", "gates.json", *words]
    assert re.search(telling, refusal(gates, monkeypatch, capsys, *given))
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]


@pytest.mark.parametrize(
    ("rows", "telling"),
    [
        ([{**row, "correct": [True, True]} for row in ROLLOUTS], "no prompt with right and wrong"),
        ([{**row, "correct": [True, None]} for row in ROLLOUTS], "more than right and wrong"),
        ([{"prompt": "p", "chosen": "a", "rejected": "b"}], "more than right and wrong"),
    ],
)
def test_gates_refuse_answers_that_cannot_be_compared(tmp_path, monkeypatch, capsys, rows, telling):
    data = written(tmp_path / "data.jsonl", rows)
    given = ["--rollouts", data, "-o", tmp_path / "gates.json"]
    assert telling in refusal(gates, monkeypatch, capsys, *given)


def test_the_study_of_authors_refuses_before_a_model_is_loaded(tmp_path, monkeypatch, capsys):
    data, folder = tmp_path / "data.jsonl", tmp_path / "audit"

    def refused(*words):
        given = [data, "--audit", folder, "-o", tmp_path / "out.json", *words]
        return refusal(generators, monkeypatch, capsys, *given)

    assert "data.jsonl is missing; make both files with prepare.py" in refused()
    written(data, ROLLOUTS)
    assert "data.jsonl.generators.json is missing" in refused()
    (tmp_path / "data.jsonl.generators.json").write_text(json.dumps(["m", "n"] * 4))
    assert "holds no finished audit; run retrm audit" in refused()
    assert "got --draws 0; expected 1 or more" in refused("--draws", "0")
    assert "5x" in refused("--size", "5x")
    assert "is a folder; expected the name of a file" in refused("-o", tmp_path)


def test_fewer_than_one_question_a_kind_are_refused(monkeypatch, capsys):
    found = refusal(own_questions, monkeypatch, capsys, "--per-kind", "-3")
    assert "got --per-kind -3; expected 1 or more" in found
