"""Probabilities from margins: reliability, and a temperature that never sees what it is applied to."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from score_files import file, pairs, row

from retrm.data.split import prompt_folds
from retrm.errors import DataError
from retrm.evaluation.calibration import calibration, inverse_temperature
from retrm.metrics import brier, expected_calibration_error, log_loss

# No closer to one half than rounding: a pair and its reverse lie in opposite bins.
numbers = st.integers(-4000, 4000).map(lambda x: x / 1000)


def logit(p):
    return math.log(p / (1 - p))


def both_orders(margins):
    """Each pair in both orders: what the plain metrics of probabilities see."""
    margins = np.asarray(margins)
    return np.concatenate([margins, -margins]), np.repeat([1, 0], len(margins))


def test_a_worked_example_of_two_bins():
    # P = .6 four times, right in 3 (.75); P = .9 twice, right in 1 (.5).
    # ECE = (4 |.6 - .75| + 2 |.9 - .5|) / 6 = 1.4 / 6
    # Brier = (3 .4^2 + .6^2 + .1^2 + .9^2) / 6 = (.48 + .36 + .01 + .81) / 6
    low, high = logit(0.6), logit(0.9)
    found = calibration(pairs("a", [low, low, low, -low, high, -high])).before

    assert found.ece.value == pytest.approx(1.4 / 6)
    assert found.brier.value == pytest.approx(1.66 / 6)
    loss = -(3 * math.log(0.6) + math.log(0.4) + math.log(0.9) + math.log(0.1)) / 6
    assert found.log_loss.value == pytest.approx(loss)
    first, second = found.bins
    assert (first.n, first.probability, first.share.value) == pytest.approx((4, 0.6, 0.75))
    assert (second.n, second.probability, second.share.value) == pytest.approx((2, 0.9, 0.5))
    assert first.low <= 0.6 <= first.high
    assert second.low <= 0.9 <= second.high


@settings(max_examples=30, deadline=None)
@given(st.lists(numbers, min_size=2, max_size=30), st.integers(1, 12))
def test_figures_are_the_plain_ones_on_both_orders_of_every_pair(margins, n_bins):
    found = calibration(pairs("a", margins), n_bins=n_bins, n_resamples=60).before
    scores, labels = both_orders(margins)

    assert found.brier.value == pytest.approx(brier(scores, labels), abs=1e-12)
    assert found.log_loss.value == pytest.approx(log_loss(scores, labels), abs=1e-12)
    ece = expected_calibration_error(scores, labels, n_bins=2 * n_bins)
    assert found.ece.value == pytest.approx(ece, abs=1e-12)
    assert sum(b.n for b in found.bins) == len(margins)


def test_equal_scores_are_one_half_in_probability_and_outcome():
    found = calibration(pairs("a", [0.0, 0.0]))
    (only,) = found.before.bins
    assert (only.probability, only.share.value) == (0.5, 0.5)
    assert found.before.ece.value == 0
    assert found.before.brier.value == 0.25
    assert found.before.log_loss.value == pytest.approx(math.log(2))
    assert found.n_ties == 2


def test_scores_in_the_wrong_unit_are_mended_by_the_temperature():
    """Margins are ten times the log odds by which they were drawn."""
    rng = np.random.default_rng(0)
    true = np.abs(rng.normal(0, 1.5, 4000))
    won = rng.random(4000) < 1 / (1 + np.exp(-true))
    found = calibration(pairs("loud", 10 * np.where(won, true, -true)), n_resamples=100)

    assert found.inverse_temperatures == pytest.approx((0.1, 0.1), rel=0.15)
    assert found.before.ece.low > 0.15
    assert found.after.ece.value < 0.03
    assert found.after.log_loss.high < found.before.log_loss.low
    for one in found.after.bins:
        assert abs(one.share.value - one.probability) < 0.1


def test_scale_of_scores_changes_nothing_after_the_temperature():
    rng = np.random.default_rng(1)
    margins = rng.normal(0.5, 1, 300)
    one, other = (calibration(pairs("a", k * margins), n_resamples=50).after for k in (1, 1000))
    assert one.brier.value == pytest.approx(other.brier.value, abs=1e-9)
    assert one.ece.value == pytest.approx(other.ece.value, abs=1e-9)


def test_no_pair_is_judged_by_a_temperature_that_saw_its_cluster():
    """Turning one cluster's margins round changes the probabilities of the other half only."""
    rng = np.random.default_rng(2)
    margins = np.round(rng.normal(0.4, 1, 60), 3)
    clusters = [f"q{i // 2}" for i in range(60)]
    whole = calibration(pairs("a", margins, clusters=clusters), n_resamples=3)
    turned = margins.copy()
    turned[:2] *= -7
    other = calibration(pairs("a", turned, clusters=clusters), n_resamples=3)
    same = [
        a == b for a, b in zip(whole.inverse_temperatures, other.inverse_temperatures, strict=True)
    ]
    assert sorted(same) == [False, True]


