"""Text and ids of trainers give the ids and the span of the same messages, whatever was done to them."""

import re

import pytest
from chat_families import CASES, FAMILIES, TOOL, family
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from tiny import tiny_tokenizer

from retrm.backbone.answer_border import MIN_OVERLAP, overlap
from retrm.backbone.fake import BOS, END, FakeRenderer
from retrm.backbone.foreign_text import read_ids, read_text, read_whole
from retrm.backbone.render import ChatRenderer
from retrm.errors import RenderError
from retrm.records import Answer, Message, Prompt

RENDERERS = {name: ChatRenderer(family(name)) for name in FAMILIES}
RENDERERS["chatml"] = ChatRenderer(tiny_tokenizer())
RENDERERS["chatml_bos"] = ChatRenderer(tiny_tokenizer(has_bos=True))
RENDERERS["uncounted"] = ChatRenderer(tiny_tokenizer(has_bos=True), counts_end=False)
WITH_TEMPLATE = sorted(set(RENDERERS) - {"plain"})
# Its template takes reasoning out of finished turns: such text holds other words than the prompt.
WRITES_ALIKE = sorted(set(WITH_TEMPLATE) - {"deepseek"})
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and loop.last %}"
    "<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# No white space around: several templates trim. No letters of control strings.
words = (
    st.text(st.sampled_from("abthe is4.\n€🙂日,-"), min_size=1, max_size=30)
    .map(str.strip)
    .filter(bool)
)
talks = st.lists(words, min_size=1, max_size=5).filter(lambda turns: len(turns) % 2 == 1)


def conversation(turns: list[str], response: str) -> Answer:
    roles = ("user", "assistant")
    messages = tuple(Message(roles[i % 2], text) for i, text in enumerate(turns))
    prompt = Prompt(messages)
    return Answer(prompt, response, prompt.key)


def whole_text(renderer: ChatRenderer, answer: Answer) -> str:
    """TRL's way: apply_chat_template of the finished conversation."""
    messages = [message.as_dict() for message in answer.prompt.messages]
    messages.append({"role": "assistant", "content": answer.response})
    return renderer.tokenizer.apply_chat_template(
        messages, tools=list(answer.prompt.tools) or None, tokenize=False
    )


def without_bos(renderer: ChatRenderer, text: str) -> str:
    """verl's way, in its own words."""
    bos = renderer.tokenizer.bos_token
    return text[len(bos) :] if bos is not None and text.startswith(bos) else text


def prompt_text(renderer: ChatRenderer, answer: Answer) -> str:
    """OpenRLHF's `prompts`: the template with its generation prompt."""
    if not renderer.tokenizer.chat_template:
        return answer.prompt.messages[0].content + "\n"
    messages = [message.as_dict() for message in answer.prompt.messages]
    tools = list(answer.prompt.tools) or None
    return renderer.tokenizer.apply_chat_template(
        messages, tools=tools, tokenize=False, add_generation_prompt=True
    )


@pytest.mark.parametrize("name", WRITES_ALIKE)
@settings(max_examples=10, deadline=None)
@given(turns=talks, response=words)
def test_text_of_a_finished_conversation_gives_the_ids_and_span_of_its_messages(
    name, turns, response
):
    renderer = RENDERERS[name]
    answer = conversation(turns, response)
    want = renderer.render(answer)
    text = whole_text(renderer, answer)

    assert read_text(renderer, text).rendered == want
    assert read_text(renderer, without_bos(renderer, text)).rendered == want


@pytest.mark.parametrize("name", WITH_TEMPLATE)
@settings(max_examples=10, deadline=None)
@given(turns=talks, response=words)
def test_decoded_tokens_with_their_prompt_give_the_ids_and_span_of_the_messages(
    name, turns, response
):
    renderer = RENDERERS[name]
    answer = conversation(turns, response)
    want = renderer.render(answer)
    query = renderer.text(want.ids)

    with_prompt = read_text(renderer, query, prompt_text=prompt_text(renderer, answer))
    assert with_prompt.rendered == want
    assert with_prompt.is_unfinished is False
    assert read_text(renderer, query).rendered == want


