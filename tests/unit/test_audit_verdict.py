"""Verdicts say what planted intervals allow, at every branch and boundary, and never more."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrm.audit.rules import DRAWS_FOR_A_CLAIM
from retrm.audit.tables import AuditTables, CellRow, ContrastRow, InterventionRow
from retrm.audit.verdict import verdicts
from retrm.errors import DataError
from retrm.metrics import (
    clustered_bootstrap,
    format_interval,
    format_number,
    length_matched_auroc_statistic,
    paired_difference,
)

NAN = math.nan
FACTS = {"metric": "within_auroc", "n_prompts": 1000, "n_mixed": 412}
quick = settings(max_examples=40, deadline=None)
ends = st.tuples(
    st.sampled_from([-0.01, 0.0, 0.01]) | st.floats(-0.05, 0.05),
    st.sampled_from([-0.01, 0.0, 0.01]) | st.floats(-0.05, 0.05),
).map(sorted)


def contrast(low, high, **changes):
    values = {
        **{"role": "exploratory", "sweep": "primary", "matrix": "raw", "m": 29, "layer": 30},
        **{"pooling": "last", "head": "logistic", "n_train_prompts": 800},
        **{"metric": "within_auroc", "first": "reasoning", "second": "random"},
        **{"value": (low + high) / 2, "low": low, "high": high},
        **{"n_prompts": 412, "n_draws": 99, "rank_p": 0.62},
        **{"p": 0.2, "df": math.inf, "holm_p": NAN},
    }
    return ContrastRow(**{**values, **changes})


def primary(low, high, **changes):
    return contrast(low, high, **{"role": "primary", **changes})


def economy(low, high, **changes):
    plain = {"role": "economy", "second": "full", "n_draws": 0, "rank_p": NAN}
    return contrast(low, high, **{**plain, **changes})


def cell(value, low, high, **changes):
    values = {
        **{"sweep": "primary", "features": "reasoning", "matrix": "raw", "m": 29, "draw": 0},
        **{"offset": -1, "layer": 30, "pooling": "last", "head": "logistic"},
        **{"scaling": "standardised", "n_train_prompts": 800, "metric": "within_auroc"},
        **{"value": value, "low": low, "high": high, "n": 809},
        **{"n_prompts": 1000, "n_undefined": 0, "at_end": 0.0},
    }
    return CellRow(**{**values, **changes})


def removal(removed, low, high, **changes):
    """`low` and `high` are those of the comparison with random ones: NaN for a random one itself."""
    middle = (low + high) / 2
    values = {
        **{"layers": "10-20", "removed": removed, "m": 29, "draw": 0, "measure": "log_probability"},
        **{"fill": "mean", "spare_first": False, "point": "residual"},
        **{"value": -1.0, "low": -1.1, "high": -0.9},
        **{"difference": middle - 0.01, "difference_low": low, "difference_high": high},
        **{"minus_random": middle, "minus_random_low": low, "minus_random_high": high},
        **{"rank_p": 1.0, "random_p": 0.001, "random_holm_p": 0.01, "n": 200},
    }
    return InterventionRow(**{**values, **changes})


def drawn(difference, removed="random", **changes):
    return removal(removed, NAN, NAN, **{"difference": difference, **changes})


def audit(*contrasts, cells=(), interventions=(), facts=FACTS):
    return AuditTables(facts=facts, contrasts=contrasts, cells=cells, interventions=interventions)


def found(question, tables):
    return [verdict for verdict in verdicts(tables) if verdict.question == question]


def the(question, tables):
    (verdict,) = found(question, tables)
    return verdict


# -------------------------------------------------------------------------------- specificity


@pytest.mark.parametrize(
    ("low", "high", "answer"),
    [
        (0.002, 0.03, "helps"),
        (0.002, 0.008, "helps"),  # above 0 comes before within the margin
        (-0.03, -0.002, "hurts"),
        (-0.008, -0.002, "hurts"),
        (-0.008, 0.008, "no better than random"),
        (-0.01, 0.01, "no better than random"),  # touching the margin is within it
        (0.0, 0.0, "no better than random"),
        (0.0, 0.01, "no better than random"),  # touching 0 does not exclude it
        (-0.01, 0.0, "no better than random"),
        (0.0, 0.02, "undecided"),
        (-0.02, 0.0, "undecided"),
        (-0.055, 0.012, "undecided"),
        (math.nextafter(-0.01, -1), 0.005, "undecided"),
        (-0.005, math.nextafter(0.01, 1), "undecided"),
        (NAN, NAN, "undecided"),
        (NAN, -0.02, "undecided"),
    ],
)
def test_specificity_follows_the_interval_of_the_primary_contrast(low, high, answer):
    best_or_worst = 1.0 if high < 0 else 0.01  # of 99 draws none is as far out
    verdict = the("specificity", audit(primary(low, high, rank_p=best_or_worst)))

    assert verdict.answer == answer
    assert verdict.is_primary


@pytest.mark.parametrize(
    ("low", "high", "rank_p", "answer"),
    [
        (0.002, 0.03, 0.02, "helps"),  # 1 of 99 draws is at least as good: 2 / 100
        (0.002, 0.03, 0.03, "within the spread of random"),  # 2 of 99 are
        (-0.03, -0.002, 0.99, "hurts"),  # 98 are better, so 1 is not: 2 / 100
        (-0.03, -0.002, 0.98, "within the spread of random"),  # 2 of 99 are as bad
        (-0.03, -0.002, 0.01, "within the spread of random"),
        (-0.005, 0.005, 0.01, "no better than random"),  # the rank alone claims nothing
    ],
)
def test_an_interval_alone_claims_nothing_among_random_subspaces_that_differ_as_much(
    low, high, rank_p, answer
):
    assert the("specificity", audit(primary(low, high, rank_p=rank_p))).answer == answer


@pytest.mark.parametrize(("side", "rank_p"), [(1, 1 / 40), (-1, 1.0)])
def test_thirty_nine_draws_are_enough_for_a_claim_if_none_is_as_far_out(side, rank_p):
    # 1 / 40 = .025, half of .05; with one draw as far out it is 2 / 40
    ends, answer = sorted((0.1 * side, 0.2 * side)), "helps" if side > 0 else "hurts"
    one_beyond = rank_p + side / 40

    assert the("specificity", audit(primary(*ends, n_draws=39, rank_p=rank_p))).answer == answer
    beyond = the("specificity", audit(primary(*ends, n_draws=39, rank_p=one_beyond)))
    assert beyond.answer == "within the spread of random"


def test_thirty_eight_draws_are_too_few_for_any_claim():
    # the smallest rank p of 38 draws is 1 / 39 > .025
    row = primary(0.1, 0.2, n_draws=38, rank_p=1 / 39)

    verdict = the("specificity", audit(row))

    assert verdict.answer == "too few draws"
    assert "a claim needs the rank among 39 random subspaces or more" in verdict.sentence
    undecided = the("specificity", audit(primary(-0.1, 0.2, n_draws=38)))
    assert undecided.answer == "undecided"  # more draws would not change this one


@quick
@given(ends)
def test_specificity_is_never_stronger_than_its_interval(interval):
    low, high = interval
    rank_p = 1.0 if high < 0 else 0.01
    answer = the("specificity", audit(primary(low, high, rank_p=rank_p))).answer

    assert (answer == "helps") == (low > 0)
    assert (answer == "hurts") == (high < 0)
    includes_zero = low <= 0 <= high
    assert (answer == "no better than random") == (includes_zero and max(-low, high) <= 0.01)
    assert (answer == "undecided") == (includes_zero and max(-low, high) > 0.01)


def test_the_sentence_of_specificity_holds_every_figure():
    # rank p .62 of 99 draws: .62 x 100 - 1 = 61 are at least as good, so 38 are as bad: 39 / 100
    row = primary(-0.055, 0.012, value=-0.021)
    sentence = the("specificity", audit(row)).sentence

    assert sentence == (
        "Within-prompt AUROC: the reasoning subspace (m = 29) minus the mean of 99 random subspaces "
        "of the same width is -.021 [-.055, .012] over 1,000 prompts, 412 of them with right and "
        "wrong answers; 38 of 99 random subspaces are at least as bad (rank p = .390 on that side); "
        "all sources of chance together: p = .200. The interval neither excludes 0 nor lies within "
        "±.010: undecided."
    )


@pytest.mark.parametrize(
    ("row", "told"),
    [
        # as demo was: all 99 are better, so none is as bad
        (
            primary(-0.03, -0.01, rank_p=1.0),
            "0 of 99 random subspaces are at least as bad (rank p = .010",
        ),
        (
            primary(0.01, 0.03, rank_p=0.02),
            "1 of 99 random subspaces is at least as good (rank p = .020",
        ),
        (primary(-0.01, 0.03, rank_p=0.4), "39 of 99 random subspaces are at least as good"),
    ],
)
def test_the_rank_that_is_told_is_that_of_the_side_on_which_a_claim_would_be(row, told):
    assert told in the("specificity", audit(row)).sentence


def test_the_p_of_all_sources_of_chance_is_told_and_decides_nothing():
    told = the("specificity", audit(primary(0.01, 0.03, rank_p=0.01, p=0.172)))

    assert told.answer == "helps"
    assert "; all sources of chance together: p = .172. " in told.sentence
    tiny = the("economy", audit(economy(-0.09, -0.05, p=0.0003))).sentence
    assert "all sources of chance together: p < .001. " in tiny
    assert "chance together" not in the("economy", audit(economy(-0.1, 0.1, p=NAN))).sentence


def test_a_sure_but_small_effect_is_said_to_be_small():
    small = the("specificity", audit(primary(0.002, 0.008, rank_p=0.01))).sentence
    large = the("specificity", audit(primary(0.002, 0.03, rank_p=0.01))).sentence

    assert "helps, by less than .010" in small
    assert "by less than" not in large


def test_figures_that_were_not_made_are_not_printed():
    row = primary(NAN, NAN, value=0.02, n_draws=0, rank_p=NAN, p=NAN)
    sentence = the("specificity", audit(row, facts={})).sentence

    assert "is .020 (no interval). No interval was made: undecided." in sentence
    assert "nan" not in sentence
    assert "rank p" not in sentence
    assert "over" not in sentence.split("minus")[1]


def test_prompts_are_taken_from_the_cells_where_the_facts_have_none():
    tables = audit(primary(0.01, 0.02), cells=[cell(0.7, 0.6, 0.8, n_prompts=321)], facts={})

    assert "over 321 prompts" in the("specificity", tables).sentence


def test_preferences_are_worded_as_pairs_without_mixed_prompts():
    facts = {"metric": "pair_accuracy", "n_prompts": 300, "n_mixed": NAN}
    tables = audit(primary(0.01, 0.02, metric="pair_accuracy"), facts=facts)
    sentence = the("specificity", tables).sentence

    assert sentence.startswith("Share of preference pairs in the right order: ")
    assert "over 300 prompts;" in sentence


def test_each_metric_that_was_fixed_has_its_own_verdict():
    tables = audit(primary(0.01, 0.02, rank_p=0.01), primary(-0.02, 0.02, metric="best_of_n"))

    assert [v.answer for v in found("specificity", tables)] == ["helps", "undecided"]


def test_verdicts_on_one_question_carry_what_tells_them_apart():
    rows = [contrast(*FLAT[:2], sweep="layer", pooling=name) for name in ("last", "mean")]
    tables = audit(economy(-0.1, 0.1), economy(-0.1, 0.1, metric="best_of_n"), *rows)

    assert [v.subject for v in found("economy", tables)] == ["within_auroc", "best_of_n"]
    assert [v.subject for v in found("layers", tables)] == ["last", "mean"]


def test_a_metric_of_which_less_is_better_is_refused():
    with pytest.raises(DataError, match="'log_loss'; expected a metric of which more is better"):
        verdicts(audit(primary(0.01, 0.02, metric="log_loss")))
    with pytest.raises(DataError, match="Did you mean 'within_auroc'"):
        verdicts(audit(facts={"metric": "within_aurok"}))


# ------------------------------------------------------------------------------------ economy


@pytest.mark.parametrize(
    ("low", "high", "answer"),
    [
        (-0.009, 0.02, "within margin"),
        (-0.01, 0.02, "within margin"),  # touching the margin is within it
        (-0.01, 0.0, "within margin"),  # touching 0 does not exclude it
        (0.01, 0.02, "within margin"),
        (math.nextafter(-0.01, -1), 0.02, "undecided"),
        (-0.05, 0.0, "undecided"),
        (-0.05, -0.001, "worse than full"),
        (-0.05, -0.02, "worse than full"),
        (-0.01, -0.001, "worse than full, within margin"),
        (NAN, NAN, "undecided"),
        (-0.005, NAN, "undecided"),
    ],
)
def test_economy_follows_the_interval_and_the_margin(low, high, answer):
    verdict = the("economy", audit(economy(low, high)))

    assert verdict.answer == answer
    assert verdict.is_primary


@quick
@given(ends)
def test_economy_is_never_stronger_than_its_interval(interval):
    low, high = interval
    answer = the("economy", audit(economy(low, high))).answer

    assert ("worse than full" in answer) == (high < 0)
    assert ("within margin" in answer) == (low >= -0.01)
    assert (answer == "undecided") == (high >= 0 and low < -0.01)


def test_economy_says_both_where_both_hold():
    sentence = the("economy", audit(economy(-0.008, -0.002, value=-0.005))).sentence

    assert "(m = 29) minus the full state is -.005 [-.008, -.002] over 1,000 prompts" in sentence
    assert "worse than full, but by no more than the margin of .010" in sentence
    assert "rank p" not in sentence


def test_economy_says_where_less_is_more():
    assert "lies above 0" in the("economy", audit(economy(0.002, 0.02))).sentence
    assert "lies above 0" not in the("economy", audit(economy(0.0, 0.02))).sentence


# ------------------------------------------------------------------------------ missing tables


def test_nothing_measured_is_said_and_claims_nothing():
    answers = {v.question: v.answer for v in verdicts(AuditTables(facts={}))}

    assert answers == {
        "specificity": "undecided",
        "economy": "undecided",
        "sanity": "not checked",
    }


def test_verdicts_fixed_before_looking_come_first_and_only_they_are_primary():
    tables = audit(
        contrast(0.01, 0.02, sweep="learning", holm_p=0.01), economy(-0.1, 0.1), primary(-0.1, 0.1)
    )
    made = verdicts(tables)

    assert [v.question for v in made] == ["specificity", "economy", "sanity", "labels"]
    assert [v.is_primary for v in made] == [True, True, False, False]


# --------------------------------------------------------------------------------- exploratory


def learning(n, low, high, holm_p, second="random", **changes):
    return contrast(
        low, high, sweep="learning", n_train_prompts=n, holm_p=holm_p, second=second, **changes
    )


UP, DOWN, FLAT = (0.01, 0.05, 0.01), (-0.05, -0.01, 0.01), (-0.02, 0.03, 0.9)


@pytest.mark.parametrize(
    ("sizes", "answer"),
    [
        ((UP, UP, UP), "helps"),
        ((UP, FLAT, FLAT), "helps with few labels"),
        ((UP, UP, DOWN), "helps with few labels"),
        ((FLAT, UP, FLAT), "helps at some"),
        ((DOWN, UP, FLAT), "mixed"),
        ((FLAT, DOWN, DOWN), "hurts at some"),
        ((DOWN, DOWN, DOWN), "hurts"),
        ((FLAT, FLAT, FLAT), "no evidence"),
    ],
)
def test_labels_are_answered_by_the_numbers_of_training_prompts(sizes, answer):
    # Given in any order, read by ascending number.
    rows = [learning(n, *size) for n, size in zip((32, 64, 128), sizes, strict=True)][::-1]
    verdict = the("labels", audit(primary(-0.1, 0.1), *rows))

    assert verdict.answer == answer
    assert not verdict.is_primary


def test_the_sentence_of_labels_names_the_numbers_and_their_intervals():
    rows = [learning(32, *UP), learning(64, *FLAT), learning(1280, *DOWN)]
    sentence = the("labels", audit(*rows)).sentence

    assert sentence == (
        "The reasoning subspace against random subspaces of the same width, over the numbers of "
        "training prompts looked at: better at 32: .030 [.010, .050]; worse at 1,280: "
        "-.030 [-.050, -.010]; no evidence either way at 64: .005 [-.020, .030] (after Holm's "
        "correction)."
    )


def test_labels_are_answered_against_random_and_against_the_full_state():
    rows = [learning(32, *FLAT), learning(32, *DOWN, second="full", n_draws=0)]
    against_random, against_full = (the(q, audit(*rows)) for q in ("labels", "labels_full"))

    assert (against_random.answer, against_full.answer) == ("no evidence", "worse than full")
    assert "No evidence of a difference between the reasoning subspace and random" in (
        against_random.sentence
    )
    assert "none stands" in against_random.sentence
    assert "against the full state" in against_full.sentence


@pytest.mark.parametrize(
    ("sizes", "answer"),
    [
        ((UP, UP), "better than full"),
        ((UP, FLAT), "better than full with few labels"),
        ((FLAT, UP), "better than full at some"),
        ((DOWN, UP), "mixed against full"),
        ((FLAT, DOWN), "worse than full at some"),
        ((FLAT, FLAT), "no evidence"),
    ],
)
def test_an_answer_against_the_full_state_names_it(sizes, answer):
    rows = [learning(n, *x, second="full", n_draws=0) for n, x in zip((32, 64), sizes, strict=True)]
    verdict = the("labels_full", audit(*rows))

    assert verdict.answer == answer
    assert ("any few directions may do this" in verdict.sentence) == (UP in sizes)


@pytest.mark.parametrize("holm_p", [0.05, 0.2, NAN])
def test_without_holm_below_five_per_cent_nothing_is_claimed(holm_p):
    verdict = the("labels", audit(learning(32, 0.01, 0.05, holm_p)))

    assert verdict.answer == "no evidence"
    assert verdict.sentence.startswith("No evidence of a difference")
    assert "32: .030 [.010, .050]" in verdict.sentence


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.05), (-0.05, 0.0), (-0.01, 0.01), (NAN, NAN)])
def test_an_interval_that_touches_zero_claims_nothing_whatever_holm_says(low, high):
    assert the("labels", audit(learning(32, low, high, 0.001))).answer == "no evidence"


@quick
@given(st.lists(st.tuples(ends, st.floats(0, 0.1)), min_size=1, max_size=6))
def test_no_exploratory_answer_is_stronger_than_its_intervals_and_holm_allow(rows):
    table = [learning(2**i, low, high, p) for i, ((low, high), p) in enumerate(rows)]
    answer = the("labels", audit(*table)).answer
    up = [p < 0.05 and low > 0 for (low, _), p in rows]
    down = [p < 0.05 and high < 0 for (_, high), p in rows]

    assert (answer == "no evidence") == (not any(up) and not any(down))
    assert (answer == "helps") == all(up)
    assert (answer == "hurts") == all(down)
    if "helps" in answer or answer == "mixed":
        assert any(up)
    if "hurts" in answer or answer == "mixed":
        assert any(down)
    if answer == "helps with few labels":
        assert all(up[: sum(up)])


def test_other_settings_than_the_primary_one_do_not_answer_for_it():
    rows = [learning(32, *FLAT), learning(32, *UP, m=128), learning(32, *UP, pooling="mean")]

    assert the("labels", audit(primary(-0.1, 0.1), *rows)).answer == "no evidence"


def test_heads_of_the_sweep_are_not_those_of_the_primary_contrast():
    rows = [learning(32, *UP, head="ridge"), learning(32, *DOWN, m=128, head="ridge")]

    assert the("labels", audit(primary(-0.1, 0.1), *rows)).answer == "helps"


def test_a_setting_that_was_not_measured_is_not_answered_from_others():
    rows = [learning(32, *UP, m=128), learning(32, *UP, pooling="mean")]

    assert found("labels", audit(primary(-0.1, 0.1), *rows)) == []


def test_other_metrics_than_the_one_of_record_do_not_answer_for_it():
    rows = [learning(32, *FLAT), learning(32, *UP, metric="best_of_n")]

    assert the("labels", audit(*rows)).answer == "no evidence"


def layer(i, low, high, holm_p, **changes):
    return contrast(low, high, sweep="layer", layer=i, holm_p=holm_p, matrix="folded", **changes)


def full(i, value, **changes):
    return cell(
        value, value - 0.03, value + 0.03, sweep="layer", features="full", layer=i, **changes
    )


def test_layers_name_those_where_reasoning_beats_random_and_describe_the_best_of_full():
    tables = audit(
        primary(-0.1, 0.1),
        *(layer(10, *FLAT), layer(20, *UP), layer(30, *FLAT)),
        cells=[full(10, 0.7), full(20, 0.8), full(30, 0.75), full(25, NAN)],
    )
    verdict = the("layers", tables)

    assert verdict.answer == "helps at some"
    assert "better at 20: .030 [.010, .050]" in verdict.sentence
    assert (
        "The full state reads best at layer 20 (.800 [.770, .830]), against .750 [.720, .780] at the "
        "last one, 30; the best of 3 was picked after looking, so this is no claim."
    ) in verdict.sentence


def test_each_pooling_has_its_own_layers_and_is_compared_with_itself_only():
    tables = audit(
        primary(-0.1, 0.1),
        *(layer(10, *UP, pooling="mean"), layer(10, *DOWN)),
        cells=[
            *(full(10, 0.7), full(20, 0.6)),
            *(full(10, 0.75, pooling="mean"), full(20, 0.8, pooling="mean")),
        ],
    )
    last, mean = found("layers", tables)

    assert (last.answer, mean.answer) == ("hurts", "helps")
    assert last.sentence.startswith("Pooling last. The reasoning subspace against")
    assert "best at layer 10 (.700 [.670, .730]), against .600" in last.sentence
    assert mean.sentence.startswith("Pooling mean. ")
    assert "best at the last one, 20 (.800 [.770, .830])" in mean.sentence


def test_layers_without_contrasts_claim_nothing():
    verdict = the("layers", audit(cells=[full(10, 0.7), full(30, 0.75)]))

    assert verdict.answer == "no evidence"
    assert "was not compared with random ones layer by layer" in verdict.sentence
    assert "best at the last one, 30 (.750 [.720, .780])" in verdict.sentence


def test_many_layers_are_summed_up_by_their_extremes():
    rows = [layer(i, -0.02 - i / 1000, 0.02, 0.9) for i in range(31)]
    sentence = the("layers", audit(*rows)).sentence

    # values -i / 2000: from -.015 (i = 30) to 0
    assert "28, 29, 30: differences from -.015 to .000" in sentence
    assert sentence.count("[") == 0


def added(opponent, low, high, holm_p):
    """Scalars with the subspace, whose width counts the scalars too, against scalars or with random."""
    pair = {"first": "scalars+reasoning", "second": opponent}
    return contrast(low, high, sweep="controls", m=40, head="ridge", holm_p=holm_p, **pair)


@pytest.mark.parametrize(
    ("size", "alone", "random"),
    [
        (UP, "better than scalars alone", "helps"),
        (DOWN, "worse than scalars alone", "hurts"),
        (FLAT, "no evidence", "no evidence"),
    ],
)
def test_what_is_added_to_scalars_is_compared_with_them_and_with_random(size, alone, random):
    for question, opponent, answer in (
        ("confidence", "scalars", alone),
        ("confidence_random", "scalars+random", random),
    ):
        row = added(opponent, *size)
        verdict = the(question, audit(primary(-0.1, 0.1), row))

        assert verdict.answer == answer
        assert "calars with the reasoning subspace" in verdict.sentence
        assert format_interval(row.value, row.low, row.high) in verdict.sentence
    assert [v.question for v in verdicts(audit(primary(-0.1, 0.1), row))][-1] == "confidence_random"


def test_to_beat_scalars_is_not_said_to_be_the_merit_of_the_subspace():
    sentence = the("confidence", audit(added("scalars", *UP))).sentence

    assert "Random directions may add as much" in sentence


# -------------------------------------------------------------------------- length and sanity


def by_length(rule, low, high, holm_p, **changes):
    return contrast(
        low, high, second=rule, metric="length_matched_auroc", n_draws=0, holm_p=holm_p, **changes
    )


def both_rules(shortest, longest):
    return by_length("shortest", *shortest), by_length("longest", *longest)


@pytest.mark.parametrize(
    ("low", "high", "rules", "answer"),
    [
        (0.47, 0.57, (UP, UP), "may read length only"),
        (0.5, 0.57, (UP, UP), "may read length only"),  # touching chance includes it
        (0.43, 0.5, (DOWN, DOWN), "may read length only"),
        (0.501, 0.57, (UP, UP), "not length alone"),
        (0.501, 0.57, (FLAT, UP), "may read length only"),
        (0.501, 0.57, (UP, DOWN), "may read length only"),
        (0.4, 0.49, (DOWN, DOWN), "reverses at equal length"),
        (0.4, 0.49, (UP, DOWN), "may read length only"),
        (0.4, 0.49, (FLAT, FLAT), "may read length only"),
        (NAN, NAN, (UP, UP), "undecided"),
    ],
)
def test_length_is_answered_by_pairs_of_like_length_and_rules_on_them(low, high, rules, answer):
    row = cell(0.52, low, high, metric="length_matched_auroc")
    tables = audit(primary(-0.1, 0.1), *both_rules(*rules), cells=[row, cell(0.9, 0.8, 1.0)])
    verdict = the("length", tables)

    assert verdict.answer == answer
    assert "(809 left)" in verdict.sentence
    assert f"minus `shortest` {format_interval(sum(rules[0][:2]) / 2, *rules[0][:2])}" in (
        verdict.sentence
    )
    if not math.isnan(low):
        assert format_interval(0.52, low, high) in verdict.sentence


def test_without_rules_by_length_on_the_same_pairs_nothing_is_claimed():
    row = cell(0.52, 0.51, 0.57, metric="length_matched_auroc")

    for rules in ((), (by_length("shortest", *UP),)):
        verdict = the("length", audit(primary(-0.1, 0.1), *rules, cells=[row]))
        assert verdict.answer == "undecided"
        assert "may still differ by a tenth in length" in verdict.sentence


@pytest.mark.parametrize(
    "score", [np.negative, lambda n: 1 / n, lambda n: 1 / (1 + np.exp(n / 9 - 16))]
)
def test_a_score_of_length_alone_is_found_out_where_labels_are_steep_in_length(score):
    # Right below 148 tokens or so, wrong above: even pairs within a tenth of each other are told apart.
    rng = np.random.default_rng(0)
    lengths = np.round(148 * rng.lognormal(0, 0.4, size=1600))
    labels = (rng.random(1600) < 1 / (1 + np.exp((np.log(lengths) - 5) / 0.05))).astype(float)
    ids = np.repeat(np.arange(200), 8)
    ours, shortest, longest = (
        length_matched_auroc_statistic(x, labels, ids, lengths)
        for x in (score(lengths), -lengths, lengths)
    )
    matched = clustered_bootstrap(ours, n_resamples=200)
    rules = []
    for name, rule in (("shortest", shortest), ("longest", longest)):
        gap = paired_difference(ours, rule, n_resamples=200)
        rules.append(by_length(name, gap.low, gap.high, 0.001))
    row = cell(matched.value, matched.low, matched.high, metric="length_matched_auroc")

    assert matched.low > 0.6
    verdict = the("length", audit(primary(-0.1, 0.1), *rules, cells=[row]))
    assert verdict.answer == "may read length only"


def test_length_of_other_features_does_not_answer_for_reasoning():
    row = cell(0.7, 0.6, 0.8, metric="length_matched_auroc", features="full")

    assert found("length", audit(cells=[row])) == []


@pytest.mark.parametrize(
    ("low", "high", "answer"),
    [
        (0.47, 0.53, "within chance"),
        # .5255, error .0125: z = 2.04, which one mean of shuffled labels in 24 reaches by chance
        (0.501, 0.55, "within chance"),
        (0.45, 0.499, "within chance"),
        (0.52, 0.58, "leaks"),  # error .0153: z = 3.27, p = .001
        (0.42, 0.48, "leaks"),
        (NAN, NAN, "not checked"),
    ],
)
def test_shuffled_labels_must_lie_within_chance(low, high, answer):
    row = cell((low + high) / 2, low, high, features="shuffled", sweep="controls")

    assert the("sanity", audit(cells=[row])).answer == answer


def test_each_kind_of_head_is_checked_and_the_two_are_corrected_for():
    # error .0153, z = 2.61, p = .009: below .01 alone, not as one of two
    doubtful = cell(0.54, 0.51, 0.57, features="shuffled", sweep="controls")
    fine = cell(0.5, 0.47, 0.53, features="shuffled", sweep="controls", head="ridge")

    assert the("sanity", audit(cells=[doubtful])).answer == "leaks"
    both = the("sanity", audit(cells=[doubtful, fine]))
    assert both.answer == "within chance"
    assert "(logistic head)" in both.sentence
    assert "(ridge head)" in both.sentence


def test_a_leak_is_said_loudly_and_beside_every_primary_verdict():
    row = cell(0.6, 0.55, 0.65, features="shuffled", sweep="controls")
    tables = audit(primary(0.01, 0.02), economy(0.0, 0.02), cells=[row])
    sanity = the("sanity", tables)

    assert sanity.sentence.startswith("THE SET-UP LEAKS")
    assert ".600 [.550, .650]" in sanity.sentence
    for verdict in verdicts(tables)[:2]:
        assert verdict.sentence.endswith("so this cannot be trusted yet.")


def test_an_interval_that_leaves_chance_out_is_said_although_no_head_is_called_leaky():
    # Error .049 / 3.92 = .0125, z = .0255 / .0125 = 2.04, p = .041; twice that beside the other head.
    apart = cell(0.5255, 0.501, 0.55, features="shuffled", sweep="controls")
    fine = cell(0.5, 0.47, 0.53, features="shuffled", sweep="controls", head="ridge")
    found = the("sanity", audit(cells=[fine, apart]))

    assert found.answer == "within chance"
    told = "Yet the interval of the logistic head, .525 [.501, .550], excludes .500 (p = .083 after"
    assert told.replace(".525", format_number(0.5255)) in found.sentence
    assert "ridge head, " not in found.sentence.partition("Yet")[2]
    assert "Yet" not in the("sanity", audit(cells=[fine])).sentence


@pytest.mark.parametrize(("t", "answer"), [(3.45, "within chance"), (3.55, "leaks")])
def test_an_interval_over_shuffles_is_judged_by_students_t_over_so_many(t, answer):
    # Eight shuffles, 7 degrees of freedom: 95 % lie within 2.3646 errors, 99 % within 3.4995.
    row = cell(
        0.5 + 0.01 * t, 0.5 + 0.01 * (t - 2.3646), 0.5 + 0.01 * (t + 2.3646), sweep="controls"
    )
    row = replace(row, features="shuffled")
    facts = {**FACTS, "n_shuffles": {"ridge": 20, "logistic": 8}}

    assert the("sanity", audit(cells=[row], facts=facts)).answer == answer
    assert the("sanity", audit(cells=[row])).answer == "leaks"  # over prompts: normal


def test_as_many_draws_as_a_claim_needs_are_enough_and_one_less_is_too_few():
    enough = DRAWS_FOR_A_CLAIM
    for n_draws, answer in ((enough, "helps"), (enough - 1, "too few draws")):
        row = primary(0.01, 0.05, n_draws=n_draws, rank_p=1 / (1 + n_draws))
        assert the("specificity", audit(row)).answer == answer


def test_preference_pairs_of_like_length_are_judged_as_right_and_wrong_answers_are():
    metric = {"metric": "length_matched_pair_accuracy"}
    row = cell(0.65, 0.6, 0.7, **metric)
    rules = [
        contrast(0.1, 0.2, second=name, holm_p=0.01, **metric) for name in ("shortest", "longest")
    ]
    found = the("length", audit(primary(0.01, 0.02, metric="pair_accuracy"), *rules, cells=[row]))

    assert found.answer == "not length alone"
    assert found.sentence.startswith("Among preference pairs of like length (809 left)")


def test_shuffled_figures_without_a_chance_of_one_half_are_no_leak():
    row = cell(0.69, 0.68, 0.7, features="shuffled", sweep="controls", metric="log_loss")

    assert the("sanity", audit(cells=[row])).answer == "not checked"


# -------------------------------------------------------------------------------- interventions


# Nineteen draws, so that one further out than all of them has a rank p of .05.
def draws(low, high, **changes):
    return [drawn(low + (high - low) * (i / 18), draw=i, **changes) for i in range(19)]


RANDOM = tuple(draws(-0.03, -0.02))


@pytest.mark.parametrize(
    ("low", "high", "changes", "answer"),
    [
        (-0.06, -0.04, {}, "costs more than random"),
        (0.02, 0.04, {}, "costs less than random"),
        (-0.06, 0.0, {}, "no evidence"),  # touching 0 does not exclude it
        (0.0, 0.04, {}, "no evidence"),
        (-0.06, -0.04, {"random_holm_p": 0.05}, "no evidence"),
        (-0.06, -0.04, {"random_holm_p": NAN}, "no evidence"),
        (-0.06, -0.04, {"random_p": 0.9}, "costs more than random"),  # the corrected one counts
        (-0.06, -0.04, {"difference": -0.025}, "no evidence"),  # inside the draws
        (-0.06, -0.04, {"difference": -0.03}, "no evidence"),  # no further than one draw: 2 / 20
        (0.02, 0.04, {"difference": -0.02}, "no evidence"),
        (NAN, NAN, {}, "no evidence"),
    ],
)
def test_use_rests_on_the_comparison_with_random_directions(low, high, changes, answer):
    rows = [removal("reasoning", low, high, **changes), *RANDOM]

    assert the("use", audit(interventions=rows)).answer == answer


def test_eighteen_random_draws_are_too_few_for_any_claim_about_use():
    rows = [removal("reasoning", -0.6, -0.4), *RANDOM[:18]]
    verdict = the("use", audit(interventions=rows))

    assert verdict.answer == "too few draws"
    assert verdict.sentence.endswith("A claim needs 19 random draws or more.")


def test_places_with_too_few_draws_are_told_apart_from_those_with_enough():
    few = {"layers": "last"}
    rows = [
        *(removal("reasoning", -0.06, -0.04), *RANDOM),
        *(removal("reasoning", -0.6, -0.4, **few), drawn(-0.02, **few)),
    ]
    verdict = the("use", audit(interventions=rows))

    assert verdict.answer == "costs more than random"
    assert "too few random draws to tell in log-probability (nats a token) at last" in (
        verdict.sentence
    )


@quick
@given(ends, st.floats(0, 0.1))
def test_use_is_never_stronger_than_its_interval_and_holm_allow(interval, holm_p):
    low, high = interval
    rows = [removal("reasoning", low, high, random_holm_p=holm_p), *RANDOM]
    answer = the("use", audit(interventions=rows)).answer

    if answer != "no evidence":
        assert holm_p < 0.05
        assert (answer == "costs more than random") == (high < 0)
        assert (answer == "costs less than random") == (low > 0)


def energies(own, random, matched=()):
    energy = {"measure": "energy_removed"}
    return [
        removal("reasoning", NAN, NAN, **energy, value=own),
        *(drawn(NAN, **energy, value=v, draw=i) for i, v in enumerate(random)),
        *(
            drawn(NAN, "random_energy", **energy, value=v, draw=i, m=m)
            for i, (m, v) in enumerate(matched)
        ),
    ]


def test_the_sentence_of_use_holds_both_effects_the_energies_and_the_matched_control():
    rows = [
        removal("reasoning", -0.06, -0.04, difference=-0.075),
        *RANDOM,
        *energies(0.4, (0.04, 0.06), [(200, 0.41), (220, 0.39), (90, 0.2)]),
        drawn(-0.08, "random_energy", m=200),
        drawn(-0.07, "random_energy", m=220, draw=1),
        drawn(-0.9, "random_energy", m=90, draw=2),  # missed its aim: half the energy
    ]
    sentence = the("use", audit(interventions=rows)).sentence

    assert sentence == (
        "Removing the reasoning component (its mean put back) hurts more than removing random "
        "directions of the same number, in log-probability (nats a token) at 10-20 (m = 29) by "
        "-.050 [-.060, -.040] (changes by -.075, with 19 random draws by -.030 to -.020; Holm p = "
        ".010; energy removed .400 against .050; 200 to 220 random directions of equal energy change "
        "it by -.080 to -.070)."
    )


def test_measures_are_told_apart_and_only_those_of_which_more_is_better_count():
    accuracy, agreement, shift = (
        {"measure": name} for name in ("accuracy", "greedy_agreement", "score_shift")
    )
    rows = [
        *(removal("reasoning", -0.06, -0.04), *RANDOM),
        *(removal("reasoning", 0.02, 0.04, **accuracy), *draws(-0.02, -0.01, **accuracy)),
        *(removal("reasoning", -0.02, 0.04, **agreement), *draws(-0.02, -0.01, **agreement)),
        *(removal("reasoning", 0.2, 0.4, **shift), drawn(0.01, **shift)),
    ]
    verdict = the("use", audit(interventions=rows))

    assert verdict.answer == "mixed"
    more, less, unsure = (
        verdict.sentence.split("; hurts less")[0],
        *verdict.sentence.split("; hurts less")[1].split("; no evidence of a difference in"),
    )
    assert "log-probability" in more
    assert "accuracy of new answers" in less
    assert "likeliest token stays the same" in unsure
    assert "shift" not in verdict.sentence


def test_no_evidence_is_worded_as_such_and_shows_its_figures():
    rows = [removal("reasoning", -0.03, 0.01), *RANDOM]
    sentence = the("use", audit(interventions=rows)).sentence

    assert sentence.startswith(
        "No evidence that removing the reasoning component (its mean put back) hurts more or less "
        "than removing random directions of the same number: the two differ in log-probability"
    )
    assert "-.010 [-.030, .010]" in sentence


def test_the_fill_by_the_mean_is_preferred_where_both_are_there():
    zero = {"fill": "zero"}
    zeros = [removal("reasoning", -0.6, -0.4, **zero), *draws(-0.03, -0.02, **zero)]
    means = [removal("reasoning", -0.03, 0.01), *RANDOM]

    both = the("use", audit(interventions=[*zeros, *means]))
    assert both.answer == "no evidence"
    assert "component (its mean put back)" in both.sentence
    assert "zero" not in both.sentence
    alone = the("use", audit(interventions=zeros))
    assert alone.answer == "costs more than random"
    assert "component (set to zero)" in alone.sentence


def test_each_place_names_its_fill_where_they_differ():
    other = {"fill": "zero", "layers": "last", "point": "residual"}
    rows = [
        *(removal("reasoning", -0.03, 0.01), *RANDOM),
        *(removal("reasoning", -0.03, 0.01, **other), *draws(-0.03, -0.02, **other)),
    ]
    sentence = the("use", audit(interventions=rows)).sentence

    assert "at 10-20 (m = 29, its mean put back)" in sentence
    assert "at last (m = 29, set to zero)" in sentence
    assert "the reasoning component hurts" in sentence


@pytest.mark.parametrize(
    "other", [{"layers": "last"}, {"m": 64}, {"spare_first": True}, {"fill": "zero"}]
)
def test_removals_are_compared_with_random_ones_at_their_own_place_only(other):
    # A draw elsewhere that hurts far more is no opponent.
    rows = [removal("reasoning", -0.06, -0.04), *RANDOM, drawn(-0.9, **other)]

    assert the("use", audit(interventions=rows)).answer == "costs more than random"


def test_a_spared_first_token_is_told():
    spared = {"spare_first": True}
    rows = [removal("reasoning", -0.06, -0.04, **spared), *draws(-0.03, -0.02, **spared)]

    assert "m = 29, first token left alone" in the("use", audit(interventions=rows)).sentence


def test_a_random_component_of_another_width_is_no_comparison():
    rows = [removal("reasoning", NAN, NAN), drawn(0.0, m=64)]
    verdict = the("use", audit(interventions=rows))

    assert verdict.answer == "no evidence"
    assert "no random one of the same width" in verdict.sentence


def test_no_removal_of_the_reasoning_component_makes_no_verdict():
    assert found("use", audit(interventions=RANDOM)) == []