@settings(max_examples=40, deadline=None)
@given(st.lists(numbers, min_size=2, max_size=20))
def test_the_temperature_minimises_log_loss(margins):
    b = inverse_temperature(margins)

    def loss(slope):
        return float(np.logaddexp(0, -slope * np.array(margins)).mean())

    if not any(margins):
        assert b == 0
        return
    size = float(np.sqrt(np.mean(np.square(margins))))
    found = minimize_scalar(loss, bounds=(0, 1000 / size), method="bounded")
    assert loss(b) <= found.fun + 1e-7


def test_margins_that_point_the_wrong_way_get_no_opinion():
    found = calibration(pairs("a", [-1.0, -2.0, 0.5, -1.0]))
    assert found.inverse_temperatures == (0, 0)
    assert found.after.brier.value == 0.25


def test_margins_that_are_all_right_stay_finite():
    found = calibration(pairs("a", [1.0, 2.0, 3.0, 4.0]))
    assert found.after.log_loss.value == pytest.approx(0, abs=1e-9)
    json.dumps(found.as_dict(), allow_nan=False)


def test_one_prompt_has_no_other_half():
    with pytest.raises(DataError, match="1 prompt"):
        calibration(pairs("a", [1.0, 2.0], clusters=["p", "p"]))


def test_no_bins_are_refused():
    with pytest.raises(DataError, match="n_bins = 0"):
        calibration(pairs("a", [1.0, 2.0]), n_bins=0)


def test_steps_have_no_margins():
    facts = {"label": -1, "final_answer_correct": True}
    scores = file("a", [row("gsm8k-0", [1, 2], subset="gsm8k", facts=facts)], "process_bench")
    with pytest.raises(DataError, match="has a preference pair"):
        calibration(scores)


def test_each_half_is_scaled_by_the_temperature_of_the_other():
    """Margins of one half are all right; those of the other are mostly wrong, so its slope is 0.

    Crossed, the half that is right gets slope 0 (probability 1/2, Brier 1/4) and the wrong half the
    steep slope (three of four lost for sure, Brier 3/4): 1/2 in all. With its own slope each would
    have Brier 0 and 1/4: 1/8 in all.
    """
    clusters = [f"q{i // 4}" for i in range(80)]
    half = prompt_folds(clusters, 2, 0)
    assert 0 < half.sum() < len(half)
    # Within each cluster of half 1, one of four margins is right.
    margins = np.where(half == 0, 1.0, np.where(np.arange(80) % 4 == 0, 1.0, -1.0))
    found = calibration(pairs("a", margins, clusters=clusters), n_resamples=3)

    assert found.inverse_temperatures[0] > 100
    assert found.inverse_temperatures[1] == 0
    n_right = int((half == 0).sum())
    wanted = (0.25 * n_right + 0.75 * (80 - n_right)) / 80
    assert found.after.brier.value == pytest.approx(wanted)


def of_halves(*patterns, n_clusters=80):
    """One pair a prompt; the margins of each half of the prompts repeat a pattern."""
    clusters = [f"q{i}" for i in range(n_clusters)]
    half = prompt_folds(clusters, 2, 0)
    margins = np.zeros(n_clusters)
    for h, pattern in enumerate(patterns):
        margins[half == h] = np.resize(pattern, int((half == h).sum()))
    return calibration(pairs("a", margins), n_resamples=20)


SOUND, REVERSED, FLAWLESS = (1.0, 1.0, -0.5), (-1.0, -1.0, 0.5), (1.0, 2.0)


@pytest.mark.parametrize(
    ("patterns", "n_clusters", "words"),
    [
        ((SOUND, SOUND), 80, ""),
        ((SOUND, SOUND), 20, ""),
        ((SOUND, SOUND), 19, "19 prompts with pairs are too few for one, it takes 20"),
        ((SOUND, REVERSED), 80, "in one half of the prompts the margins tell nothing"),
        ((REVERSED, REVERSED), 80, "in both halves of the prompts the margins tell nothing"),
        ((FLAWLESS, SOUND), 80, "in one half of the prompts no pair is lost"),
    ],
)
def test_where_no_temperature_can_be_had_it_is_said(patterns, n_clusters, words):
    found = of_halves(*patterns, n_clusters=n_clusters)
    assert found.no_temperature.startswith(words)
    assert bool(found.no_temperature) == bool(words)


def test_figures_without_a_temperature_are_not_shown():
    """Their ECE is 0, as of a scorer whose probabilities are all true."""
    from retrm.evaluation.findings import Findings
    from retrm.reports.evaluation_figures import reliability_figure
    from retrm.reports.evaluation_panels import panels_html

    shown = {}
    for name, pattern in (("sound", SOUND), ("none", REVERSED)):
        found = of_halves(pattern, pattern)
        one = Findings("hh_rlhf", name, calibration=found)
        axes = reliability_figure([one]).axes[0]
        shown[name] = (panels_html([one]), len(axes.get_lines()))
        assert [text.get_text() for text in axes.figure.legends[0].get_texts()] == [name]
    page, n_lines = shown["none"]
    assert of_halves(REVERSED, REVERSED).after.ece.value == 0
    assert "no temperature: in both halves of the prompts the margins tell nothing" in page
    assert "after T" not in page
    assert page.count("<td>–</td>") == 3
    assert "after T = " in shown["sound"][0]
    assert shown["sound"][1] == n_lines + 1