@pytest.mark.parametrize("name", ["chatml", "chatml_bos", "llama3", "qwen2", "gemma", "smollm2"])
@settings(max_examples=10, deadline=None)
@given(turns=talks, response=words, share=st.floats(0, 1))
def test_a_prompt_that_was_cut_on_the_left_leaves_the_answer_and_the_kept_end_of_it(
    name, turns, response, share
):
    renderer = RENDERERS[name]
    answer = conversation(turns, response)
    want = renderer.render(answer)
    # At least what opens the answer stays: `<|im_start|>assistant\n` and the like.
    opening = len(renderer.encode(renderer.frame.openings[0]))
    n_dropped = int(share * (want.start - opening))
    kept = want.ids[n_dropped:]
    query = renderer.text(kept)

    got = read_text(renderer, query, prompt_text=prompt_text(renderer, answer)).rendered

    assert got.ids[got.start :] == want.ids[want.start :]
    assert got.stop - got.start == want.stop - want.start
    n_bos = renderer.n_bos
    assert got.ids[:n_bos] == want.ids[:n_bos]
    # Half of a character at the cut was shown as U+FFFD and is what no tokenizer gives back.
    assert renderer.text(got.ids[n_bos : got.start]).lstrip("\ufffd") in renderer.text(
        want.ids[: want.start]
    )


def test_a_cut_between_tokens_of_single_bytes_is_the_messages_cut_to_the_context():
    renderer = RENDERERS["chatml_bos"]
    answer = Answer.of("tell me everything about the number four", "It is 2+2.")
    whole = renderer.render(answer)
    # <s> <|im_start|> u s e r \n t e l l _ : the trainer keeps all but the first 12 of them.
    query = renderer.text(whole.ids[12:])

    got = read_text(renderer, query, prompt_text=prompt_text(renderer, answer))

    assert got.rendered.ids == (whole.ids[0], *whole.ids[12:])
    assert got.rendered.start == whole.start - 11
    assert got.warnings == ()


@pytest.mark.parametrize("name", WRITES_ALIKE)
@pytest.mark.parametrize("case", ["single", "system", "multi_turn", "unicode", "tools", "empty"])
def test_every_kind_of_conversation_survives_its_text(name, case):
    renderer, answer = RENDERERS[name], CASES[case]
    try:
        want = renderer.render(answer)
        text = whole_text(renderer, answer)
    except (RenderError, TemplateError) as error:
        pytest.skip(f"the template refuses it: {error}")

    got = read_text(renderer, text)

    assert got.rendered == want


@pytest.mark.parametrize("name", WITH_TEMPLATE)
@settings(max_examples=8, deadline=None)
@given(turns=talks, response=words)
def test_ids_of_messages_give_their_own_span(name, turns, response):
    renderer = RENDERERS[name]
    want = renderer.render(conversation(turns, response))

    known = read_ids(renderer, want.ids, n_prompt_tokens=want.start)

    assert known.rendered == want
    assert known.warnings == ()
    assert read_ids(renderer, want.ids).rendered == want


# BOS


@pytest.mark.parametrize(("n_bos", "n_warnings"), [(0, 0), (1, 0), (2, 1), (3, 1)])
@pytest.mark.parametrize("name", ["llama3", "gemma", "chatml_bos", "zephyr"])
def test_a02_any_number_of_bos_gives_the_same_ids_and_a_warning_for_too_many(
    name, n_bos, n_warnings
):
    renderer = RENDERERS[name]
    answer = Answer.of("2+2?", "the 4")
    text = renderer.tokenizer.bos_token * n_bos + without_bos(
        renderer, whole_text(renderer, answer)
    )

    got = read_text(renderer, text)

    assert got.rendered == renderer.render(answer)
    assert len(got.warnings) == n_warnings
    assert all(f"two_bos: got {n_bos} BOS" in warning for warning in got.warnings)


def test_a02_two_bos_are_refused_when_strict():
    renderer = RENDERERS["llama3"]
    text = renderer.tokenizer.bos_token + whole_text(renderer, Answer.of("2+2?", "4"))

    with pytest.raises(RenderError, match=r"got 2 BOS tokens \('<\|begin_of_text\|>'\)"):
        read_text(renderer, text, is_strict=True)


def test_a_bos_that_only_the_template_writes_is_added_with_a_warning():
    # verl takes `<|im_start|>` off SmolLM2's ChatML, since it is the BOS there, and no engine adds it.
    renderer = RENDERERS["smollm2"]
    answer = Answer.of("2+2?", "4")
    text = without_bos(renderer, whole_text(renderer, answer))
    assert text.startswith("system\n")

    got = read_text(renderer, text)

    assert got.rendered == renderer.render(answer)
    assert [w.split(":")[0] for w in got.warnings] == ["bos_added"]


def test_a_bos_that_messages_do_not_have_stays_with_a_warning():
    renderer = RENDERERS["phi3"]
    got = read_text(renderer, "<s>" + whole_text(renderer, Answer.of("2+2?", "4")))

    assert got.rendered.ids[0] == renderer.tokenizer.bos_token_id
    assert [w.split(":")[0] for w in got.warnings] == ["bos_unusual"]


