"""Rendering: token ids and answer spans, over ten template families and two kinds of tokenizer.

The templates in tests/golden/templates are our own writings of public formats. The recorded ids in
ids.json are rewritten by `python tests/unit/test_render.py`; review the decoded texts beside them.
"""

import json
import threading

import pytest
from chat_families import (
    ASK,
    CASES,
    FAMILIES,
    SYSTEM,
    TALK,
    TEMPLATES,
    TOOL,
    byte_level,
    family,
    make_tokenizer,
    sentence_piece,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_tokenizer
from transformers import PreTrainedTokenizerFast

from retrm.backbone.base import Rendered
from retrm.backbone.render import ChatRenderer, fit_to_context
from retrm.errors import BackboneError, OverlongError, RenderError
from retrm.records import Answer, Message, Prompt

# Written by hand from the public formats; "{}" is the question, then the answer with its end.
FORMATS = {
    "llama3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n2+2?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "the 4<|eot_id|>",
    ),
    "qwen2": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n"
        "<|im_start|>assistant\n",
        "the 4<|im_end|>",
    ),
    "smollm2": (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n",
        "the 4<|im_end|>",
    ),
    "gemma": (
        "<bos><start_of_turn>user\n2+2?<end_of_turn>\n<start_of_turn>model\n",
        "the 4<end_of_turn>",
    ),
    # The answer's first token is "▁the"; decoders of this kind drop the first space of a text.
    "mistral": ("<s>[INST] 2+2?[/INST]", "the 4</s>"),
    # Phi-3's control tokens swallow the line break behind them.
    "phi3": ("<|user|>2+2?<|end|><|assistant|>", "the 4<|end|>"),
    # A tokenizer of the old SentencePiece kind puts a space behind every control token.
    "zephyr": ("<s> <|user|>\n2+2?</s> \n<|assistant|>\n", "the 4</s>"),
    "tulu": ("<|endoftext|><|user|>\n2+2?\n<|assistant|>\n", "the 4<|endoftext|>"),
    "falcon": ("User: 2+2?\n\nAssistant:", " the 4<|endoftext|>"),
    "deepseek": (
        "<｜begin▁of▁sentence｜><｜User｜>2+2?<｜Assistant｜><think>\n",
        "the 4<｜end▁of▁sentence｜>",
    ),
    "plain": ("2+2?\n", "the 4<|endoftext|>"),
}


def recorded() -> dict:
    return json.loads((TEMPLATES / "ids.json").read_text("utf-8"))


def observe(name: str, case: str) -> dict:
    renderer = ChatRenderer(family(name))
    try:
        got = renderer.render(CASES[case])
    except RenderError as error:
        return {"refused": str(error)}
    decode = renderer.tokenizer.decode
    return {
        "prompt": list(got.ids[: got.start]),
        "answer": list(got.ids[got.start :]),
        "reads": [decode(got.ids[: got.start]), decode(got.ids[got.start : got.stop])],
    }


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", FAMILIES)
def test_a03_ids_of_every_family_and_case_equal_the_recorded_ones(name, case):
    assert observe(name, case) == recorded()[name][case]


@pytest.mark.parametrize("name", FAMILIES)
def test_a03_a_single_question_reads_as_the_familys_public_format(name):
    assert tuple(observe(name, "single")["reads"]) == FORMATS[name]


def shown_glue(name: str) -> str:
    """White space of the template's own that a decoded answer begins with."""
    return " " if name == "falcon" else ""


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", FAMILIES)
def test_a04_the_span_decodes_to_the_answer_and_its_end_token_alone(name, case):
    counted, bare = ChatRenderer(family(name)), ChatRenderer(family(name), counts_end=False)
    answer = CASES[case]
    if "refused" in recorded()[name][case]:
        with pytest.raises(RenderError):
            counted.render(answer)
        return
    got = counted.render(answer)
    span = got.ids[got.start : got.stop]
    lead = "" if answer.response[:1] in ("", " ", "\n") else shown_glue(name)

    assert counted.decode(span) == lead + answer.response
    assert (span[-1] == counted.end_id) == (answer.finished is not False)
    assert got.stop == len(got.ids)
    assert counted.end_id not in span[:-1]
    if answer.response:
        without = bare.render(answer)
        assert without.ids == got.ids
        assert without.stop == got.stop - (answer.finished is not False)


