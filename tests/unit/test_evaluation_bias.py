"""What a scorer pays for besides being right, on scorers that pay for one thing only."""

import json

import numpy as np
import pytest
from score_files import file, pairs, row, texts_of
from sklearn.linear_model import LogisticRegression

from retrm.data.refusals import refuses
from retrm.errors import DataError
from retrm.evaluation.bias import bias_panel, length_controlled
from retrm.evaluation.cues import (
    CUES,
    flatters,
    n_bold,
    n_code_blocks,
    n_headers,
    n_list_items,
)
from retrm.evaluation.preferred import pairs_of_file
from retrm.metrics import point_estimate


def lengths_of(n=200, seed=0):
    """Pairs of lengths, the preferred longer as often as shorter."""
    rng = np.random.default_rng(seed)
    return [tuple(map(int, x)) for x in rng.integers(20, 400, (n, 2))]


def by_length(name, lengths, way=1.0):
    """A scorer that sees nothing but length."""
    rows = [row(str(i), [way * a, way * b], lengths=(a, b)) for i, (a, b) in enumerate(lengths)]
    return file(name, rows)


def test_a_scorer_of_length_is_found_out_by_every_figure_of_length():
    found = bias_panel(by_length("longest", lengths_of())).of("length")

    assert found["correlation with score, all answers"].value.value == pytest.approx(1)
    assert found["correlation with score, inside items"].value.value == pytest.approx(1)
    assert found["accuracy, preferred longer"].value.value == 1
    assert found["accuracy, preferred shorter"].value.value == 0
    assert found["gap between the two"].value.value == 1
    assert found["correlation with margin"].value.value == pytest.approx(1)
    assert found["slope on the difference"].value.low > 0


def test_preferring_short_answers_turns_the_signs():
    found = bias_panel(by_length("shortest", lengths_of(), -1.0)).of("length")
    assert found["gap between the two"].value.value == -1
    assert found["correlation with score, all answers"].value.value == pytest.approx(-1)


def test_a_scorer_that_is_right_four_times_in_five_whatever_the_length_shows_no_bias():
    rng = np.random.default_rng(1)
    margins = np.where(rng.random(400) < 0.8, 1.0, -1.0)
    found = bias_panel(pairs("fair", margins, lengths=lengths_of(400))).of("length")

    for metric in ("gap between the two", "slope on the difference"):
        assert found[metric].value.low < 0 < found[metric].value.high
        assert found[metric].neutral == 0
    zero = found["accuracy at zero difference"].value
    assert zero.low < 0.8 < zero.high
    assert found["accuracy at zero difference"].n == 400


def test_where_the_labels_themselves_prefer_length_correlations_mislead_and_the_gap_does_not():
    rng = np.random.default_rng(2)
    short = rng.integers(20, 100, 300)
    longer = short + rng.integers(10, 300, 300)
    is_long = rng.random(300) < 0.8  # the preferred is the longer one in four of five pairs
    lengths = [
        (int(b), int(a)) if up else (int(a), int(b))
        for a, b, up in zip(short, longer, is_long, strict=True)
    ]
    margins = np.where(rng.random(300) < 0.85, 1.0, -1.0)  # right, whatever the length
    found = bias_panel(pairs("fair", margins, lengths=lengths)).of("length")

    assert found["correlation with score, inside items"].value.low > 0.2
    gap = found["gap between the two"].value
    assert gap.low < 0 < gap.high


def test_accuracy_at_zero_difference_is_the_intercept_of_a_logistic_regression():
    """Against scikit-learn without a penalty, on tanh of the differences over their spread."""
    rng = np.random.default_rng(3)
    lengths = lengths_of(300, seed=4)
    d = np.array([a - b for a, b in lengths], dtype=float)
    x = np.tanh(d / d.std())
    won = rng.random(300) < 1 / (1 + np.exp(-(0.7 + 1.5 * x)))
    scores = pairs("a", np.where(won, 1.0, -1.0), lengths=lengths)
    found = {k: point_estimate(s) for k, s in length_controlled(pairs_of_file(scores)[1]).items()}
    oracle = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(x[:, None], won)

    expected = 1 / (1 + np.exp(-oracle.intercept_[0]))
    assert found["accuracy at zero difference"] == pytest.approx(expected, abs=1e-4)
    assert found["slope on the difference"] == pytest.approx(oracle.coef_[0, 0], rel=1e-3)


