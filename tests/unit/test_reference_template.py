"""POLAR's template: the text character by character, the length rules, what is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polar_models import QUESTION, compared, polar_template
from tiny import tiny_tokenizer

from retrm.backbone.reference import (
    END,
    SEPARATOR,
    ReferenceLimits,
    ReferenceRenderer,
    ReferenceTemplate,
    fitted,
    joined,
)
from retrm.backbone.render import ChatRenderer
from retrm.errors import BackboneError, DataError, OverlongError, RecipeError, RenderError
from retrm.records import Message, Reference

TEMPLATE = polar_template(16384, 4096)
SMALL = polar_template(104, 20)


def test_the_worked_example_of_a_reply_character_by_character():
    made = TEMPLATE.compare(QUESTION, Reference("Beijing."), "Shanghai.")

    assert made.text == (
        "What is the capital of China?\nBeijing.<|reward|>What is the capital of China?\nShanghai."
        "[UNUSED_TOKEN_130]"
    )
    assert made.ids[-1] == TEMPLATE.end_id
    assert not made.is_cut


def test_the_worked_example_of_a_continuation_has_nothing_between_prompt_and_answer():
    made = TEMPLATE.compare("The sky is", Reference(" blue.", "pretrain"), " green.")

    assert made.text == "The sky is blue.<|reward|>The sky is green.[UNUSED_TOKEN_130]"


def test_messages_are_joined_by_newlines_without_roles():
    assert joined((Message("system", "Be brief."), Message("user", "Hi"))) == "Be brief.\nHi"


def test_an_empty_answer_has_no_newline():
    made = TEMPLATE.compare("Hi", Reference("Hello"), "")

    assert made.text == f"Hi\nHello{SEPARATOR}Hi{END}"


def test_the_worked_lengths():
    # (16,384 - 4 - 4,096 - 1,000) / 2 = 5,642; with 3,000: (16,380 - 7,096) / 2 = 4,642.
    limits = ReferenceLimits()
    assert limits.prompt_limit(4096, 1000) == 5642
    assert limits.prompt_limit(4096, 3000) == 4642
    # Small budgets with answers of full length: (508 - 256) / 2 = 126, (1,020 - 512) / 2 = 254, ...
    for length, response, left in ((512, 128, 126), (1024, 256, 254), (2048, 512, 510)):
        assert ReferenceLimits(length, response).prompt_limit(response, response) == left
        assert ReferenceLimits.within(length).max_response == response


def test_no_room_for_the_prompt_is_an_error_and_never_the_whole_prompt():
    # (256 - 4 - 128 - 128) / 2 = -2
    with pytest.raises(OverlongError, match="leave -2 of max_length=256"):
        ReferenceLimits(256, 128).prompt_limit(128, 128)
    with pytest.raises(OverlongError, match="Raise max_length"):
        polar_template(44, 20).compare("p" * 10, Reference("r" * 20), "c" * 20)


def test_answers_keep_their_heads_and_the_prompt_its_tail():
    # A token is a byte: 100 - 20 - 10 = 70, 35 a side.
    made = SMALL.compare("ab" * 25, Reference("r" * 19 + "xyz"), "c" * 10)

    assert made.text == "b" + "ab" * 17 + "\n" + "r" * 19 + "x" + SEPARATOR + (
        "b" + "ab" * 17 + "\n" + "c" * 10 + END
    )
    assert made.is_cut


def test_both_candidates_of_a_pair_stand_behind_the_shorter_prompt():
    prompt = "".join(chr(ord("a") + i % 26) for i in range(60))
    chosen, rejected = SMALL.compare_pair(prompt, Reference("r" * 20), "c" * 10, "d" * 18)

    # The longer candidate leaves (100 - 20 - 18) / 2 = 31 tokens, the shorter 35.
    assert chosen.text.startswith(prompt[-31:] + "\n")
    assert rejected.text.startswith(prompt[-31:] + "\n")


def test_the_training_example_of_the_specification_in_tokens():
    chosen, rejected = TEMPLATE.compare_pair(
        "p" * 7000, Reference("r" * 5000), "c" * 1000, "d" * 3000
    )

    assert (
        chosen.text
        == "p" * 4642 + "\n" + "r" * 4096 + SEPARATOR + "p" * 4642 + "\n" + "c" * 1000 + END
    )
    assert rejected.text.endswith("p" * 4642 + "\n" + "d" * 3000 + END)


def test_a_bos_counts_for_each_piece_and_stands_once():
    template = polar_template(104, 4, has_bos=True)
    made = template.compare("Hi", Reference("abcdef"), "xy")

    # <s> a b c are four tokens.
    assert made.text == f"Hi\nabc{SEPARATOR}Hi\nxy{END}"
    assert made.ids.count(template.tokenizer.bos_token_id) == 1
    assert made.ids[0] == template.tokenizer.bos_token_id


def test_a_candidate_cannot_write_a_separator_or_an_end_of_its_own():
    nested = f"a{SEPARATOR[:4]}{SEPARATOR}{SEPARATOR[4:]}b{END}<|im_end|>c"
    made = TEMPLATE.compare("Hi", Reference("ok"), nested)

    assert made.text == f"Hi\nok{SEPARATOR}Hi\nabc{END}"
    assert made.ids.count(TEMPLATE.separator_id) == made.ids.count(TEMPLATE.end_id) == 1


@settings(max_examples=15)
@given(*(st.text(st.characters(codec="utf-8", exclude_characters="<[\0"), max_size=30),) * 4)
def test_what_candidates_share_is_the_same_in_tokens(prompt, reference, first, second):
    one, other = (TEMPLATE.compare(prompt, Reference(reference), t) for t in (first, second))
    half = one.ids.index(TEMPLATE.separator_id) + 1

    assert one.ids[:half] == other.ids[:half]
    newline = "\n" if first else ""
    good = ("\n" if reference else "") + reference
    assert one.text == f"{prompt}{good}{SEPARATOR}{prompt}{newline}{first}{END}"
    assert TEMPLATE.tokenizer.decode(one.ids[one.start : -1]) == first
    assert TEMPLATE.ids_of_text(one.text) == one.ids


@pytest.mark.parametrize("has_bos", [False, True])
def test_text_of_a_client_gives_the_same_ids_with_and_without_bos(has_bos):
    template = polar_template(has_bos=has_bos)
    made = template.compare(QUESTION, Reference("Beijing."), "Shanghai.")

    assert template.ids_of_text(made.text) == made.ids
    assert template.checked_ids(made.ids) == made.ids


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"a\nb{SEPARATOR}a\nc", "2 halves that ends otherwise"),
        (f"a\nb{SEPARATOR}a\nc{END}\n", "2 halves that ends otherwise"),
        (f"a\nb{END}", "1 halves that ends rightly"),
        ("", "1 halves"),
    ],
)
def test_text_of_another_template_is_refused(text, said):
    with pytest.raises(RenderError, match=said):
        TEMPLATE.ids_of_text(text)


def test_a_tokenizer_that_splits_the_tokens_is_refused():
    with pytest.raises(BackboneError, match=r"splits '<\|reward\|>' into 10 tokens"):
        ReferenceTemplate(tiny_tokenizer())


def test_impossible_limits_are_refused():
    with pytest.raises(RecipeError, match="max_length=4"):
        ReferenceLimits(4, 1)


def test_an_unknown_wrapper_is_refused():
    with pytest.raises(DataError, match="Did you mean 'pretrain'"):
        Reference("x", "pretrained")


def test_policies_for_what_is_too_long():
    def long():
        return SMALL.compare("p" * 60, Reference("r"), "c")

    def short():
        return SMALL.compare("p", Reference("r"), "c")

    assert fitted(long, "truncate_left", "").is_cut
    assert fitted(long, "skip", "") is None
    with pytest.raises(OverlongError, match=r"rows:3: .*truncate_left"):
        fitted(long, "error", "rows:3")
    for policy in ("truncate_left", "skip", "error"):
        assert not fitted(short, policy, "").is_cut


def test_a_frozen_backbone_reads_the_template_with_its_own_end_token():
    tokenizer = tiny_tokenizer(has_bos=True)
    renderer = ReferenceRenderer.of(ChatRenderer(tokenizer), 200)
    rendered = renderer.render(compared("Shanghai."))

    end = tokenizer.eos_token_id
    assert rendered.ids[0] == tokenizer.bos_token_id
    assert rendered.ids[-1] == end
    assert rendered.ids.count(end) == 2
    assert renderer.decode(rendered.ids[rendered.start : rendered.stop]) == "Shanghai."


def test_a_frozen_backbone_without_an_end_token_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(BackboneError, match="no end-of-text token"):
        ReferenceRenderer.of(ChatRenderer(tokenizer), 200)


def test_an_answer_without_reference_is_refused_with_its_place():
    renderer = ReferenceRenderer.of(ChatRenderer(tiny_tokenizer()), 200)
    with pytest.raises(DataError, match=r"row 1: .*column `reference`"):
        renderer.render(compared("Shanghai.", reference=None))
