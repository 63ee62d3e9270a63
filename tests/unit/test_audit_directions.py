"""Directions of every feature set, against plain decompositions and a real backbone."""

import numpy as np
import pytest
import torch
from audit_planted import planted_head
from tiny import tiny_model, tiny_tokenizer

from retrm.audit.directions import Directions, FeatureSet
from retrm.audit.plan import MATRICES
from retrm.backbone.base import Fingerprint, Unembedding
from retrm.backbone.render import ChatRenderer
from retrm.backbone.states import TransformersBackbone
from retrm.errors import RecipeError
from retrm.features.norm_folding import effective_rows, normalised
from retrm.features.read import read
from retrm.features.recipe import Recipe
from retrm.features.subspace import fit_spectrum
from retrm.fitting.ridge import Moments
from retrm.records import Answer

WIDTH, M = 24, 4


@pytest.fixture(scope="module")
def directions():
    return Directions(planted_head())


@pytest.fixture(scope="module")
def states():
    return torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def same_subspace(first, second):
    """Cosines of the principal angles between the spans of two sets of columns, all 1."""
    bases = [torch.linalg.qr(columns.double())[0] for columns in (first, second)]
    return torch.allclose(torch.linalg.svdvals(bases[0].T @ bases[1]), torch.ones(()).double())


@pytest.mark.parametrize("matrix", MATRICES)
def test_directions_are_those_of_a_plain_svd_of_the_matrix(directions, matrix):
    head = planted_head()
    rows = head.weight.double()
    if "folded" in matrix:
        rows = rows * head.gain.double()
    if "centred" in matrix:
        rows = rows - rows.mean(0)
    _, s, vt = torch.linalg.svd(rows, full_matrices=False)

    assert torch.allclose(directions.singular_values(matrix), s, rtol=1e-9)
    expected = {"reasoning": vt[-M:], "semantic": vt[:M], "middle": vt[10:14]}
    for kind, vectors in expected.items():
        found = directions.of(FeatureSet(kind, M, matrix))
        if "folded" in matrix:  # on h = g x, v of x is v / g
            vectors = vectors / head.gain.double()
        assert same_subspace(found, vectors.T), kind


def test_a_band_is_a_window_and_semantic_all_is_everything_but_the_tail(directions):
    rows = directions.all_directions("raw")

    band = directions.of(FeatureSet("band", M, "raw", offset=3))
    assert torch.equal(band, rows[3:7].T)
    first = directions.of(FeatureSet("semantic_all", WIDTH - M, "raw"))
    assert torch.equal(first, rows[:-M].T)
    tail = directions.of(FeatureSet("reasoning", M, "raw"))
    assert torch.linalg.matrix_rank(torch.cat([first, tail], dim=1)) == WIDTH
    assert (first.T @ tail).abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["random", "random_singular", "coordinates"])
def test_draws_are_orthonormal_repeatable_and_different(directions, kind):
    matrix = "-" if kind == "coordinates" else "raw"
    one, same, other = (directions.of(FeatureSet(kind, M, matrix, draw)) for draw in (1, 1, 2))

    assert torch.equal(one, same)
    assert not torch.allclose(one, other)
    assert torch.allclose(one.T @ one, torch.eye(M).double(), atol=1e-6)


def test_full_state_and_prompt_need_no_directions(directions):
    assert directions.of(FeatureSet("full", WIDTH)) is None
    assert directions.of(FeatureSet("prompt", WIDTH)) is None


def test_an_unknown_kind_is_refused_by_name(directions):
    with pytest.raises(RecipeError, match="'resoning', which has no directions"):
        directions.of(FeatureSet("resoning", M, "raw"))


# ------------------------------------------------------------ matching states and matrices


def plain_norm(head, x):
    """The final norm written out."""
    x = x.double()
    if head.norm_kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    unit = x / (x.square().mean(-1, keepdim=True) + head.eps).sqrt()
    out = unit * head.gain.double()
    return out if head.norm_bias is None else out + head.norm_bias.double()


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("matrix", ["folded", "centred_folded"])
def test_folded_directions_on_post_norm_states_read_the_normalised_residual(kind, matrix):
    head = planted_head(kind=kind)
    residual = torch.randn(7, WIDTH, generator=torch.Generator().manual_seed(2)) * 3 + 1
    fitter = fit_spectrum(head, "residual", centred="centred" in matrix)
    basis = fitter.subspace("reasoning", M).basis.double()
    columns = Directions(head).of(FeatureSet("reasoning", M, matrix))

    on_post_norm = plain_norm(head, residual) @ columns
    on_residual = normalised(head, residual).double() @ basis.T
    gap = on_post_norm - on_residual  # the norm's bias adds the same to every state
    assert (gap - gap[0]).abs().max() < 1e-5
    if kind == "rms":
        assert gap.abs().max() < 1e-5
    else:
        assert gap.abs().max() > 1e-2  # the bias is there: the constant is not 0


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox"])
def test_folded_directions_agree_with_the_folded_basis_on_a_real_backbone(family):
    renderer, none = ChatRenderer(tiny_tokenizer()), Fingerprint("w", "u", "t", "c")
    backbone = TransformersBackbone(tiny_model(family), renderer, none, "tiny")
    answers = [Answer.of(f"question {i}", "an answer " * (i % 3 + 1)) for i in range(6)]
    recipes = {
        "post_norm": Recipe(pooling="last"),
        "residual": Recipe(pooling="last", point="residual", subspace="reasoning:4"),
        "lower": Recipe(pooling="last", layers="1"),
        "lower_residual": Recipe(
            pooling="last", point="residual", subspace="reasoning:4", layers="1"
        ),
    }
    found = read(backbone, answers, recipes).features
    columns = Directions(backbone.unembedding).of(FeatureSet("reasoning", 4, "folded"))

    for full, part in (("post_norm", "residual"), ("lower", "lower_residual")):
        ours = found[full].values.double() @ columns
        theirs = found[part].values.double()
        gap = ours - theirs
        assert (gap - gap.mean(0)).abs().max() < 1e-4 * theirs.abs().max(), (family, full)


