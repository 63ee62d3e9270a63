"""Answers drawn in steps are those that are drawn at once."""

import pytest
from scored import ending_backbone, ending_fake

from retrm.backbone.fake import FakeBackbone
from retrm.backbone.generate import Drawing, sample
from retrm.errors import OverlongError, RecipeError
from retrm.features.read import read_rendered
from retrm.features.recipe import Recipe
from retrm.features.reduce import Reducer
from retrm.records import Answer, Prompt

PROMPT = Prompt.of("What is 2 + 2?")
OPTIONS = {"n": 5, "temperature": 1.0, "max_new_tokens": 9, "seed": 3}


@pytest.mark.parametrize("make", [ending_fake, ending_backbone])
def test_answers_in_steps_are_those_of_one_sampling(make):
    backbone = make()
    drawing = Drawing(backbone, PROMPT, **OPTIONS)
    n_steps = 0
    while not drawing.is_done:
        drawing.step()
        n_steps += 1

    assert drawing.answers == list(sample(backbone, [PROMPT], **OPTIONS))
    assert len({len(one.token_ids) for one in drawing.answers}) > 1  # some ended before others
    assert n_steps <= 9


def test_other_work_between_two_steps_changes_neither():
    backbone = ending_backbone()
    rendered = backbone.renderer.render(Answer.of("Hi", "there"))
    reducer = Reducer(Recipe(), backbone)
    alone = read_rendered(backbone, [rendered], reducer).values
    drawing = Drawing(backbone, PROMPT, **OPTIONS)
    while not drawing.is_done:
        drawing.step()

        assert (read_rendered(backbone, [rendered], reducer).values == alone).all()
    assert drawing.answers == list(sample(backbone, [PROMPT], **OPTIONS))


def test_answers_that_are_ready_are_told_in_order_before_the_others_are():
    drawing = Drawing(ending_fake(factor=8.0), PROMPT, **{**OPTIONS, "max_new_tokens": 40})
    seen = []
    while not drawing.is_done:
        drawing.step()
        seen.append([one.number for one in drawing.answers])

    assert all(numbers == sorted(numbers) for numbers in seen)
    assert len(seen[0]) < 5
    assert seen[-1] == [0, 1, 2, 3, 4]


def test_a_prompt_without_room_for_an_answer_is_refused_at_once():
    with pytest.raises(OverlongError, match="with max_new_tokens=60 it exceeds the context of 64"):
        Drawing(FakeBackbone(context_length=64), PROMPT, max_new_tokens=60)


def test_equal_answers_are_refused():
    with pytest.raises(RecipeError, match="temperature=0 with n=2"):
        Drawing(FakeBackbone(), PROMPT, n=2, temperature=0.0)
