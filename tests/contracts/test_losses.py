"""What every entry of LOSSES must do, whatever its formula."""

import math

import pytest
import torch

from retrm.errors import LabelError, ScoreError, ShapeError
from retrm.losses import LOSSES

NAMES = list(LOSSES)
LABELLED = [name for name in NAMES if LOSSES[name].needs != "pairs"]
PER_PROMPT = [name for name in NAMES if LOSSES[name].needs == "groups"]
SCORES = [0.9, -0.4, 0.2, 1.4, -1.3, 0.6, 0.05, -0.8]
LABELS = [1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0]
GROUPS = [0, 0, 0, 1, 1, 2, 2, 2]


def value(name, scores, labels=None, groups=None):
    """Any loss on rows; for pairs the first half is chosen, the second rejected."""
    spec = LOSSES[name]
    if spec.needs == "pairs":
        half = len(scores) // 2
        return spec.function(scores[:half], scores[half:])
    labels = torch.tensor(LABELS, dtype=scores.dtype) if labels is None else labels
    groups = torch.tensor(GROUPS) if groups is None else groups
    arguments = (scores, labels) if spec.needs == "labels" else (scores, labels, groups)
    return spec.function(*arguments)


def rows(dtype=torch.float64):
    return torch.tensor(SCORES, dtype=dtype)


@pytest.mark.parametrize("name", NAMES)
def test_value_is_a_finite_scalar_in_the_dtype_of_the_scores(name):
    for dtype in (torch.float32, torch.float64):
        loss = value(name, rows(dtype))
        assert loss.shape == ()
        assert loss.dtype == dtype
        assert math.isfinite(loss.item())
        assert loss.item() > 0


@pytest.mark.parametrize("name", NAMES)
def test_gradient_agrees_with_finite_differences(name):
    assert torch.autograd.gradcheck(lambda s: value(name, s), rows().requires_grad_())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_extreme_scores_give_finite_values_and_gradients_in_float32(name, sign):
    scores = (sign * 1e4 * torch.sign(rows(torch.float32))).requires_grad_()
    loss = value(name, scores)
    loss.backward()
    assert math.isfinite(loss.item())
    assert torch.isfinite(scores.grad).all()


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_raised_for_the_right_and_lowered_for_the_wrong(name):
    scores = torch.zeros(8, dtype=torch.float64, requires_grad=True)
    value(name, scores).backward()
    right = torch.arange(8) < 4 if LOSSES[name].needs == "pairs" else torch.tensor(LABELS) == 1
    assert (scores.grad[right] < 0).all()
    assert (scores.grad[~right] > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_shift_per_prompt_changes_nothing_exactly_where_scores_have_no_zero(name):
    shift = torch.tensor([3.0, -2.0, 5.0], dtype=torch.float64)[torch.tensor(GROUPS)]
    if LOSSES[name].needs == "pairs":
        shift = torch.full((8,), 3.0, dtype=torch.float64)
    is_unmoved = abs((value(name, rows() + shift) - value(name, rows())).item()) < 1e-12
    assert is_unmoved == (name in ("bradley_terry", "pairwise_logistic", "infonca"))


@pytest.mark.parametrize("name", LABELLED)
def test_the_order_of_rows_does_not_matter(name):
    order = torch.tensor([5, 2, 7, 0, 3, 6, 1, 4])
    shuffled = value(
        name, rows()[order], torch.tensor(LABELS)[order].double(), torch.tensor(GROUPS)[order]
    )
    assert shuffled.item() == pytest.approx(value(name, rows()).item(), abs=1e-12)


@pytest.mark.parametrize("name", PER_PROMPT)
def test_prompts_may_carry_any_numbers(name):
    renamed = torch.tensor([900, -4, 17])[torch.tensor(GROUPS)]
    assert value(name, rows(), groups=renamed).item() == pytest.approx(value(name, rows()).item())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused_with_their_position(name, bad):
    scores = rows()
    scores[2] = bad
    with pytest.raises(ScoreError, match="at position 2"):
        value(name, scores)


@pytest.mark.parametrize("name", LABELLED)
def test_missing_labels_are_refused_with_their_position(name):
    labels = torch.tensor(LABELS, dtype=torch.float64)
    labels[3] = math.nan
    with pytest.raises(LabelError, match="nan at position 3"):
        value(name, rows(), labels)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch_is_refused(name):
    with pytest.raises(ShapeError, match="expected one number a candidate"):
        value(name, rows()[:0], torch.zeros(0), torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize("name", LABELLED)
def test_labels_of_another_number_are_refused(name):
    with pytest.raises(ShapeError, match=r"got \(7,\) labels for \(8,\) scores"):
        value(name, rows(), torch.tensor(LABELS[:7]))


def test_only_cross_entropy_has_a_probability_reading():
    assert [name for name in NAMES if LOSSES[name].has_probability] == ["bce"]


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_is_documented(name):
    assert LOSSES[name].doc
    assert LOSSES[name].function.__doc__
    assert LOSSES[name].function.__name__ == name
