"""The subspaces of an LM head, by hand and against a plain SVD."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrm.backbone.base import Unembedding
from retrm.errors import RecipeError, ShapeError
from retrm.features.norm_folding import dead_direction, effective_rows, normalised
from retrm.features.subspace import (
    Subspace,
    SubspaceFitter,
    SubspaceSpec,
    fit_spectrum,
    fit_subspace,
)

# The worked example of the ReTRM spec: s = (70, 7), v_1 = (.6, .8), tail (-.8, .6) up to sign.
WORKED = torch.tensor([[9.6, 17.8], [22.8, 20.4], [34.4, 49.2]], dtype=torch.float64)


def head(weight, *, gain=None, kind="rms", eps=0.0, bias=None):
    return Unembedding(weight, None, gain, bias, kind, eps)


def random_matrix(rows, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64)


def test_worked_example_gives_singular_values_70_and_7_and_the_tail_minus8_6():
    tail = fit_spectrum(head(WORKED), "post_norm").subspace("reasoning", 1)

    assert tail.singular_values.tolist() == pytest.approx([70, 7], abs=1e-4)
    # The sign is fixed by making the largest component positive: (.8, -.6).
    assert tail.basis.flatten().tolist() == pytest.approx([0.8, -0.6], abs=1e-6)


def test_worked_state_has_tail_coefficient_one_and_its_removal_moves_logits_by_seven():
    tail = fit_spectrum(head(WORKED), "post_norm").subspace("reasoning", 1)
    h = torch.tensor([2.0, 1.0])

    # z = .8*2 - .6*1 = 1.0; logits (37, 66, 118) become (40, 60, 120): difference norm 7.
    assert tail.project(h).item() == pytest.approx(1.0, abs=1e-6)
    before, after = WORKED.float() @ h, WORKED.float() @ tail.remove(h)
    assert before.tolist() == pytest.approx([37, 66, 118], abs=1e-4)
    assert after.tolist() == pytest.approx([40, 60, 120], abs=1e-4)
    assert (before - after).norm().item() == pytest.approx(7.0, abs=1e-4)


def test_folded_basis_is_that_of_w_diag_gain_and_differs_from_the_raw_one():
    folded = fit_spectrum(head(WORKED, gain=torch.tensor([2.0, 0.5])), "residual")
    tail = folded.subspace("reasoning", 1)

    # s = (89.1045, 5.4992); tail (-.309608, .950864), cosine .8182 with the raw tail (-.8, .6).
    assert folded.singular_values().tolist() == pytest.approx([89.1045, 5.4992], abs=1e-4)
    assert tail.basis.flatten().tolist() == pytest.approx([-0.309608, 0.950864], abs=1e-6)
    raw = fit_spectrum(head(WORKED), "post_norm").subspace("reasoning", 1)
    assert abs((raw.basis @ tail.basis.T).item()) == pytest.approx(0.8182, abs=1e-4)


def test_matched_bases_are_less_visible_than_a_mixed_one():
    gain = torch.tensor([2.0, 0.5])
    made = head(WORKED, gain=gain)
    x = torch.tensor([1.0, 2.0])
    unit = normalised(made, x)  # x / rms = (.632456, 1.264911)
    assert unit.tolist() == pytest.approx([0.632456, 1.264911], abs=1e-6)
    folded = fit_subspace(made, SubspaceSpec.parse("reasoning:1"), "residual")
    raw = fit_subspace(made, SubspaceSpec.parse("reasoning:1"), "post_norm")

    weight = WORKED.float() * gain
    logits = weight @ unit
    assert logits.tolist() == pytest.approx([23.4009, 41.7421, 74.6298], abs=1e-3)
    # Changes of the logits: matched residual 5.5374; the raw basis on residual states 13.0098.
    assert (logits - weight @ folded.remove(unit)).norm().item() == pytest.approx(5.5374, abs=1e-3)
    assert (logits - weight @ raw.remove(unit)).norm().item() == pytest.approx(13.0098, abs=1e-3)


def test_gram_tail_equals_svd_tail():
    W = random_matrix(200, 24)
    tail = fit_spectrum(head(W), "post_norm").subspace("reasoning", 5)
    _, s, vt = torch.linalg.svd(W)

    overlap = torch.linalg.svdvals(tail.basis.double() @ vt[-5:].T)
    assert overlap.tolist() == pytest.approx([1] * 5, abs=1e-6)
    assert tail.singular_values.tolist() == pytest.approx(s.tolist(), rel=1e-6)


def test_frobenius_norm_on_the_tail_is_the_sum_of_its_squared_singular_values():
    W = random_matrix(100, 16, seed=3)
    tail = fit_spectrum(head(W), "post_norm").subspace("reasoning", 4)

    seen = (W.float() @ tail.basis.T).square().sum().item()
    assert seen == pytest.approx(tail.singular_values[-4:].square().sum().item(), rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 49), unique=True, max_size=6))
def test_any_chunking_gives_the_same_spectrum(cuts):
    W = random_matrix(50, 8)
    fitter = SubspaceFitter(8, point="post_norm")
    edges = [0, *sorted(cuts), 50]
    for a, b in itertools.pairwise(edges):
        fitter.update(W[a:b])
    whole = SubspaceFitter(8, point="post_norm").update(W)

    assert fitter.singular_values().tolist() == pytest.approx(
        whole.singular_values().tolist(), rel=1e-12
    )


def test_exact_null_space_is_recovered_and_both_state_points_agree_on_it():
    W = random_matrix(60, 10)
    null = torch.linalg.qr(random_matrix(10, 2, seed=1))[0]
    W = W - (W @ null) @ null.T
    gain = torch.linspace(0.5, 2.0, 10, dtype=torch.float64)
    raw = fit_spectrum(head(W), "post_norm").subspace("reasoning", 2)
    folded = fit_spectrum(head(W, gain=gain), "residual").subspace("reasoning", 2)

    assert torch.linalg.svdvals(raw.basis.double() @ null).tolist() == pytest.approx(
        [1, 1], abs=1e-6
    )
    # null(W diag g) = diag(g)^-1 null(W): a state invisible in one coordinate system is in the other.
    mapped = torch.linalg.qr(folded.basis.double().T * gain[:, None])[0]
    assert torch.linalg.svdvals(mapped.T @ null).tolist() == pytest.approx([1, 1], abs=1e-6)


def test_layer_norm_residual_tail_never_holds_the_dead_direction():
    W, gain = random_matrix(60, 10), torch.linspace(0.5, 2.0, 10, dtype=torch.float64)
    made = head(W, gain=gain, kind="layer")
    matrix = torch.cat(list(effective_rows(made, "residual")))
    dead = dead_direction(made, "residual")
    tail = fit_spectrum(made, "residual").subspace("reasoning", 3)

    # The plain tail of W diag(g) P would take 1/sqrt(D) first: its singular value is exactly 0.
    assert torch.linalg.svdvals(matrix)[-1].item() < 1e-12
    assert (matrix @ dead).abs().max().item() < 1e-12
    assert (tail.basis.double() @ dead).abs().max().item() < 1e-6
    assert len(tail.singular_values) == 9
    assert dead_direction(made, "post_norm") is None


def test_layer_norm_worked_row_gives_the_models_logit():
    # x = (1, 2, 6), g = (1, 2, .5), b = (.1, 0, -.2), w = (2, -1, 5): logit 1.746005.
    made = Unembedding(
        torch.tensor([[2.0, -1.0, 5.0]], dtype=torch.float64),
        None,
        torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64),
        torch.tensor([0.1, 0.0, -0.2], dtype=torch.float64),
        "layer",
        0.0,
    )
    row = next(effective_rows(made, "residual"))[0]

    assert row.tolist() == pytest.approx([1.166667, -2.833333, 1.666667], abs=1e-6)
    logit = row.float() @ normalised(made, torch.tensor([1.0, 2.0, 6.0])) - 0.8
    assert logit.item() == pytest.approx(1.746005, abs=1e-5)


def test_random_subspaces_are_orthonormal_seeded_and_different():
    fitter = fit_spectrum(head(random_matrix(50, 12)), "post_norm")
    one, same = fitter.subspace("random", 4, seed=1), fitter.subspace("random", 4, seed=1)
    other = fitter.subspace("random", 4, seed=2)

    assert torch.equal(one.basis, same.basis)
    assert not torch.allclose(one.basis, other.basis)
    assert torch.allclose(one.basis @ one.basis.T, torch.eye(4), atol=1e-6)


def test_the_middle_is_half_way_between_the_ends():
    W = random_matrix(80, 10)
    _, _, vt = torch.linalg.svd(W)
    fitter = fit_spectrum(head(W), "post_norm")

    # 4 of 10: rows 3, 4, 5, 6; 3 of 10: one more of the tail's side is left than of the top's.
    for n, start in ((4, 3), (3, 3), (10, 0)):
        middle = fitter.subspace("middle", n).basis.double()
        overlap = torch.linalg.svdvals(middle @ vt[start : start + n].T)
        assert overlap.tolist() == pytest.approx([1] * n, abs=1e-6)


def test_random_singular_directions_are_rows_of_the_spectrum_drawn_without_repeats():
    fitter = fit_spectrum(head(random_matrix(50, 12)), "post_norm")
    directions, chosen = fitter.directions().float(), []
    for seed in range(20):
        basis = fitter.subspace("random_singular", 3, seed=seed).basis
        places = (basis @ directions.T).abs().argmax(1).tolist()
        assert torch.allclose(basis, directions[places], atol=1e-6)
        assert places == sorted(set(places))
        chosen += places
    assert set(chosen) == set(range(12))  # every direction has its turn


def test_raw_coordinates_pick_entries_of_the_state():
    fitter = fit_spectrum(head(random_matrix(50, 12)), "post_norm")
    h = random_matrix(2, 12, seed=4).float()
    picked = fitter.subspace("coordinates", 3, seed=1)

    places = picked.basis.argmax(1).tolist()
    assert torch.equal(picked.project(h), h[:, places])
    assert picked.basis.sum() == 3
    assert places != fitter.subspace("coordinates", 3, seed=2).basis.argmax(1).tolist()


@pytest.mark.parametrize("part", ["middle", "random_singular", "random"])
def test_controls_of_a_layer_norm_never_hold_the_dead_direction_either(part):
    W, gain = random_matrix(60, 10), torch.linspace(0.5, 2.0, 10, dtype=torch.float64)
    made = head(W, gain=gain, kind="layer")
    basis = fit_spectrum(made, "residual").subspace(part, 5).basis.double()

    assert (basis @ dead_direction(made, "residual")).abs().max().item() < 1e-6


@pytest.mark.parametrize("point", ["post_norm", "residual"])
def test_the_centred_spectrum_is_that_of_the_matrix_without_its_mean_row(point):
    W, gain = random_matrix(80, 10) + 2, torch.linspace(0.5, 2.0, 10, dtype=torch.float64)
    rows = W * gain if point == "residual" else W
    _, s, vt = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    fitter = fit_spectrum(head(W, gain=gain), point, centred=True)

    assert fitter.singular_values().tolist() == pytest.approx(s.tolist(), rel=1e-9)
    tail = fitter.subspace("reasoning", 3).basis.double()
    assert torch.linalg.svdvals(tail @ vt[-3:].T).tolist() == pytest.approx([1] * 3, abs=1e-6)


def test_centring_leaves_the_probabilities_alone_and_takes_the_common_push_off_the_top():
    W = random_matrix(80, 10) + 2  # (2, ..., 2) moves all logits alike
    h = random_matrix(1, 10, seed=8)[0]
    common = torch.ones(10, dtype=torch.float64) / 10**0.5
    probabilities = [torch.softmax(m @ h, 0) for m in (W, W - W.mean(0))]
    assert torch.allclose(*probabilities, atol=1e-12)

    raw, centred = (
        fit_spectrum(head(W), "post_norm", centred=flag).directions()[0] for flag in (False, True)
    )
    assert abs(raw @ common) > 0.99
    assert abs(centred @ common) < 0.9


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 49), unique=True, max_size=5))
def test_any_chunking_gives_the_same_centred_spectrum(cuts):
    W = random_matrix(50, 8) + 1
    fitter = SubspaceFitter(8, point="post_norm", centred=True)
    for a, b in itertools.pairwise([0, *sorted(cuts), 50]):
        fitter.update(W[a:b])

    expected = torch.linalg.svdvals(W - W.mean(0)).tolist()
    assert fitter.singular_values().tolist() == pytest.approx(expected, rel=1e-9)


def test_project_then_lift_then_project_changes_nothing_and_remove_leaves_nothing():
    tail = fit_spectrum(head(random_matrix(50, 12)), "post_norm").subspace("reasoning", 4)
    h = random_matrix(3, 12, seed=9).float()
    z = tail.project(h)

    assert torch.allclose(tail.project(z @ tail.basis), z, atol=1e-5)
    assert tail.project(tail.remove(h)).abs().max().item() < 1e-5


@pytest.mark.parametrize(
    ("width", "dims"),
    [(3584, 180), (4096, 205), (576, 29), (896, 45), (1536, 77), (2048, 103), (8192, 410)],
)
def test_five_per_cent_is_harps_count(width, dims):
    assert SubspaceSpec.parse("reasoning:5%").n_dims(width) == dims


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("resoning:5%", "Did you mean 'reasoning'?"),
        ("reasoning", "need one"),
        ("full:3", "takes no size"),
        ("reasoning:0", "above 0"),
        ("reasoning:100%", "below 100 %"),
        ("reasoning:1.5", "neither a whole number"),
        ("semantic:x", "cannot read the size"),
        ("semantic:3@4", "only random, random_singular, coordinates take a seed (@4)"),
        ("middle:3@4", "only random"),
        ("random_singlar:3", "Did you mean 'random_singular'?"),
    ],
)
def test_unreadable_subspaces_are_refused_with_the_remedy(text, fragment):
    with pytest.raises(RecipeError) as caught:
        SubspaceSpec.parse(text)

    assert fragment in str(caught.value)


def test_a_subspace_wider_than_the_state_is_refused():
    with pytest.raises(RecipeError, match="between 1 and 15"):
        SubspaceSpec.parse("reasoning:16").n_dims(16)


def test_states_of_another_width_are_refused_with_both_widths():
    tail = fit_spectrum(head(WORKED), "post_norm").subspace("reasoning", 1)

    with pytest.raises(ShapeError, match=r"width 3, the basis 2.*another model"):
        tail.project(torch.zeros(1, 3))


def test_a_basis_rounded_to_bfloat16_is_refused():
    basis = torch.linalg.qr(random_matrix(64, 8))[0].T.bfloat16().float()

    with pytest.raises(RecipeError, match="not orthonormal"):
        Subspace(basis, torch.zeros(0), "post_norm", "reasoning", 1)


def test_a_subspace_can_live_on_another_device():
    tail = fit_spectrum(head(WORKED), "post_norm").subspace("reasoning", 1)

    # The meta device computes nothing but refuses to mix with the CPU, as a GPU does.
    moved = tail.to(torch.device("meta"))
    assert moved.project(torch.zeros(3, 2, device="meta")).shape == (3, 1)


def test_a_quantised_lm_head_is_refused_by_its_dtype():
    with pytest.raises(RecipeError, match=r"torch\.int8.*de-quantised"):
        fit_spectrum(head(torch.ones(4, 2, dtype=torch.int8)), "post_norm")