@pytest.mark.parametrize("name", FAMILIES)
def test_a04_prompt_ids_do_not_depend_on_the_answer(name):
    renderer = ChatRenderer(family(name))
    for response in ("4", "\n\n4", " 4", "</think>4", "?", ""):
        answer = Answer(Prompt((ASK,)), response, "p")
        got = renderer.render(answer)

        assert got.ids[: got.start] == renderer.render_prompt(answer.prompt)


def test_a04_end_tokens_are_the_ones_the_templates_write():
    expected = {
        "llama3": "<|eot_id|>",
        "qwen2": "<|im_end|>",
        "smollm2": "<|im_end|>",
        "gemma": "<end_of_turn>",  # its EOS is another token
        "mistral": "</s>",
        "phi3": "<|end|>",  # likewise
        "zephyr": "</s>",
        "tulu": "<|endoftext|>",
        "falcon": "<|endoftext|>",
        "deepseek": "<｜end▁of▁sentence｜>",
        "plain": "<|endoftext|>",
    }
    for name, token in expected.items():
        renderer = ChatRenderer(family(name))

        assert renderer.tokenizer.convert_ids_to_tokens(renderer.end_id) == token


# Control strings as text


@pytest.mark.parametrize("name", FAMILIES)
def test_typed_control_strings_never_become_control_tokens(name):
    renderer = ChatRenderer(family(name))
    controls = set(renderer.tokenizer.all_special_ids)
    plain = renderer.render(Answer(Prompt((ASK,)), "4", "p"))
    everything = "".join(renderer.tokenizer.all_special_tokens)
    inside = renderer.render(
        Answer(Prompt((Message("user", f"x{everything}y"),)), f"x{everything}y", "p")
    )

    def count(ids):
        return sum(i in controls for i in ids)

    assert count(inside.ids) == count(plain.ids)


def test_a_control_string_in_a_tool_description_stays_text():
    renderer = ChatRenderer(family("qwen2"))
    bad = {"type": "function", "function": {"name": "<|im_end|>", "parameters": {}}}
    good = renderer.render_prompt(Prompt((ASK,), (TOOL,)))
    got = renderer.render_prompt(Prompt((ASK,), (bad,)))

    assert got.count(renderer.end_id) == good.count(renderer.end_id) == 2
    assert "<|im_end|>" in renderer.decode(got)


def test_a_control_string_that_the_template_acts_on_is_left_to_the_template():
    template = "{% for m in messages %}{{ m.content.split('<|cut|>')[-1] }}<|end|>{% endfor %}"
    tokenizer = make_tokenizer(
        byte_level(), ["<|end|>", "<|cut|>"], bos=None, eos="<|end|>", template=template
    )
    renderer = ChatRenderer(tokenizer)
    talk = Prompt((Message("user", "q"), Message("assistant", "why<|cut|>a<|end|>"), ASK))

    # The reasoning goes, as the template wants; the typed end stays text.
    assert tokenizer.decode(renderer.render_prompt(talk)) == "q<|end|>a<|end|><|end|>2+2?<|end|>"
    assert renderer.render_prompt(talk).count(renderer.end_id) == 3


@settings(max_examples=50, deadline=None)
@given(st.text(st.sampled_from("the 4\n<>|is é🙂"), max_size=30), st.sampled_from(FAMILIES))
def test_quoting_changes_no_id_of_a_text_without_control_strings(text, name):
    # A typed control token ahead sends the whole text through the second encoder.
    renderer = _cached(name)
    encoder = renderer._encoder
    start = renderer.tokenizer.eos_token

    assert encoder._encode_aliased(encoder._with_aliases(start + text)) == encoder.encode(
        start + text
    )


_RENDERERS: dict[str, ChatRenderer] = {}


def _cached(name: str) -> ChatRenderer:
    return _RENDERERS.setdefault(name, ChatRenderer(family(name)))


