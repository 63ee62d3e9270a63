"""Classifiers that others trained: they read what their authors' recipe reads."""

from pathlib import Path

import numpy as np
import pytest
import torch
from classifiers import save_classifier
from fake_engine import engine
from tiny import CHATML, tiny_tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from retrm.backbone.render import ChatRenderer
from retrm.errors import OverlongError, RenderError
from retrm.records import Answer
from retrm.scorers.remote import RemoteScorer
from retrm.scorers.sequence_classifier import SequenceClassifier

QUESTION = "2 + 2?"
TEXTS = ("4", "It is 4.", "5", " spaced ", "it ends <|im_end|> here")
ANSWERS = [Answer.of(QUESTION, text) for text in TEXTS]
# As Qwen3's: the last answer gets an empty block of thoughts, which no prompt shows.
THINKING = CHATML.replace(
    "m['content']",
    "('<think></think>' if m['role'] == 'assistant' and loop.last else '') + m['content']",
)


def conversation(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": text}]


def authors_ids(folder: Path, text: str) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer.apply_chat_template(conversation(text), return_dict=True)["input_ids"]


def authors_scores(folder: Path, texts: tuple[str, ...]) -> list[float]:
    """The recipe of a model card: the template, the model, the logit."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        ids = (torch.tensor([authors_ids(folder, text)]) for text in texts)
        return [float(model(input_ids=one).logits[0, 0]) for one in ids]


@pytest.mark.parametrize("template", [CHATML, THINKING], ids=["newline", "empty thoughts"])
def test_scores_are_those_of_the_authors_recipe(tmp_path: Path, template: str) -> None:
    assert ("<think>" in template) == (template is THINKING)
    save_classifier(tmp_path, template=template)
    plain = TEXTS[:4]
    found = SequenceClassifier.load(str(tmp_path)).score(ANSWERS[:4])
    assert found == pytest.approx(authors_scores(tmp_path, plain), rel=1e-5, abs=1e-6)


def test_the_ids_are_those_of_the_template_and_the_answer_begins_behind_the_prompt() -> None:
    renderer = ChatRenderer(tiny_tokenizer())
    whole = renderer.render_finished(ANSWERS[1])
    text = renderer.text(whole.ids)
    assert text.endswith("It is 4.<|im_end|>\n")
    assert (renderer.text(whole.ids[whole.start :]), whole.stop) == (
        "It is 4.<|im_end|>\n",
        len(whole.ids),
    )


def test_a_beginning_token_that_the_template_lacks_stands_once(tmp_path: Path) -> None:
    save_classifier(tmp_path, has_bos=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = ChatRenderer(tokenizer).render_finished(ANSWERS[0]).ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    # The template writes it itself: it is not written again.
    tokenizer.chat_template = "{{ bos_token }}" + CHATML
    assert ChatRenderer(tokenizer).render_finished(ANSWERS[0]).ids == ids


def test_a_control_string_in_an_answer_ends_no_turn() -> None:
    renderer = ChatRenderer(tiny_tokenizer())
    ids = renderer.render_finished(ANSWERS[4]).ids
    # The question's end and the answer's: the string inside the answer is letters.
    assert ids.count(renderer.end_id) == 2


def test_a_template_that_loses_the_answer_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    )
    with pytest.raises(RenderError, match="leaves out the answer of a finished conversation"):
        ChatRenderer(tokenizer).render_finished(ANSWERS[0])


def test_answers_beyond_the_context_are_refused_or_counted(tmp_path: Path) -> None:
    save_classifier(tmp_path)
    scorer = SequenceClassifier.load(str(tmp_path))
    answers = [ANSWERS[0], Answer.of(QUESTION, "4" * 90)]
    with pytest.raises(OverlongError, match="the context holds 96"):
        scorer.judge(answers)
    found = scorer.judge(answers, overlong="skip")
    assert np.isnan(found.scores).tolist() == [False, True]
    cut = scorer.judge([Answer.of("2" * 60, "4" * 20)], overlong="truncate_left")
    assert (cut.n_tokens.tolist(), cut.is_cut.tolist()) == ([96], [True])


def test_other_weights_of_the_same_names_are_another_scorer(tmp_path: Path) -> None:
    save_classifier(tmp_path)
    one, other = (SequenceClassifier.load(str(tmp_path)) for _ in range(2))
    assert one.identity == other.identity
    with torch.no_grad():
        other.model.score.weight[0, 0] += 1
    assert one.identity != other.identity


def test_servers_that_take_ids_or_text_get_the_whole_conversation(tmp_path: Path) -> None:
    save_classifier(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    renderer = ChatRenderer(tokenizer)
    replies = {"sglang": b'{"embedding": [1.0]}', "openrlhf": b'{"rewards": [1.0]}'}
    sent = {}
    for dialect, reply in replies.items():
        with engine(lambda _, __, reply=reply: (200, {}, reply)) as server:
            RemoteScorer(dialect, server.url, renderer=renderer).score(ANSWERS[1:2])
        sent[dialect] = server.requests[0]
    assert sent["sglang"]["input_ids"] == authors_ids(tmp_path, TEXTS[1])
    text = tokenizer.apply_chat_template(conversation(TEXTS[1]), tokenize=False)
    assert sent["openrlhf"]["query"] == [text]
    assert text.startswith(sent["openrlhf"]["prompts"][0])


def test_what_its_logits_hang_on_is_told_and_follows_the_template(tmp_path: Path) -> None:
    found = []
    for name, template in (("a", CHATML), ("b", THINKING)):
        save_classifier(tmp_path / name, template=template)
        found.append(SequenceClassifier.load(str(tmp_path / name)).provenance)
    one, other = found
    assert (one["dtype"], one["device"]) == ("float32", "cpu")
    assert one["template"] != other["template"]
    assert set(one) == {"tokenizer", "template", "dtype", "device"}
