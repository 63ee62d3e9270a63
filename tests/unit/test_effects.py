"""Effects are paired with the unchanged model and with random subspaces in the same resamples."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from audit_toy import removal
from scipy import stats

from retrm.audit.effects import Effects, Outcome, corrected_interventions
from retrm.audit.removal import Change, Intervention
from retrm.audit.tables import AuditTables
from retrm.audit.verdict import verdicts
from retrm.features.subspace import Subspace
from retrm.records import Answer, AnswerTable

TABLE = AnswerTable(tuple(Answer.of(f"{q}?", "Yes.") for q in "ab"), np.full(2, np.nan))


def measured(*log_probability: float, energy: float = 0.0) -> Outcome:
    ones = np.ones(2, dtype=int)
    log_p = np.array(log_probability)
    return Outcome(log_p, ones, ones, np.full(2, energy), scores=None, correct=None)


def setting(removed: str, *, m: int = 2, draw: int = 0, text: str = "1") -> Intervention:
    basis = Subspace(torch.eye(4)[:m], torch.ones(4), "residual", removed, 4)
    return Intervention(text, (1,), removed, draw, Change(basis, {}))


def rows(*found, reference=None):
    reference = reference or measured(-1.0, -2.0)
    effects = Effects(TABLE, (), reference, "mean", False, n_resamples=20_000)
    made = corrected_interventions(effects.rows(found))
    return {(r.removed, r.m, r.draw): r for r in made if r.measure == "log_probability"}


REASONING = (setting("reasoning"), measured(-2.0, -4.0))
RANDOM = (
    (setting("random"), measured(-1.5, -2.5)),
    (setting("random", draw=1), measured(-2.5, -2.5)),
)


def test_minus_random_is_paired_by_prompt():
    found = rows(REASONING, *RANDOM)["reasoning", 2, 0]

    # Nothing removed: -1.5. Reasoning: -3, so its effect is -1.5. Random: -2 and -2.5, effects -.5
    # and -1, mean -.75. The one minus the other: -.75.
    assert (found.value, found.difference) == (-3.0, -1.5)
    assert found.minus_random == pytest.approx(-0.75, abs=1e-12)
    # By prompt: a -2 - (-2) = 0; b -4 - (-2.5) = -1.5. A resample holds a twice (0), each once
    # (-.75) or b twice (-1.5), with chances 1/4, 1/2, 1/4.
    assert (found.minus_random_low, found.minus_random_high) == (-1.5, 0.0)
    # Error over prompts: variance 1/2 x .75^2 = .28125. The two draws lie .5 apart: variance .125,
    # times 1 + 1/2 = .1875, one degree of freedom. t = -.75 / sqrt(.46875) = -1.0954 with
    # .46875^2 / .1875^2 = 6.25 degrees of freedom: two-sided p = .314.
    assert found.random_p == pytest.approx(2 * stats.t.sf(1.0954, 6.25), rel=0.02)
    assert found.rank_p == 1.0  # both draws leave more
    assert found.random_holm_p == 2 * found.random_p  # beside greedy agreement, whose p is 1


def test_random_subspaces_of_another_size_or_at_other_layers_take_no_part():
    others = (
        (setting("random", m=3), measured(-9.0, -9.0)),
        (setting("random_energy", draw=7), measured(-9.0, -9.0)),
        (setting("random", text="2", draw=5), measured(-9.0, -9.0)),
    )
    found = rows(REASONING, *RANDOM, *others)["reasoning", 2, 0]
    alone = rows(REASONING, others[0])["reasoning", 2, 0]

    assert found.minus_random == pytest.approx(-0.75, abs=1e-12)
    assert math.isnan(alone.minus_random)
    assert math.isnan(alone.random_p)


def test_random_kinds_and_the_unchanged_model_are_compared_with_no_random_one():
    energy = (setting("random_energy", m=3), measured(-2.0, -2.0))
    found = rows(REASONING, *RANDOM, energy)

    for key in (("none", 0, 0), ("random", 2, 0), ("random", 2, 1), ("random_energy", 3, 0)):
        row = found[key]
        assert np.isnan([row.minus_random, row.minus_random_low, row.random_p, row.rank_p]).all()
        assert math.isnan(row.difference) == (key[0] == "none")


def test_one_prompt_proves_nothing():
    one = AnswerTable(TABLE.answers[:1], np.full(1, np.nan))
    ones = np.ones(1, dtype=int)
    single = [
        Outcome(np.array([p]), ones, ones, np.zeros(1), None, None) for p in (-1.0, -5.0, -2.0)
    ]
    effects = Effects(one, (), single[0], "zero", False, n_resamples=50)
    made = effects.rows([(setting("reasoning"), single[1]), (setting("random"), single[2])])

    (row,) = [r for r in made if (r.removed, r.measure) == ("reasoning", "log_probability")]
    assert row.minus_random == -3.0
    assert math.isnan(row.random_p)


def test_one_draw_has_no_spread_and_makes_no_claim():
    row = rows(REASONING, RANDOM[0])["reasoning", 2, 0]

    assert row.minus_random == -1.0
    assert row.rank_p == 1.0
    assert math.isnan(row.random_p)


def exchangeable(rng: np.random.Generator, n_draws: int):
    """A reasoning subspace that is one more random one: effects of subspaces differ, prompts too."""
    effect = rng.normal(size=n_draws + 1)
    log_p = effect[:, None] + 0.3 * rng.normal(size=(n_draws + 1, 2))
    found = [(setting("reasoning"), measured(*log_p[0]))]
    found += [(setting("random", draw=i), measured(*log_p[i + 1])) for i in range(n_draws)]
    effects = Effects(TABLE, (), measured(0.0, 0.0), "mean", False, n_resamples=50)
    return AuditTables(facts={}, interventions=corrected_interventions(effects.rows(found)))


@pytest.mark.parametrize(("n_draws", "n_audits"), [(20, 60), (3, 60)])
def test_a_subspace_that_is_one_more_random_one_is_hardly_ever_claimed_to_differ(n_draws, n_audits):
    rng = np.random.default_rng(1)
    answers = Counter(
        next(v.answer for v in verdicts(exchangeable(rng, n_draws)) if v.question == "use")
        for _ in range(n_audits)
    )

    # With the interval and "beyond every draw" alone, three draws were claimed to differ half the time.
    if n_draws == 3:
        assert answers == {"too few draws": n_audits}
    else:
        # At most 5 % are expected; 8 of 60 is over three standard errors more.
        assert n_audits - answers["no evidence"] < 8


def test_removed_energy_has_a_difference_and_makes_no_claim():
    effects = Effects(TABLE, (), measured(-1.0, -2.0), "zero", False, n_resamples=50)
    made = effects.rows(
        [
            (setting("reasoning"), measured(-1.0, -2.0, energy=0.5)),
            (setting("random"), measured(-1.0, -2.0, energy=0.1)),
        ]
    )

    (row,) = [r for r in made if (r.removed, r.measure) == ("reasoning", "energy_removed")]
    assert row.minus_random == pytest.approx(0.4)
    assert np.isnan([row.random_p, row.rank_p]).all()


def test_holm_corrects_over_all_rows_that_are_given_and_leaves_the_plain_p_values():
    p_values = [0.01, 0.04, math.nan, 0.03]
    given = [removal("1", "reasoning", 0, "accuracy", 0.5, random_p=p) for p in p_values]
    found = corrected_interventions(given)

    # Sorted .01 x 3 = .03, .03 x 2 = .06, .04 x 1 = .04, at least the one before: .06.
    assert [row.random_holm_p for row in found] == pytest.approx(
        [0.03, 0.06, math.nan, 0.06], nan_ok=True
    )
    assert [row.random_p for row in found] == pytest.approx(p_values, nan_ok=True)
    assert corrected_interventions(found[:1])[0].random_holm_p == 0.01