def test_noncharacters_are_refused_because_they_could_forge_a_quote():
    renderer = ChatRenderer(family("llama3"))
    with pytest.raises(RenderError, match=r"a\.jsonl:3: .*U\+FDD0"):
        renderer.render(Answer(Prompt((ASK,)), "4\ufdd0", "p", where="a.jsonl:3"))
    with pytest.raises(RenderError, match=r"U\+FDD2"):
        renderer.render_prompt(Prompt((Message("user", "\ufdd2"),)))


# The border between prompt and answer


def test_an_answer_that_would_merge_into_the_prompt_is_tokenised_alone():
    renderer = ChatRenderer(family("smollm2"))
    backend = renderer.tokenizer.backend_tokenizer
    got = renderer.render(Answer(Prompt((ASK,)), "\n4", "p"))

    # "\n\n" is one token of this vocabulary, yet the prompt keeps its own "\n".
    assert backend.encode("\n\n", add_special_tokens=False).tokens == ["ĊĊ"]
    assert backend.id_to_token(got.ids[got.start - 1]) == "Ċ"
    assert [backend.id_to_token(i) for i in got.ids[got.start : got.stop]] == [
        "Ċ",
        "4",
        "<|im_end|>",
    ]


def test_white_space_that_a_control_token_would_swallow_stays_in_the_answer():
    renderer = ChatRenderer(family("phi3"))
    got = renderer.render(Answer(Prompt((ASK,)), "\n 4", "p"))

    assert renderer.decode(got.ids[got.start : got.stop]) == "\n 4"


@pytest.mark.parametrize("scheme", ["first", "legacy"])
def test_the_space_before_a_mistral_answer_is_one_token_whoever_writes_it(scheme):
    # Either the template's space or the tokenizer's own, never both: "▁4" as the model samples it.
    tokenizer = make_tokenizer(
        sentence_piece(scheme),
        ["<s>", "</s>", "[INST]", "[/INST]"],
        bos="<s>",
        eos="</s>",
        adds_bos=True,
        template=(TEMPLATES / "mistral.jinja").read_text("utf-8"),
    )
    got = ChatRenderer(tokenizer).render(Answer(Prompt((ASK,)), "4", "p"))

    assert tokenizer.convert_ids_to_tokens(got.ids[got.start :]) == ["▁4", "</s>"]


def test_an_answer_with_its_own_leading_space_gets_no_second_one():
    renderer = ChatRenderer(family("falcon"))
    one, two = (renderer.render(Answer(Prompt((ASK,)), text, "p")) for text in ("4", " 4"))

    assert one == two


# BOS, padding, end of turn


BODY = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|end|>{% endfor %}"
PADDING_TEMPLATES = {
    "template": "<s>" + BODY,
    "tokenizer": BODY,
    "both": "<s>" + BODY,
    "none": BODY,
}


def padding_tokenizer(bos: str, pad: str) -> PreTrainedTokenizerFast:
    return make_tokenizer(
        byte_level(),
        ["<s>", "<|end|>", "<pad>"],
        bos=None if bos == "none" else "<s>",
        eos="<|end|>",
        pad="<|end|>" if pad == "equal" else "<pad>",
        adds_bos=bos in ("tokenizer", "both"),
        template=PADDING_TEMPLATES[bos],
    )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("ending", ["finished", "unknown", "cut", "ids", "ids_end", "ids_padded"])
@pytest.mark.parametrize("pad", ["equal", "distinct"])
@pytest.mark.parametrize("bos", ["template", "tokenizer", "both", "none"])
def test_a01_a02_one_bos_and_the_same_span_whatever_the_padding(bos, pad, ending, side):
    tokenizer = padding_tokenizer(bos, pad)
    tokenizer.padding_side = side
    beginning, end = tokenizer.convert_tokens_to_ids(["<s>", "<|end|>"])
    four = tokenizer.convert_tokens_to_ids("4")
    ids = {
        "ids": (four,),
        "ids_end": (four, end),
        "ids_padded": (four, end, tokenizer.pad_token_id, tokenizer.pad_token_id),
    }.get(ending)
    finished = {"finished": True, "cut": False}.get(ending)
    got = ChatRenderer(tokenizer).render(Answer(Prompt((ASK,)), "4", "p", ids, finished))

    asked = tokenizer.encode("[user]2+2?<|end|>", add_special_tokens=False)
    expected = [beginning] * (bos != "none") + asked
    assert list(got.ids[: got.start]) == expected
    assert got.ids[got.start : got.stop] == ((four,) if ending == "cut" else (four, end))
    assert got.stop == len(got.ids)