def test_one_newton_step_in_a_resample_is_near_the_fit_anew():
    rng = np.random.default_rng(5)
    lengths = lengths_of(400, seed=6)
    margins = rng.normal(0.5, 1, 400)
    _, whole = pairs_of_file(pairs("a", margins, lengths=lengths))
    statistic = length_controlled(whole)["accuracy at zero difference"]
    counts = rng.multinomial(400, [1 / 400] * 400, size=5)
    rows = np.argsort(np.array([f"q{i}" for i in range(400)]))  # clusters are sorted as texts
    for one in counts:
        drawn = np.repeat(rows, one)
        again = pairs("a", margins[drawn], lengths=[lengths[i] for i in drawn])
        anew = length_controlled(pairs_of_file(again)[1])["accuracy at zero difference"]
        assert statistic(one[None])[0] == pytest.approx(point_estimate(anew), abs=0.01)


def test_all_pairs_won_keeps_the_fit_finite():
    found = bias_panel(pairs("a", [1.0] * 30, lengths=lengths_of(30))).of("length")
    value = found["accuracy at zero difference"].value
    assert 0.95 < value.value <= 1
    assert np.isfinite([value.low, value.high]).all()


def test_equal_lengths_leave_the_accuracy_as_it_is():
    found = bias_panel(pairs("a", [1.0] * 15 + [-1.0] * 5)).of("length")
    assert found["accuracy at zero difference"].value.value == pytest.approx(0.75, abs=1e-4)
    assert found["accuracy, like lengths"].value.value == 0.75
    assert found["gap between the two"].value is None


def test_pairs_of_like_length_differ_by_a_tenth_of_the_longer_at_most():
    lengths = [(100, 90)] * 10 + [(100, 89)] * 7 + [(90, 100)] * 3
    found = bias_panel(pairs("a", [1.0] * 17 + [-1.0] * 3, lengths=lengths)).of("length")
    assert found["accuracy, like lengths"].n == 13
    assert found["accuracy, like lengths"].value.value == pytest.approx(10 / 13)


def test_a_tie_is_one_half():
    lengths = [(20, 10)] * 10
    found = bias_panel(pairs("a", [0.0] * 5 + [1.0] * 5, lengths=lengths)).of("length")
    assert found["accuracy, preferred longer"].value.value == 0.75


def test_figures_of_a_few_rows_are_left_open_and_say_of_how_many():
    lengths = [(20, 10)] * 9 + [(10, 10)] * 20
    found = bias_panel(pairs("a", [1.0] * 29, lengths=lengths)).of("length")
    assert (found["accuracy, preferred longer"].value, found["accuracy, preferred longer"].n) == (
        None,
        9,
    )


def test_intervals_resample_clusters():
    """Ten prompts with twenty copies each have the interval of ten pairs, not of two hundred."""
    rng = np.random.default_rng(7)
    margins, lengths = np.where(rng.random(10) < 0.6, 1.0, -1.0), [(20, 10)] * 10
    once = bias_panel(pairs("a", margins, lengths=lengths)).of("length")
    clusters = [f"q{i}" for i in range(10)] * 20
    many = bias_panel(pairs("a", list(margins) * 20, lengths=lengths * 20, clusters=clusters))
    a, b = (x["accuracy, preferred longer"].value for x in (once, many.of("length")))
    assert (a.low, a.high) == (b.low, b.high)
    assert b.n_clusters == 10


# ------------------------------------------------------------------------------------------- texts

LISTS = "- one\n- two"
PLAIN = "One and two."


def with_texts(scores_of, texts):
    rows = [
        row(str(i), scores_of(some), lengths=[len(t) for t in some]) for i, some in enumerate(texts)
    ]
    scores = file("a", rows)
    return scores, texts_of(scores, texts)


def test_a_scorer_that_counts_list_items_is_found_out_by_their_gap():
    texts = [(LISTS, PLAIN), (PLAIN, LISTS)] * 10
    panel = bias_panel(*with_texts(lambda some: [n_list_items(t) for t in some], texts))
    found = panel.of("list items")

    assert found["accuracy, preferred has more"].value.value == 1
    assert found["accuracy, preferred has fewer"].value.value == 0
    assert found["gap between the two"].value.value == 1
    assert found["correlation with margin"].value.value == pytest.approx(1)
    assert panel.of("headers")["gap between the two"].value is None
    json.dumps(panel.as_dict(), allow_nan=False)


def test_the_score_shift_of_refusals_is_in_standard_deviations_inside_items():
    texts = [("I'm sorry, but no.", "Sure, here."), ("Of course.", "I can't help with that.")] * 12
    panel = bias_panel(*with_texts(lambda some: [2.0 + 3 * (1 - refuses(t)) for t in some], texts))
    found = panel.of("refusal")
    # Refusing costs 3 in every item; the variance inside is 2 (3/2)^2 / (2 - 1) = 4.5: -3 / sqrt(4.5)
    assert found["score shift"].value.value == pytest.approx(-3 / np.sqrt(4.5))
    assert found["accuracy, preferred has it"].value.value == 0
    assert found["accuracy, preferred lacks it"].value.value == 1
    assert found["score shift"].n == 24


