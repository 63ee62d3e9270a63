"""How texts become tokens: spans, the beginning and the end of a turn."""

from retrm.backbone.base import Backbone
from retrm.doctor.report import Check, DoesNotApplyError, within
from retrm.doctor.texts import Fitted


def spans(backbone: Backbone, fitted: Fitted) -> Check:
    """The judged ids decode to the answer, and the ids before them hold the question."""
    renderer, wrong = backbone.renderer, []
    for answer, item in zip(fitted.answers, fitted.rendered, strict=True):
        judged = item.ids[item.start : item.stop]
        text = renderer.decode(judged)
        asked = answer.prompt.messages[-1].content.strip()
        # Tokenizers in the style of SentencePiece drop the space of the first word.
        if text.removeprefix(" ") != answer.response.removeprefix(" "):
            wrong.append(f"{answer.response[:30]!r} became {text[:30]!r}")
        elif asked not in renderer.decode(item.ids[: item.start]):
            wrong.append(f"the question {asked[:30]!r} is not in the prompt")
        elif "".join(renderer.pieces(judged)) != text:
            wrong.append(f"the pieces of {text[:30]!r} do not join to it")
        elif not 0 <= min(item.ids) <= max(item.ids) < backbone.vocab_size:
            wrong.append(f"token id {max(item.ids)} of {backbone.vocab_size}")
    said = "; ".join([wrong[0] if wrong else "answers decode to themselves", *fitted.notes])
    return within("spans", float(len(wrong)), 0.0, said)


def beginning(backbone: Backbone, fitted: Fitted) -> Check:
    """A beginning-of-sequence token stands in front once, if the tokenizer has one.

    Raises:
        DoesNotApplyError: neither tokenizer nor template has such a token.
    """
    tokenizer = getattr(backbone.renderer, "tokenizer", None)
    doubled = sum(item.ids[0] == item.ids[1] for item in fitted.rendered)
    if tokenizer is None:
        return within("BOS", float(doubled), 0.0, "texts that begin with a token twice")
    bos = tokenizer.bos_token_id
    if bos is None:
        raise DoesNotApplyError("the tokenizer has no BOS token")
    wrong = sum(item.ids[:2] == (bos, bos) for item in fitted.rendered)
    needs = bos in tokenizer("a")["input_ids"][:1]
    lacking = sum(item.ids[0] != bos for item in fitted.rendered)
    if not needs and lacking == len(fitted.rendered):
        raise DoesNotApplyError("neither the tokenizer nor the template writes a BOS token")
    said = f"texts that begin with two {tokenizer.bos_token} or none"
    return within("BOS", float(wrong + lacking), 0.0, said)


def end_token(backbone: Backbone, fitted: Fitted) -> Check:
    """The end-of-turn token is judged exactly when `counts_end` says so.

    Raises:
        DoesNotApplyError: the renderer knows none.
    """
    renderer = backbone.renderer
    ends = getattr(renderer, "end_ids", None)
    if not ends:
        raise DoesNotApplyError("the renderer knows no end-of-turn token")
    wrong = 0
    for answer, item in zip(fitted.answers, fitted.rendered, strict=True):
        judged, behind = item.ids[item.start : item.stop], item.ids[item.stop :]
        is_ended = answer.finished is not False
        wrong += (judged[-1] in ends) != (is_ended and renderer.counts_end)
        wrong += bool(behind) != (is_ended and not renderer.counts_end)
        wrong += any(token in ends for token in judged[:-1])
    said = "judged" if renderer.counts_end else "not judged"
    return within("end token", float(wrong), 0.0, f"answers where it is not as told: {said}")