def test_a02_two_bos_in_the_template_are_refused():
    tokenizer = padding_tokenizer("both", "distinct")
    tokenizer.chat_template = "<s>" + tokenizer.chat_template

    with pytest.raises(RenderError, match="two BOS"):
        ChatRenderer(tokenizer).render(CASES["single"])


def test_sampled_ids_are_scored_as_sampled_even_where_text_gives_others():
    renderer = ChatRenderer(family("llama3"))
    t, h, e = renderer.tokenizer.convert_tokens_to_ids(["t", "h", "e"])
    answer = Answer(Prompt((ASK,)), "the", "p", response_ids=(t, h, e))
    got = renderer.render(answer)

    assert got.ids[got.start : got.stop] == (t, h, e, renderer.end_id)
    assert len(renderer.render(Answer(Prompt((ASK,)), "the", "p")).ids) == len(got.ids) - 1


def test_sampled_ids_without_an_end_stay_without_one_when_the_answer_was_cut():
    renderer = ChatRenderer(family("llama3"))
    got = renderer.render(Answer(Prompt((ASK,)), "4", "p", response_ids=(5,), finished=False))

    assert got.ids[got.start :] == (5,)


def test_an_eos_other_than_the_templates_end_closes_sampled_ids_and_gets_no_second_end():
    renderer = ChatRenderer(family("gemma"))
    eos = renderer.tokenizer.eos_token_id
    got = renderer.render(Answer(Prompt((ASK,)), "4", "p", response_ids=(300, eos)))

    assert got.ids[got.start :] == (300, eos)
    assert renderer.end_ids == {eos, renderer.end_id}
    assert eos != renderer.end_id


def test_sampled_ids_that_go_on_behind_the_end_are_refused_with_the_place():
    renderer = ChatRenderer(family("llama3"))
    ids = (5, renderer.end_id, 6)
    with pytest.raises(RenderError, match=r"x:1: .*go on with 6 .* position 1"):
        renderer.render(Answer(Prompt((ASK,)), "4", "p", response_ids=ids, where="x:1"))


@pytest.mark.parametrize("wrong", [-1, 10_000])
def test_sampled_ids_of_another_vocabulary_are_refused(wrong):
    renderer = ChatRenderer(family("llama3"))
    with pytest.raises(
        RenderError, match=f"response_ids with {wrong}; the vocabulary has ids 0 to"
    ):
        renderer.render(Answer(Prompt((ASK,)), "4", "p", response_ids=(5, wrong)))


@pytest.mark.parametrize(("counts_end", "finished"), [(False, True), (True, False)])
def test_an_answer_without_a_judged_token_is_refused(counts_end, finished):
    renderer = ChatRenderer(family("llama3"), counts_end=counts_end)
    with pytest.raises(RenderError, match="without a token to judge"):
        renderer.render(Answer(Prompt((ASK,)), "", "p", finished=finished))


# What templates refuse or lose


def test_a_system_turn_refused_by_the_template_is_explained():
    with pytest.raises(
        RenderError, match=r"refuses a system turn: System role not supported\. Put"
    ):
        ChatRenderer(family("gemma")).render_prompt(Prompt(SYSTEM))


def test_turns_in_a_refused_order_are_listed():
    twice = Prompt((ASK, ASK))
    with pytest.raises(RenderError, match=r"\(user, user\): Conversation roles must alternate"):
        ChatRenderer(family("gemma")).render_prompt(twice)


def test_tools_that_the_template_would_drop_in_silence_are_refused():
    with pytest.raises(RenderError, match="leaves out the 1 tools"):
        ChatRenderer(family("smollm2")).render_prompt(Prompt((ASK,), (TOOL,)))