def test_self_preference_is_seen_within_and_across_generators():
    facts = [{"generators": g} for g in (["Qwen2-7B", "gpt-4"], ["gpt-4", "qwen-max"], ["x", "x"])]
    rows = []
    for i in range(30):
        names = facts[i % 3]["generators"]
        # Prefers its own family; inside one generator it is right.
        scores = [float("qwen" in n.lower()) for n in names] if i % 3 < 2 else [1.0, 0.0]
        rows.append(row(str(i), scores, subset="helpful pairwise", facts=facts[i % 3]))
    panel = bias_panel(file("a", rows, "rmb"), own_family=["qwen"])

    assert panel.of("generator")["accuracy, one generator"].value.value == 1
    assert panel.of("generator")["accuracy, two generators"].value.value == 0.5
    own = panel.of("own family")
    assert own["accuracy, preferred is of it"].value.value == 1
    assert own["accuracy, preferred is not of it"].value.value == 0
    assert own["score shift"].n == 20
    assert own["score shift"].value.value == pytest.approx(1 / np.sqrt(0.5))


def test_what_does_not_apply_is_said():
    notes = " ".join(bias_panel(pairs("a", [1.0, 2.0])).notes)
    for part in ("position bias does not apply", "without texts", "self-preference does not apply"):
        assert part in notes


def test_items_with_very_many_pairs_are_thinned_and_it_is_said():
    facts = {"labels": [1] * 5 + [0] * 5}
    rng = np.random.default_rng(0)
    rows = [row(str(i), rng.normal(size=10), subset="all", facts=facts) for i in range(3)]
    panel = bias_panel(file("a", rows, "best_of_n"))
    assert panel.n_pairs == 48
    assert any("48 of 75 pairs: at most 16 of an item" in note for note in panel.notes)


def test_texts_of_other_answers_are_refused():
    scores, _ = with_texts(lambda some: [1.0, 0.0], [(LISTS, PLAIN)])
    _, other = with_texts(lambda some: [1.0, 0.0], [(LISTS, PLAIN + "!")])
    with pytest.raises(DataError, match="'0' has scores but has other answers in the texts"):
        bias_panel(scores, other)


# -------------------------------------------------------------------------------------------- cues


@pytest.mark.parametrize(
    ("text", "headers", "bold", "items", "blocks"),
    [
        ("plain text, 2 * 3 * 4", 0, 0, 0, 0),
        ("# Title\n\n## Part\n#hashtag", 2, 0, 0, 0),
        ("**One** and **two words**, __three__; 2 ** 3 ** 4", 0, 3, 0, 0),
        ("- a\n* b\n+ c\n1. d\n  2) e\n-not\n3.5 is no item", 0, 0, 5, 0),
        ("```python\n# no header\n- no item\n**no**\n```\n# yes", 1, 0, 0, 1),
        ("~~~\na\n~~~\n```\nopen\n- inside", 0, 0, 0, 2),
        ("inline `code` and ```three```", 0, 0, 0, 0),
    ],
)
def test_markup_is_counted_as_it_would_be_shown(text, headers, bold, items, blocks):
    counted = [f(text) for f in (n_headers, n_bold, n_list_items, n_code_blocks)]
    assert counted == [headers, bold, items, blocks]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I'm sorry, but I can't help with that.", 1),
        ("I\u2019m not able to do this.", 1),
        ("Thank you for asking. I cannot say.", 1),
        ("As an AI, I have no opinion.", 1),
        ("Sure! I can help.", 0),
        ('The sentence "he said I can\'t" is fine.', 0),
        ("Here is the plan. " + "Then we go on. " * 20 + "I cannot say more.", 0),
    ],
)
def test_refusals_are_known_by_how_an_answer_begins(text, expected):
    assert refuses(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Great question! Let us see.", 1),
        ("**You're absolutely right**, and", 1),
        ("You are right.", 1),
        ("The question is a great one.", 0),
        ("Brilliant idea!", 1),
    ],
)
def test_flattery_is_known_by_how_an_answer_begins(text, expected):
    assert flatters(text) == expected


def test_every_cue_of_a_plain_answer_is_zero():
    assert [cue.of("It is 4.") for cue in CUES] == [0] * len(CUES)