def test_to_ids_nothing_is_added_and_a_missing_bos_is_told():
    renderer = RENDERERS["llama3"]
    want = renderer.render(Answer.of("2+2?", "4"))

    got = read_ids(renderer, want.ids[1:])

    assert got.rendered.ids == want.ids[1:]
    assert got.rendered.start == want.start - 1
    assert [w.split(":")[0] for w in got.warnings] == ["bos_missing"]


def test_a_second_bos_in_ids_is_dropped_and_the_prompt_counted_without_it():
    renderer = RENDERERS["llama3"]
    want = renderer.render(Answer.of("2+2?", "4"))
    ids = (want.ids[0], *want.ids)

    got = read_ids(renderer, ids, n_prompt_tokens=want.start + 1)

    assert got.rendered == want
    assert got.warnings[0].startswith("two_bos")
    with pytest.raises(RenderError, match="got 2 BOS"):
        read_ids(renderer, ids, is_strict=True)


# End


def test_an_answer_cut_by_its_length_is_scored_as_it_stands_and_unfinished():
    renderer = RENDERERS["chatml_bos"]
    answer = Answer(Prompt.of("2+2?"), "the 4 is", "p", finished=False)
    want = renderer.render(answer)

    got = read_text(renderer, renderer.text(want.ids), prompt_text=prompt_text(renderer, answer))

    assert got.rendered == want
    assert got.is_unfinished is True
    assert [w.split(":")[0] for w in got.warnings] == ["eos_missing"]
    by_ids = read_ids(renderer, want.ids, n_prompt_tokens=want.start)
    assert (by_ids.rendered, by_ids.is_unfinished) == (want, True)


def test_a_template_without_end_tokens_gets_the_end_that_messages_get():
    renderer = RENDERERS["falcon"]
    got = read_text(renderer, "User: 2+2?\n\nAssistant: the 4")

    assert got.rendered == renderer.render(Answer.of("2+2?", "the 4"))
    assert got.is_unfinished is None
    assert [w.split(":")[0] for w in got.warnings] == ["eos_added"]


@pytest.mark.parametrize("behind", ["", "\n", "<|im_end|>", "<|im_end|>\n", "<pad><pad>", " \n "])
def test_what_stands_behind_the_end_of_turn_changes_nothing(behind):
    renderer = RENDERERS["chatml"]
    answer = Answer.of("2+2?", "4")
    want = renderer.render(answer)
    text = renderer.text(want.ids) + behind

    assert read_text(renderer, text).rendered == want
    assert read_text(renderer, text, prompt_text=prompt_text(renderer, answer)).rendered == want
    ids = want.ids + renderer.encode(behind)
    assert read_ids(renderer, ids, n_prompt_tokens=want.start).rendered == want
    assert read_ids(renderer, ids).rendered == want


def test_text_behind_the_end_is_judged_with_a_warning_or_refused_when_strict():
    renderer = RENDERERS["chatml"]
    text = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>more<|im_end|>\n"

    got = read_text(renderer, text)

    # '4', the end, 'm', 'o', 'r', 'e', the end
    assert got.rendered.n_response == 7
    assert [w.split(":")[0] for w in got.warnings] == ["text_behind_end"]
    with pytest.raises(RenderError, match="goes on behind its end-of-turn token"):
        read_text(renderer, text, is_strict=True)
    ids = renderer.encode(text)
    assert read_ids(renderer, ids).rendered == got.rendered
    with pytest.raises(RenderError, match="goes on behind its end-of-turn token"):
        read_ids(renderer, ids, is_strict=True)


def test_an_uncounted_end_is_in_the_ids_and_not_judged():
    renderer = RENDERERS["uncounted"]
    answer = Answer.of("2+2?", "4")
    got = read_text(renderer, whole_text(renderer, answer)).rendered

    assert got == renderer.render(answer)
    assert got.stop == len(got.ids) - 1