@pytest.mark.parametrize("content", ["Be brief.", "2"])
def test_a_turn_that_the_template_would_drop_in_silence_is_refused(content):
    # "2" stands in the question too: finding the text is no proof that the turn was kept.
    prompt = Prompt((Message("developer", content), ASK))
    with pytest.raises(RenderError, match=r"leaves out turn 1 \(role developer\)"):
        ChatRenderer(family("phi3")).render_prompt(prompt)


@pytest.mark.parametrize("role", ["tool", "developer"])
def test_one_lost_turn_among_many_is_named(role):
    template = (
        "{% for m in messages %}{% if m['role'] != 'developer' and not (m['role'] == 'tool' and "
        "loop.index == 5) %}{{ m['role'] }}: {{ m['content'] }}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    turns = (ASK, *(Message("tool", "3") for _ in range(6)))
    at = 5 if role == "tool" else 8

    with pytest.raises(RenderError, match=rf"leaves out turn {at} \(role {role}\)"):
        extra = () if role == "tool" else (Message(role, "3"),)
        kept = turns if role == "tool" else (ASK,) * 7
        ChatRenderer(tiny_tokenizer(template=template)).render_prompt(Prompt((*kept, *extra)))


def test_a_long_rollout_with_tools_is_rendered_a_few_times_and_not_once_for_each_turn(monkeypatch):
    renderer = ChatRenderer(family("qwen2"))
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": "1"}}}
    steps = (Message("assistant", "", tool_calls=(call,)), Message("tool", "3"))
    renderer.render_prompt(Prompt((ASK, *steps), (TOOL,)))  # what is found out once
    asked = []
    plain = renderer._apply
    monkeypatch.setattr(renderer, "_apply", lambda *a, **o: asked.append(1) or plain(*a, **o))

    renderer.render_prompt(Prompt((ASK, *steps * 40), (TOOL,)))

    assert len(asked) <= 6  # 40 calls and 40 results


def test_one_lost_tool_call_among_many_is_named():
    template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}"
        "{% for c in m['tool_calls'] or [] %}{% if loop.index0 == 0 and m['content'] != 'two' %}"
        "{{ c['function']['name'] }}{% endif %}{% endfor %}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    turns = [ASK]
    for said in ("one", "two", "three"):
        turns += [Message("assistant", said, tool_calls=(call,)), Message("tool", "3")]

    with pytest.raises(RenderError, match="leaves out the tool calls of turn 4"):
        ChatRenderer(tiny_tokenizer(template=template)).render_prompt(Prompt(tuple(turns)))


def test_reasoning_taken_out_of_an_earlier_turn_is_no_loss():
    renderer = ChatRenderer(family("deepseek"))
    text = renderer.decode(renderer.render_prompt(Prompt(TALK)))

    assert "so" not in text
    assert "the hi" in text


def test_an_unknown_role_offers_the_nearest():
    with pytest.raises(RenderError, match=r"'asistant'\. Did you mean 'assistant'"):
        ChatRenderer(family("llama3")).render_prompt(Prompt((Message("asistant", "x"), ASK)))


def test_a_prompt_that_ends_with_an_assistant_turn_is_refused():
    with pytest.raises(RenderError, match="ends with an assistant turn"):
        ChatRenderer(family("llama3")).render_prompt(Prompt(TALK[:2]))


def test_a_prompt_without_messages_is_refused():
    with pytest.raises(RenderError, match="without messages"):
        ChatRenderer(family("llama3")).render_prompt(Prompt(()))


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(BackboneError, match="expected a fast tokenizer"):
        ChatRenderer(object())


def test_a_template_that_is_no_conversation_template_is_refused_by_name():
    tokenizer = family("llama3")
    tokenizer.chat_template = "{{ raise_exception('no chat') }}"
    with pytest.raises(RenderError, match="no chat"):
        _ = ChatRenderer(tokenizer).end_id


# Template details


