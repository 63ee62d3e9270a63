"""Scores less their length curve: hand numbers, no extrapolation, stored with what they belong to."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrm.errors import ArtifactError, FitError, RecipeError, ScoreError
from retrm.records import Answer
from retrm.scorers.base import LimitedScorer
from retrm.scorers.baseline import LengthScorer, RandomScorer
from retrm.scorers.length_calibrated import LengthCalibratedScorer, LengthCurve
from retrm.scorers.open import open_scorer


def answers_of(lengths):
    return [Answer.of(f"q{i}", "x" * int(n)) for i, n in enumerate(lengths)]


class Says:
    name = "says"

    def __init__(self, scores):
        self._scores = np.asarray(scores, dtype=float)

    def score(self, answers):
        return self._scores[: len(answers)]


def test_a_straight_line_gives_the_residuals_worked_out_by_hand():
    # Slope 130 / 50,000 = 0.0026, intercept 0.5 - 0.0026 x 250 = -0.15.
    lengths, scores = [100, 200, 300, 400], [0.1, 0.5, 0.4, 1.0]
    curve = LengthCurve.fit(lengths, scores, shape="linear")

    assert curve.at([0.0, 100, 250, 400]).tolist() == pytest.approx([0.11, 0.11, 0.5, 0.89])
    scorer = LengthCalibratedScorer(Says(scores), curve)
    assert scorer.score(answers_of(lengths)).tolist() == pytest.approx([-0.01, 0.13, -0.23, 0.11])
    assert isinstance(scorer, LimitedScorer)


def test_beyond_the_reference_set_the_curve_stays_where_it_ended():
    curve = LengthCurve.fit([100, 200, 300, 400], [0.1, 0.5, 0.4, 1.0], shape="linear")
    far = [1, 99, 100, 400, 401, 10**6]

    assert curve.at(far).tolist() == pytest.approx([0.11, 0.11, 0.11, 0.89, 0.89, 0.89])
    assert curve.n_outside(far) == 4


def planted(n=800, seed=0):
    """Scores that grow as the root of the length, and quality that has nothing to do with it."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, 900, size=n)
    quality = rng.normal(size=n)
    return lengths, quality, quality + 0.4 * np.sqrt(lengths)


def test_a_smooth_curve_takes_a_bent_bias_out_and_leaves_the_quality():
    lengths, quality, scores = planted()
    smooth = scores - LengthCurve.fit(lengths, scores).at(lengths)
    straight = scores - LengthCurve.fit(lengths, scores, shape="linear").at(lengths)

    assert np.corrcoef(scores, quality)[0, 1] < 0.5
    assert np.corrcoef(smooth, quality)[0, 1] > 0.98
    assert abs(np.corrcoef(smooth, lengths)[0, 1]) < 0.05
    # What a line leaves of the bend, among short answers.
    short = lengths < 80
    assert abs(np.corrcoef(smooth[short], lengths[short])[0, 1]) < abs(
        np.corrcoef(straight[short], lengths[short])[0, 1]
    )


def test_it_holds_on_answers_that_the_curve_has_not_seen():
    lengths, _, scores = planted()
    curve = LengthCurve.fit(lengths[:400], scores[:400])
    rest = scores[400:] - curve.at(lengths[400:])
    assert abs(np.corrcoef(rest, lengths[400:])[0, 1]) < 0.1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9999), st.sampled_from(["smooth", "linear"]))
def test_scores_that_are_a_line_in_length_leave_nothing(seed, shape):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 40, size=60)
    lengths[:2] = 1, 39
    a, b = rng.normal(size=2)
    scores = a + b * lengths
    curve = LengthCurve.fit(lengths, scores, shape=shape)

    assert curve.at(lengths) == pytest.approx(scores, abs=1e-6)
    # Adding a line to any scores changes their residuals by nothing.
    noise = rng.normal(size=60)
    plain = noise - LengthCurve.fit(lengths, noise, shape=shape).at(lengths)
    bent = noise + scores
    assert bent - LengthCurve.fit(lengths, bent, shape=shape).at(lengths) == pytest.approx(
        plain, abs=1e-6
    )


def test_half_the_answers_of_one_length_are_no_trouble():
    lengths = [50] * 40 + list(range(1, 21))
    curve = LengthCurve.fit(lengths, [1.0] * 40 + [0.0] * 20)
    assert np.isfinite(curve.values).all()
    assert float(curve.at([50])[0]) == pytest.approx(1.0, abs=1e-6)


def test_a_stored_curve_opens_as_itself_around_the_scorer_that_it_was_fitted_on(tmp_path):
    answers = answers_of(range(1, 61))
    made = LengthCalibratedScorer.fit(LengthScorer(prefers="longest"), answers)
    made.save(tmp_path / "c.json", "longest", source="sixty")

    again = open_scorer(f"calibrated:{tmp_path / 'c.json'}")

    assert again.curve == made.curve
    assert again.identity == made.identity
    assert again.score(answers) == pytest.approx(np.zeros(60), abs=1e-6)
    stored = json.loads((tmp_path / "c.json").read_text())
    assert (stored["n_answers"], stored["unit"], stored["source"]) == (60, "characters", "sixty")


def test_another_scorer_or_another_file_is_refused(tmp_path):
    answers = answers_of(range(1, 61))
    path = tmp_path / "c.json"
    LengthCalibratedScorer.fit(RandomScorer(), answers).save(path, "longest")
    with pytest.raises(ArtifactError, match="length curve of another longest: identity longest"):
        open_scorer(f"calibrated:{path}")
    with pytest.raises(ArtifactError, match="there is no file"):
        open_scorer(f"calibrated:{tmp_path / 'none.json'}")
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(ArtifactError, match="of version 2; this retrm reads"):
        open_scorer(f"calibrated:{path}")
    path.write_text("[]")
    with pytest.raises(ArtifactError, match="is damaged"):
        open_scorer(f"calibrated:{path}")


@pytest.mark.parametrize(
    ("lengths", "scores", "shape", "error", "message"),
    [
        ([1, 2], [1.0, 2.0], "linear", FitError, "got 2 answers of 2 different lengths"),
        ([5, 5, 5], [1.0, 2.0, 3.0], "linear", FitError, "of 1 different lengths"),
        (range(9), range(9), "smooth", FitError, "at least 30 answers.*or use --shape linear"),
        ([1, 2, 3], [1.0, 2.0], "linear", ScoreError, r"got \(3,\) lengths and \(2,\) scores"),
        ([1, 2, 3], [1.0, np.nan, 2.0], "linear", ScoreError, "one finite number each"),
        ([1, 2, 3], [1.0, 2.0, 3.0], "lowess", RecipeError, "expected one of smooth, linear"),
    ],
)
def test_reference_sets_that_show_no_curve_are_refused(lengths, scores, shape, error, message):
    with pytest.raises(error, match=message):
        LengthCurve.fit(lengths, scores, shape=shape)