def test_an_empty_answer_without_a_counted_end_is_refused():
    renderer = RENDERERS["uncounted"]
    with pytest.raises(RenderError, match="without a token to judge"):
        read_text(renderer, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n")


# Border


def test_a_rollout_of_several_turns_has_its_last_turn_judged():
    renderer = RENDERERS["chatml"]
    first = prompt_text(renderer, Answer.of("2+2?", ""))
    text = (
        f"{first}let me see<|im_end|>\n<|im_start|>tool\n4<|im_end|>\n<|im_start|>assistant\n"
        "It is 4<|im_end|>\n"
    )
    messages = (
        Message("user", "2+2?"),
        Message("assistant", "let me see"),
        Message("tool", "4"),
    )

    got = read_text(renderer, text, prompt_text=first)

    assert got.rendered == renderer.render(Answer(Prompt(messages), "It is 4", "p"))
    assert [w.split(":")[0] for w in got.warnings] == ["several_turns"]


def test_a_prompt_that_is_not_in_the_text_is_told_or_refused_when_strict():
    renderer = RENDERERS["chatml"]
    text = whole_text(renderer, Answer.of("2+2?", "4"))
    other = prompt_text(renderer, Answer.of("Who was Ada?", ""))

    # Only `<|im_start|>...`: the texts share their first letters, which is no overlap with an end.
    got = read_text(renderer, text, prompt_text=other)

    assert got.rendered == renderer.render(Answer.of("2+2?", "4"))
    assert got.warnings[0].startswith("prompt_not_found")
    with pytest.raises(RenderError, match="does not begin with its prompt"):
        read_text(renderer, text, prompt_text=other, is_strict=True)


def test_without_a_template_the_prompt_text_tells_where_the_answer_begins():
    renderer = RENDERERS["plain"]
    got = read_text(renderer, "2+2?\nthe 4<|endoftext|>", prompt_text="2+2?\n")

    assert got.rendered == renderer.render(Answer.of("2+2?", "the 4"))


def test_an_unknown_beginning_is_refused_unless_only_the_last_token_is_read():
    renderer = RENDERERS["chatml"]
    text = "What is the capital of China?\nBeijing.<|im_end|>"

    with pytest.raises(
        RenderError, match=r"beginning was not found.*Expected messages, or the prompt"
    ):
        read_text(renderer, text)
    got = read_text(renderer, text, needs_span=False)

    # 29 letters, a line break, 8 letters and the end: 39 tokens.
    assert got.rendered.ids == renderer.encode(text)
    assert (got.rendered.start, got.rendered.stop) == (38, 39)
    assert not got.span_is_known
    assert any(w.startswith("span_unknown") for w in got.warnings)
    with pytest.raises(RenderError, match="number of its tokens"):
        read_ids(renderer, renderer.encode(text))
    assert read_ids(renderer, renderer.encode(text), needs_span=False).rendered == got.rendered


def test_an_opening_in_plain_words_that_stands_twice_is_doubtful():
    renderer = RENDERERS["falcon"]
    text = "User: hi\n\nAssistant: 4\n\nUser: again\n\nAssistant: 5"

    assert "span_doubtful" in " ".join(read_text(renderer, text).warnings)
    with pytest.raises(RenderError, match="in words that an answer may hold"):
        read_text(renderer, text, is_strict=True)


def test_what_a_template_writes_before_every_answer_is_no_answer():
    renderer = ChatRenderer(tiny_tokenizer(template=THINKING))
    answer = Answer.of("2+2?", "4")
    text = whole_text(renderer, answer)
    assert "<think>\n\n</think>\n\n4" in text

    got = read_text(renderer, text)

    assert got.rendered == renderer.render(answer)
    assert [w.split(":")[0] for w in got.warnings] == ["glue_dropped"]
    # A trainer that says where its prompt ends sampled those words itself.
    sampled = read_text(renderer, text, prompt_text=prompt_text(renderer, answer))
    assert renderer.text(sampled.rendered.ids[sampled.rendered.start :]).startswith("<think>")


def test_a_template_that_rewrites_its_prompt_is_told():
    renderer = RENDERERS["deepseek"]
    got = read_text(renderer, whole_text(renderer, Answer.of("2+2?", "the 4")))

    assert renderer.decode(got.rendered.ids[got.rendered.start : got.rendered.stop]) == "the 4"
    assert [w.split(":")[0] for w in got.warnings] == ["prompt_differs"]


# The toy, classifiers, refusals


def test_the_toy_reads_its_own_text():
    renderer = FakeRenderer()
    want = renderer.render(Answer.of("2 + 2? é", "4"))
    text = renderer.text(want.ids)

    assert text == "<bos><turn>user\n2 + 2? é<end><turn>assistant\n4<end>"
    for sent in (text, text.removeprefix("<bos>")):
        assert read_text(renderer, sent).rendered == want
    assert read_ids(renderer, want.ids).rendered == want
    assert want.ids[0] == BOS
    assert want.ids[-1] == END


@pytest.mark.parametrize("name", WITH_TEMPLATE)
@pytest.mark.parametrize("case", ["single", "multi_turn", "unicode", "cut"])
def test_whole_conversations_keep_what_stands_behind_their_end(name, case):
    renderer, answer = RENDERERS[name], CASES[case]
    text = whole_text(renderer, answer)
    want = renderer.render_finished(answer).ids

    for sent in (text, without_bos(renderer, text), want):
        got = read_whole(renderer, sent)
        assert got.rendered.ids == want
        assert got.rendered.stop == len(want)


def test_a_whole_conversation_is_cut_before_its_answer_where_that_is_found():
    renderer = RENDERERS["chatml_bos"]
    answer = Answer.of("2+2?", "4")
    text = whole_text(renderer, answer)

    assert read_whole(renderer, text).rendered.start == renderer.render(answer).start
    assert read_whole(renderer, text).is_unfinished is False
    bare = read_whole(renderer, "no turns at all")
    # BOS and 15 letters.
    assert (bare.rendered.start, bare.rendered.stop) == (15, 16)
    assert not bare.span_is_known
    with pytest.raises(RenderError, match="got 2 BOS"):
        read_whole(renderer, "<s><s>" + text, is_strict=True)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([5], "got 1 token ids"),
        ([1, 99999], "token id 99999; the vocabulary has ids 0 to"),
        ([1, -1], "token id -1"),
        ([256, 256, 1, 2], "begin with padding"),
    ],
)
def test_impossible_ids_are_refused(ids, message):
    with pytest.raises(RenderError, match=message):
        read_ids(RENDERERS["chatml"], ids)