def test_the_folded_tail_of_a_layer_norm_never_reads_the_dead_direction():
    head = planted_head(kind="layer")
    rows = torch.cat(list(effective_rows(head, "residual")))
    ones = torch.ones(WIDTH, dtype=torch.float64) / WIDTH**0.5
    assert (rows.double() @ ones).abs().max() < 1e-5  # what centring leaves of W diag(g): nothing

    directions = Directions(head)
    assert len(directions.singular_values("folded")) == WIDTH - 1
    tail = fit_spectrum(head, "residual").subspace("reasoning", M).basis.double()
    assert (tail @ ones).abs().max() < 1e-6


def test_a_gain_with_a_zero_is_refused_for_folded_matrices_only():
    head = planted_head()
    gain = head.gain.clone()
    gain[3] = 0
    head = Unembedding(head.weight, None, gain, None, "rms", 1e-6)

    with pytest.raises(RecipeError, match=r"has 1 zero\(s\).*Leave the folded matrices out"):
        Directions(head)
    assert Directions(head, ("raw", "centred")).singular_values("raw").shape == (WIDTH,)


def test_overlaps_are_mean_squared_cosines_and_1_with_oneself(directions):
    overlaps = directions.overlaps(M)
    bases = {
        name: fit_spectrum(
            planted_head(),
            "residual" if "folded" in name else "post_norm",
            centred="centred" in name,
        )
        .subspace("reasoning", M)
        .basis.double()
        for name in ("raw", "centred_folded")
    }
    cosines = torch.linalg.svdvals(bases["raw"] @ bases["centred_folded"].T)

    assert overlaps["raw", "centred_folded"] == pytest.approx(cosines.square().mean().item())
    assert overlaps["folded", "folded"] == pytest.approx(1)
    assert len(overlaps) == 10  # 4 matrices: 6 pairs and 4 with themselves


# ------------------------------------------------------------------ fitted on training states


def moments_of(states):
    return Moments.of(states, np.arange(len(states)) % 2)


def test_principal_directions_are_those_of_a_plain_svd_of_the_training_states(directions, states):
    states = states * torch.linspace(3, 0.3, WIDTH)
    _, _, vt = torch.linalg.svd(states - states.mean(0), full_matrices=False)

    top = directions.of(FeatureSet("pca_top", M), moments_of(states))
    bottom = directions.of(FeatureSet("pca_bottom", M), moments_of(states))
    assert same_subspace(top, vt[:M].T)
    assert same_subspace(bottom, vt[-M:].T)
    # columns in order: the first has the most variance
    assert ((states @ top).var(0).diff() < 0).all()


def test_whitened_random_features_have_unit_variance_and_no_correlation(directions, states):
    states = states * torch.linspace(3, 0.3, WIDTH) + 2
    columns = directions.of(FeatureSet("white_random", M, draw=1), moments_of(states))
    other = directions.of(FeatureSet("white_random", M, draw=2), moments_of(states))

    covariance = torch.cov((states @ columns).T, correction=0)
    assert torch.allclose(covariance, torch.eye(M).double(), atol=1e-8)
    assert not torch.allclose(columns, other)


def test_whitening_is_blind_to_directions_without_variance_on_the_training_states(
    directions, states
):
    # Fewer training answers than dimensions, as usual: whitening must not blow up what it never saw.
    few = states[:10]
    columns = directions.of(FeatureSet("white_random", M), moments_of(few))

    _, s, vt = torch.linalg.svd(few - few.mean(0), full_matrices=True)
    assert (s > 1e-9).sum() == 9
    assert (vt[9:] @ columns).abs().max() < 1e-6
    assert (states[10:] @ columns).std() < 10  # of the order of the 1 of the training states


def test_which_sets_are_fitted_on_training_states_is_known():
    fitted = {
        kind
        for kind in ("full", "reasoning", "random", "pca_top", "pca_bottom", "white_random")
        if FeatureSet(kind, M).is_fitted
    }
    assert fitted == {"pca_top", "pca_bottom", "white_random"}