def test_differences_between_prompt_and_finished_turn_are_noted():
    assert ChatRenderer(family("llama3")).notes == ()
    assert "differently" in ChatRenderer(family("deepseek")).notes[0]
    tokenizer = family("smollm2")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    renderer = ChatRenderer(tokenizer)

    assert "'<think></think>' between" in renderer.notes[0]
    assert renderer.glue == ""


def test_a_template_that_asks_for_the_date_gives_the_same_ids_every_day():
    tokenizer = family("llama3")
    tokenizer.chat_template = (
        "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }} {{ strftime_now('%Y-%m-%d') }}"
        "{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    text = ChatRenderer(tokenizer).decode(ChatRenderer(tokenizer).render_prompt(Prompt((ASK,))))

    assert text == "26 Jul 2024 2024-07-262+2?"


def test_template_options_reach_the_template_and_its_text():
    tokenizer = family("llama3")
    tokenizer.chat_template = "{{ mode }}{% for m in messages %}{{ m.content }}{% endfor %}"
    renderer = ChatRenderer(tokenizer, template_options={"mode": "slow"})

    assert renderer.decode(renderer.render_prompt(Prompt((ASK,)))) == "slow2+2?"
    assert '"mode": "slow"' in renderer.template_text


def test_the_template_text_tells_templates_options_and_rules_apart():
    texts = {ChatRenderer(family(name)).template_text for name in FAMILIES}
    texts.add(ChatRenderer(family("llama3"), counts_end=False).template_text)

    assert len(texts) == len(FAMILIES) + 1
    assert "plain-v1" in ChatRenderer(family("plain")).template_text
    assert (
        ChatRenderer(family("gemma")).template_text == ChatRenderer(family("gemma")).template_text
    )


def test_candidates_of_different_prompts_do_not_share_a_prompt():
    renderer = ChatRenderer(family("llama3"))
    first, second, again = (renderer.render(Answer.of(q, "4")) for q in ("a", "b", "a"))

    assert first == again
    assert first != second


# Pieces

LETTERS = st.characters(exclude_categories=["Cs", "Cn"])


def test_pieces_put_a_character_at_the_last_of_its_tokens():
    renderer = ChatRenderer(family("llama3"))
    got = renderer.render(Answer(Prompt((ASK,)), "the €4", "p"))
    span = got.ids[got.start : got.stop]

    # "€" is three bytes, the first two of them one token; the end token has no text.
    assert renderer.pieces(span) == ["t", "he", " ", "", "€", "4", ""]


def test_pieces_of_a_character_that_was_cut_keep_the_decoded_text():
    renderer = ChatRenderer(family("llama3"))
    got = renderer.render(Answer(Prompt((ASK,)), "a€", "p", finished=False))
    span = got.ids[got.start : got.stop - 1]

    assert renderer.pieces(span) == ["a", "\ufffd"]
    assert renderer.pieces([]) == []


@settings(max_examples=50, deadline=None)
@given(st.text(LETTERS, max_size=12), st.sampled_from(FAMILIES))
def test_pieces_join_to_the_decoded_text(text, name):
    renderer = _cached(name)
    got = renderer.render_whole(Answer(Prompt((ASK,)), "x" + text, "p"))
    span = got.ids[got.start : got.stop]

    assert len(renderer.pieces(span)) == len(span)
    assert "".join(renderer.pieces(span)) == renderer.decode(span)


@settings(max_examples=50, deadline=None)
@given(st.text(LETTERS, max_size=12), st.sampled_from(FAMILIES))
def test_the_span_of_any_text_decodes_to_it(text, name):
    renderer = _cached(name)
    response = "x" + text.replace("▁", "")  # SentencePiece writes a space as this character
    got = renderer.render_whole(Answer(Prompt((ASK,)), response, "p"))

    assert renderer.decode(got.ids[got.start : got.stop]) == shown_glue(name) + response


# Length


LONG = Rendered(ids=tuple(range(10)), start=6, stop=9)


def test_an_over_long_answer_is_refused_with_tokens_limit_and_place():
    renderer = ChatRenderer(family("llama3"), context_length=28)
    answer = Answer(Prompt((ASK,)), "the 4", "p", where="rollouts.jsonl:12")
    # 25 tokens of prompt, three of answer, one end token: one too many.
    with pytest.raises(
        OverlongError,
        match=r"rollouts\.jsonl:12: got 29 tokens \(25 .*, 4 .*\); the context holds 28\.",
    ):
        renderer.render(answer)

    assert len(renderer.render_whole(answer).ids) == 29
    assert len(ChatRenderer(family("llama3"), context_length=29).render(answer).ids) == 29


def test_truncation_drops_the_oldest_prompt_tokens_behind_the_bos():
    # Two too many: 1 and 2 go, 0 is the BOS, the answer 6 7 8 (and 9 behind it) stays.
    assert fit_to_context(LONG, 8, "truncate_left", n_bos=1) == Rendered(
        (0, 3, 4, 5, 6, 7, 8, 9), 4, 7
    )
    assert fit_to_context(LONG, 8, "truncate_left", n_bos=0) == Rendered(tuple(range(2, 10)), 4, 7)


def test_truncation_by_the_renderer_keeps_its_bos_and_the_whole_answer():
    tokenizer = family("llama3")
    whole = ChatRenderer(tokenizer).render(CASES["multi_turn"])
    renderer = ChatRenderer(tokenizer, context_length=40, overlong="truncate_left")
    got = renderer.render(CASES["multi_turn"])

    assert len(got.ids) == 40
    assert got.ids[0] == tokenizer.bos_token_id
    assert got.ids[1:] == whole.ids[-39:]
    assert got.ids[got.start : got.stop] == whole.ids[whole.start : whole.stop]


@pytest.mark.parametrize(("n_bos", "smallest"), [(1, 5), (0, 5)])
def test_truncation_never_cuts_the_answer_and_leaves_one_token_before_it(n_bos, smallest):
    fitted = fit_to_context(LONG, smallest, "truncate_left", n_bos=n_bos)

    assert fitted.start == 1
    assert fitted.ids[1:] == (6, 7, 8, 9)
    with pytest.raises(OverlongError, match="never cut"):
        fit_to_context(LONG, smallest - 1, "truncate_left", n_bos=n_bos)


@pytest.mark.parametrize("policy", ["error", "truncate_left", "skip"])
def test_what_fits_is_returned_as_it_is(policy):
    assert fit_to_context(LONG, 10, policy, n_bos=1) is LONG


def test_skip_says_none_and_an_unknown_policy_is_refused():
    assert fit_to_context(LONG, 9, "skip", n_bos=1) is None
    with pytest.raises(RenderError, match=r"'truncate'\. Did you mean 'truncate_left'"):
        fit_to_context(LONG, 10, "truncate", n_bos=1)
    with pytest.raises(RenderError, match="render_whole with fit_to_context"):
        ChatRenderer(family("llama3"), overlong="skip")


class Meddling(Prompt):
    """While it is compared, another thread renders another prompt with the same renderer."""

    def __eq__(self, other: object) -> bool:
        if self.meddling:  # once: rendering compares as well
            thread = threading.Thread(target=self.meddling.pop())
            thread.start()
            thread.join()
        return isinstance(other, Prompt) and self.messages == other.messages


def test_a_prompt_is_never_taken_for_the_one_that_another_thread_renders_meanwhile(tmp_path):
    renderer = ChatRenderer(tiny_tokenizer(tmp_path))
    asked, other = Prompt.of("2+2?"), Prompt.of("something else")
    expected = ChatRenderer(tiny_tokenizer(tmp_path)).render_prompt(asked)
    remembered = Meddling(asked.messages)
    meddling = [lambda: renderer.render_prompt(other)]
    object.__setattr__(remembered, "meddling", meddling)  # prompts are frozen
    renderer.render_prompt(remembered)

    assert renderer.render_prompt(asked) == expected
    assert meddling == []  # it did


def _record() -> None:
    lines = []
    for name in FAMILIES:
        cases = (
            f"  {json.dumps(c)}: {json.dumps(observe(name, c), ensure_ascii=False)}" for c in CASES
        )
        lines.append(f"{json.dumps(name)}: {{\n" + ",\n".join(cases) + "\n}")
    (TEMPLATES / "ids.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


if __name__ == "__main__":
    _record()