@pytest.mark.parametrize("n", [0, -1, 4, 5])
def test_a_prompt_of_no_or_all_tokens_is_refused(n):
    with pytest.raises(RenderError, match=f"got {n} prompt tokens of 4 ids"):
        read_ids(RENDERERS["chatml"], [1, 2, 3, 4], n_prompt_tokens=n)


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_text_is_refused(text):
    with pytest.raises(RenderError, match="empty text"):
        read_text(RENDERERS["chatml"], text)


def test_code_points_that_are_no_characters_are_refused():
    # They mark quoted control strings inside of the renderer.
    text = "<|im_start|>user\n\ufdd0<|im_end|>\ufdd1<|im_end|>\n<|im_start|>assistant\n4<|im_end|>"
    with pytest.raises(RenderError, match=r"U\+FDD0"):
        read_text(RENDERERS["chatml"], text)


@settings(max_examples=40, deadline=None)
@given(st.text("ab", max_size=12), st.text("ab", max_size=12))
def test_the_overlap_is_the_longest_beginning_that_ends_the_prompt(text, prompt):
    sizes = range(min(len(text), len(prompt)) + 1)
    plain = max(k for k in sizes if text[:k] == prompt[len(prompt) - k :])

    assert overlap(text, prompt) == plain


def test_a_short_overlap_without_an_opening_is_no_prompt():
    renderer = RENDERERS["plain"]
    prompt = "x" * 100 + "abc"
    with pytest.raises(RenderError, match="beginning was not found"):
        read_text(renderer, "abc and more", prompt_text=prompt)
    longer = "y" * 50 + "z" * MIN_OVERLAP
    got = read_text(renderer, "z" * MIN_OVERLAP + "answer", prompt_text=longer)
    assert got.rendered.start == MIN_OVERLAP


def test_tools_in_the_prompt_are_part_of_the_text():
    renderer = RENDERERS["qwen2"]
    answer = Answer(Prompt((Message("user", "2+2?"),), (TOOL,)), "4", "p")

    assert read_text(renderer, whole_text(renderer, answer)).rendered == renderer.render(answer)


# Long texts

PIECES = st.lists(
    st.sampled_from(["<|im_end|>", "</s>", "<pad>", " ", "\n", "x", "<|im_end", "|>"]), max_size=12
)


@settings(max_examples=40, deadline=None)
@given(pieces=PIECES)
def test_the_last_end_is_the_first_with_nothing_but_ends_padding_and_space_behind(pieces):
    frame, text = RENDERERS["chatml"].frame, "".join(pieces)
    names = "|".join(map(re.escape, frame.ends))
    plain = re.search(f"({names}){frame.junk.pattern}", text)

    got = frame.last_end(text)

    assert (got and got.span(1)) == (plain and plain.span(1))


def test_a_text_of_nothing_but_control_tokens_takes_no_longer_than_its_length_asks_for():
    """With a search from each of them, or a copy for each, this would take hours."""
    renderer = RENDERERS["chatml_bos"]
    n = 300_000

    assert renderer.frame.last_end("<|im_end|>\n" * n + "x") is None
    body = "<|im_start|>assistant\n4<|im_end|>"
    got = read_text(renderer, "<s>" * n + body)
    assert got.rendered == read_text(renderer, body).rendered
    assert got.warnings[0].startswith(f"two_bos: got {n} BOS tokens")
