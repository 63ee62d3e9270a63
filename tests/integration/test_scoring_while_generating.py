"""On the real embedded model: scores while generating are those of a reading of the same tokens."""

import pytest
from scored import reward_model

from retrm.features.recipe import Recipe
from retrm.records import Answer, Prompt
from retrm.selection.prune import LowerShare

pytestmark = pytest.mark.slow
TEXTS = ["What is 3 + 4? Say the number only.", "Name a colour."]


@pytest.fixture
def backbone(smollm2):
    return smollm2


def assert_scores_of_a_reading(rm, texts, drawn):
    answers = [
        Answer(Prompt.of(texts[s.prompt]), s.response, "p", s.token_ids, s.finished) for s in drawn
    ]
    offline = rm.score(answers)
    for one, expected in zip(drawn, offline, strict=True):
        assert one.score == pytest.approx(expected, abs=1e-4 * (1 + abs(expected)))
    assert offline.std() > 1e-3


@pytest.mark.parametrize(
    ("recipe", "head"),
    [
        (Recipe(layers="all", point="hidden_states", pooling="tokens"), "gated"),
        (Recipe(subspace="reasoning:5%", pooling="mean"), "linear"),
        (Recipe(subspace="reasoning:5%", pooling="tokens"), "worst_token"),
        (Recipe(), "linear"),
    ],
    ids=["all-layers", "reasoning", "worst-token", "last"],
)
def test_scores_are_those_of_a_reading_of_the_sampled_tokens(backbone, recipe, head):
    rm = reward_model(backbone, recipe, head)
    drawn = list(rm.generate(TEXTS, n=3, max_new_tokens=10, seed=1))

    assert {one.finished for one in drawn} == {True, False}
    assert_scores_of_a_reading(rm, TEXTS, drawn)


def test_what_is_left_after_pruning_has_the_scores_of_a_reading(backbone):
    rm = reward_model(
        backbone, Recipe(layers="all", point="hidden_states", pooling="tokens"), "gated"
    )
    drawn = list(
        rm.generate(TEXTS[1:], n=4, max_new_tokens=12, prune=LowerShare(every=4, share=0.5))
    )

    # 4 candidates: 2 stop after 4 tokens, 1 after 8, unless one has ended before.
    assert sum(one.is_pruned for one in drawn) >= 2
    assert_scores_of_a_reading(rm, TEXTS[1:], drawn)
