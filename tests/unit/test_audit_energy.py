"""Energy of the residual stream: hand-made states, kinds of tokens, and what batching must not change."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model, tiny_tokenizer

from retrm.audit.energy import TOKEN_KINDS, EnergyReducer, answer_energy, energy_rows
from retrm.backbone.base import Fingerprint
from retrm.backbone.batching import build, plan_batches
from retrm.backbone.fake import FakeBackbone
from retrm.backbone.render import ChatRenderer
from retrm.backbone.states import TransformersBackbone
from retrm.errors import RecipeError
from retrm.features.read import read
from retrm.features.reduce import BatchIndex
from retrm.features.subspace import fit_spectrum
from retrm.records import Answer

M = 4
# Two prompts of different length with three and two answers of different lengths.
ANSWERS = [
    *(Answer.of("one question", text) for text in ("yes, it is.", "no", "maybe so; who knows?")),
    *(Answer.of("another, longer question", text) for text in ("4", "it is 4!")),
]


@pytest.fixture(scope="module")
def backbone():
    return FakeBackbone()


def energies(backbone, answers, **options):
    made = {"energy": EnergyReducer(backbone, m=M)}
    return read(backbone, answers, {}, reducers=made, **options).features["energy"]


def rows_of(features, answers):
    ids = [answer.prompt_id for answer in answers]
    return {(row.layer, row.token_kind): row for row in energy_rows(features, m=M, prompt_ids=ids)}


def shown(backbone, states_of, answers=ANSWERS, **options):
    """Features of hand-made residuals: `states_of(rows, tokens)` at every layer."""
    rendered = [backbone.renderer.render(answer) for answer in answers]
    (plan,) = plan_batches(rendered, tokens_per_batch=10_000, **options)
    batch = build(plan, rendered, 0)
    index, reducer = BatchIndex.of(batch), EnergyReducer(backbone, m=M)
    for layer in range(backbone.n_layers + 1):
        states = states_of(*batch.ids.shape)
        reducer.visit(layer, "residual", states, index, batch)
    return reducer.finish(index).take(np.argsort(batch.answers))


# ----------------------------------------------------------------------------- known shares


@pytest.mark.parametrize(
    ("direction", "reasoning", "semantic"),
    [(0, 0, 1), (M - 1, 0, 1), (M, 0, 0), (-M - 1, 0, 0), (-M, 1, 0), (-1, 1, 0)],
)
def test_states_along_one_singular_direction_have_share_0_or_1(
    backbone, direction, reasoning, semantic
):
    rows = fit_spectrum(backbone.unembedding, "residual").directions().float()
    features = shown(backbone, lambda r, t: 3 * rows[direction].expand(r, t, -1))

    for row in rows_of(features, ANSWERS).values():
        assert row.reasoning == pytest.approx(reasoning, abs=1e-5)
        assert row.semantic == pytest.approx(semantic, abs=1e-5)
        # 3 times a unit vector in 16 dimensions: rms 3 / sqrt(16)
        assert row.rms == pytest.approx(0.75, rel=1e-5)


def test_a_state_with_two_parts_has_the_share_of_their_squares(backbone):
    rows = fit_spectrum(backbone.unembedding, "residual").directions().float()
    state = 3 * rows[-1] + 4 * rows[M]  # 9 of 25 in the tail
    features = shown(backbone, lambda r, t: state.expand(r, t, -1))

    assert answer_energy(features).reasoning.flatten().tolist() == pytest.approx([0.36] * 20)


def test_isotropic_states_have_the_share_of_chance(backbone):
    generator = torch.Generator().manual_seed(0)
    features = shown(backbone, lambda r, t: torch.randn(r, t, 16, generator=generator))

    content = [r for (_, kind), r in rows_of(features, ANSWERS).items() if kind == "prompt"]
    # m / D = 1/4; 4 layers x 50 tokens with a deviation of about .1 each
    assert np.mean([row.reasoning for row in content]) == pytest.approx(0.25, abs=0.02)


def test_the_share_is_of_the_normalised_residual_also_behind_a_layer_norm():
    renderer, none = ChatRenderer(tiny_tokenizer()), Fingerprint("w", "u", "t", "c")
    backbone = TransformersBackbone(tiny_model("gpt2"), renderer, none, "tiny")
    rows = fit_spectrum(backbone.unembedding, "residual").directions().float()
    # The mean of a state is taken off before a LayerNorm, and so before its energy is looked at.
    features = shown(backbone, lambda r, t: (2 * rows[-1] + 5.0).expand(r, t, -1))

    assert answer_energy(features).reasoning.min() > 0.999


def test_a_state_of_zeros_has_share_0(backbone):
    features = shown(backbone, lambda r, t: torch.zeros(r, t, 16))

    assert {row.reasoning for row in rows_of(features, ANSWERS).values()} == {0}


# ---------------------------------------------------------------------------- kinds of tokens


def plain_kinds(backbone, answers):
    """Tokens of every kind, prompts once, written out."""
    counts, seen = dict.fromkeys(TOKEN_KINDS, 0), set()
    for answer in answers:
        rendered = backbone.renderer.render(answer)
        if answer.prompt_id not in seen:
            seen.add(answer.prompt_id)
            counts["first"] += 1
            counts["early"] += 3
            counts["prompt"] += rendered.start - 4
        for token in rendered.ids[rendered.start : rendered.stop]:
            letter = chr(token) if token < 128 else None
            kind = "end" if letter is None else "content" if letter.isalnum() else "punctuation"
            counts[kind] += 1
    return {kind: n for kind, n in counts.items() if n}


def test_every_real_token_is_counted_once_under_its_kind_and_padding_never(backbone):
    found = rows_of(energies(backbone, ANSWERS), ANSWERS)
    counts = {kind: row.n_tokens for (layer, kind), row in found.items() if layer == 0}

    assert counts == plain_kinds(backbone, ANSWERS)
    # "yes, it is." + "no" + "maybe so; who knows?" + "4" + "it is 4!": 4 + 0 + 5 + 0 + 3 others
    assert (counts["content"], counts["punctuation"], counts["end"]) == (7 + 2 + 15 + 1 + 5, 12, 5)
    rendered = [backbone.renderer.render(answer) for answer in ANSWERS]
    prompts = {item.ids[: item.start] for item in rendered}
    assert sum(counts.values()) == sum(map(len, prompts)) + sum(r.n_response for r in rendered)


def test_padding_does_not_count_as_first_token(backbone):
    # Padding stands at position 0. One long and one short row leave much of it.
    answers = [Answer.of("q", "x" * 60), Answer.of("other", "y")]
    found = rows_of(energies(backbone, answers, share_prompts=False), answers)

    assert found[0, "first"].n_tokens == 2


def test_a_reading_without_punctuation_has_no_such_row(backbone):
    answers = [Answer.of("q", "x"), Answer.of("r", "y")]

    assert (0, "punctuation") not in rows_of(energies(backbone, answers), answers)


def test_an_end_token_that_is_not_judged_is_not_counted():
    backbone = FakeBackbone(counts_end=False)

    assert (0, "end") not in rows_of(energies(backbone, ANSWERS), ANSWERS)


def test_punctuation_and_ends_are_recognised_with_a_real_tokenizer():
    renderer, none = ChatRenderer(tiny_tokenizer()), Fingerprint("w", "u", "t", "c")
    backbone = TransformersBackbone(tiny_model("llama"), renderer, none, "tiny")
    answers = [Answer.of("q", "So: 3 + 4 = 7.")]
    found = rows_of(energies(backbone, answers), answers)

    # 14 bytes: S o 3 4 7 are content; : + = . and 5 blanks are not; then the end-of-turn token.
    counts = [found[0, kind].n_tokens for kind in ("content", "punctuation", "end")]
    assert counts == [5, 9, 1]


def test_a_part_of_a_letter_is_content_not_punctuation(backbone):
    # The two bytes of an umlaut mean nothing by themselves.
    found = rows_of(energies(backbone, [Answer.of("q", "ü")]), [Answer.of("q", "ü")])

    assert found[0, "content"].n_tokens == 2
    assert (0, "punctuation") not in found


# --------------------------------------------------------------- what must not change anything


def same_rows(first, second):
    assert first.keys() == second.keys()
    for place, row in first.items():
        other = second[place]
        assert row.n_tokens == other.n_tokens, place
        for name in ("reasoning", "semantic", "rms"):
            assert getattr(row, name) == pytest.approx(getattr(other, name), abs=1e-6), place


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([40, 100, 400, 10_000]), st.booleans())
def test_sharing_prompts_and_batching_change_no_figure(tokens_per_batch, share_prompts):
    backbone = FakeBackbone()
    expected = rows_of(energies(backbone, ANSWERS, share_prompts=False), ANSWERS)
    found = energies(
        backbone, ANSWERS, tokens_per_batch=tokens_per_batch, share_prompts=share_prompts
    )

    same_rows(rows_of(found, ANSWERS), expected)


def test_each_answer_carries_the_same_alone_or_in_company(backbone):
    # So that a killed reading, which batches the rest in another way, ends with the same sums.
    together = energies(backbone, ANSWERS)
    for i, answer in enumerate(ANSWERS):
        alone = energies(backbone, [answer])
        assert torch.allclose(together.values[i], alone.values[0], atol=1e-4), i


def test_the_last_token_of_every_answer_stands_alone(backbone):
    found = answer_energy(energies(backbone, ANSWERS))
    for i, answer in enumerate(ANSWERS):
        rendered = backbone.renderer.render(answer)
        (plan,) = plan_batches([rendered])
        batch, seen = build(plan, [rendered], 0), {}
        wanted = {(layer, "residual") for layer in range(backbone.n_layers + 1)}
        backbone.forward(batch, wanted, lambda layer, _, s, seen=seen: seen.update({layer: s}))
        basis = fit_spectrum(backbone.unembedding, "residual").subspace("reasoning", M).basis
        for layer in range(backbone.n_layers + 1):
            x = seen[layer][0, rendered.stop - 1]
            share = (basis @ x).square().sum() / x.square().sum()
            assert found.reasoning[i, layer] == pytest.approx(share.item(), abs=1e-5)
            assert found.rms[i, layer] == pytest.approx(x.square().mean().sqrt().item(), rel=1e-5)
        assert found.n_tokens[i] == rendered.n_response


def test_an_impossible_number_of_directions_is_refused(backbone):
    with pytest.raises(RecipeError, match="17 directions asked of 16"):
        EnergyReducer(backbone, m=17)
