"""Record formats: what one record of each says.

A format is a row of `FORMATS`: the columns it needs and a function from a raw record to `Parsed`.
Which format a record is in is told in `detect.py`.

Conventions of every format:

* prompts: the first of `prompt`, `problem`, `question` that is there; a text is one user turn.
  `tools` (a list or a JSON string) belong to the prompt. `prompt_id`, where given, is the grouping
  key; otherwise it is a hash of the prompt's messages and tools.
* the reference answer is `answer` or `gold` beside a list of answers, and `gold` beside a single one.
* of a conversation only the LAST assistant turn is judged.
* labels: true/false, 0/1, "true"/"false", "C"/"I" (correct, incorrect); null and NaN = missing.
* `ranks`: 1 is best. `scores`: higher is better. Equal ones are ties, kept as equal ranks.
* `reference`: a good answer that comparing scorers read, a text or messages, with `wrapper` beside it
  (sft or pretrain); without that column it is the reference answer of above.
* an empty answer is refused, unless the token ids that were sampled are given.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from retrm.data.inspect_log import parse_inspect
from retrm.data.lm_eval import parse_lm_eval
from retrm.data.messages import (
    kind_of,
    prompt_of,
    read_messages,
    read_prompt,
    read_text,
    split_answer,
    split_transcript,
)
from retrm.data.parsed import Drop, Options, Parsed
from retrm.data.rated_sets import (
    PREDICTIONS,
    finegrained_columns,
    parse_finegrained,
    parse_truthful_qa,
    parse_unieval,
    refuse_unnamed,
)
from retrm.data.rating_columns import (
    ATTRIBUTES,
    RatingColumn,
    attribute_columns,
    truthful_qa_columns,
    ultrafeedback_columns,
    unieval_columns,
)
from retrm.data.ratings import bare_rating
from retrm.data.read import Record
from retrm.data.values import (
    read_answer,
    read_column,
    read_flag,
    read_gold,
    read_key,
    read_label,
    read_list,
    read_logprob,
    read_prompt_id,
    read_rating,
    read_score,
    read_token_ids,
)
from retrm.errors import DataError, FormatError, did_you_mean
from retrm.records import Answer, Message, Pair, Prompt, RankedList

PROMPT = ("prompt", "problem", "question")
RESPONSE = ("response", "completion")
CONVERSATION = ("messages", "conversations")


def _count(**numbers: int) -> dict[str, int]:
    return {name: number for name, number in numbers.items() if number}


# ------------------------------------------------------------------------------------ preferences


def _parse_preference(record: Record, options: Options) -> Parsed:
    """Two answers to a prompt that stands in a column of its own."""
    fields, where = record.fields, record.where
    prompt = read_prompt(fields, PROMPT, where)
    texts = [_side_text(fields[side], prompt, where, side) for side in ("chosen", "rejected")]
    return _pair_of(record, "preference", (prompt, prompt), texts)


def _side_text(value: Any, prompt: Prompt, where: str, column: str) -> str:
    """The answer of one side: text, one assistant message, or the prompt with it repeated."""
    if isinstance(value, str):
        return value
    before, text = split_answer(read_messages(value, where, column), where, column)
    if before and _said(before) != _said(prompt.messages):
        raise DataError(
            f"{where}: `{column}` has {len(before)} messages before its answer that are not those of "
            "`prompt`; expected the same messages, or the answer alone. Leave out one of the two"
        )
    return text


def _said(messages: Sequence[Message]) -> list[tuple[str, str]]:
    return [(message.role, message.content.strip()) for message in messages]


def _parse_implicit(record: Record, options: Options) -> Parsed:
    """Two conversations that hold their prompt: message lists, or hh-rlhf transcripts."""
    fields, where = record.fields, record.where
    sides = [_conversation(fields[side], where, side) for side in ("chosen", "rejected")]
    prompts = [prompt_of(before, fields, where, "chosen") for before, _ in sides]
    return _pair_of(record, "preference_implicit", prompts, [text for _, text in sides])


def _conversation(value: Any, where: str, column: str) -> tuple[tuple[Message, ...], str]:
    messages = (
        split_transcript(read_text(value, where, column), where, column)
        if isinstance(value, str)
        else read_messages(value, where, column)
    )
    return split_answer(messages, where, column)


def _pair_of(record: Record, name: str, prompts: Sequence[Prompt], texts: Sequence[str]) -> Parsed:
    """Two answers and the preference for the first, with its margin."""
    fields, where = record.fields, record.where
    sides = ("chosen", "rejected")
    answers = tuple(
        Answer(
            prompt,
            read_answer(text, where, side),
            # One id cannot stand for two prompts, so a given id holds only where they agree.
            read_prompt_id(fields, prompt, where) if prompts[0] == prompts[1] else prompt.key,
            where=where,
        )
        for prompt, text, side in zip(prompts, texts, sides, strict=True)
    )
    margin = read_rating(fields.get("margin"), where, "margin")
    drop: Drop | None = None
    if prompts[0] != prompts[1]:
        drop = "different_prompts"
    elif texts[0] == texts[1]:
        drop = "identical"
    return Parsed(
        name,
        answers,
        (math.nan, math.nan),
        pairs=() if drop else (Pair(0, 1, 0.0 if math.isnan(margin) else margin),),
        score_shape="named",
        score_fields=sides,
        drop=drop,
        counts=_count(
            margins_missing=int("margin" in fields and math.isnan(margin)),
            margins_negative=int(margin < 0),
        ),
    )


def _parse_strength(record: Record, options: Options) -> Parsed:
    """Two answers and a signed preference; 0 is a tie."""
    fields, where = record.fields, record.where
    if options.strength_sign not in ("negative_first", "positive_first"):
        raise FormatError(
            f"{where}: got strength_sign={options.strength_sign!r} for signed preferences; expected "
            "'negative_first' (a negative number prefers response1) or 'positive_first'. Sets differ: "
            "look it up and say which"
        )
    prompt = read_prompt(fields, ("context", *PROMPT), where)
    sides = ("response1", "response2")
    pid = read_prompt_id(fields, prompt, where)
    texts = [read_answer(fields[side], where, side) for side in sides]
    strength = read_rating(fields["overall_preference"], where, "overall_preference")
    is_first = (strength < 0) == (options.strength_sign == "negative_first")
    drop: Drop | None = "identical" if texts[0] == texts[1] else None
    has_pair = not drop and abs(strength) > 0
    return Parsed(
        "strength",
        tuple(Answer(prompt, text, pid, where=where) for text in texts),
        (math.nan, math.nan),
        pairs=(Pair(*((0, 1) if is_first else (1, 0)), abs(strength)),) if has_pair else (),
        ranked=(RankedList((0, 1), (1.0, 1.0)),) if strength == 0 and not drop else (),
        score_shape="named",
        score_fields=sides,
        drop=drop,
        counts=_count(preferences_missing=int(math.isnan(strength))),
    )


# --------------------------------------------------------------------------------- lists of answers


def _parse_ranked(record: Record, options: Options) -> Parsed:
    """K answers with ranks (1 = best) or scores (higher = better)."""
    fields, where = record.fields, record.where
    responses = read_list(fields["responses"], where, "responses")
    given = [name for name in ("ranks", "scores") if fields.get(name) is not None]
    if len(given) != 1:
        raise FormatError(
            f"{where}: got {' and '.join(given) or 'neither ranks nor scores'}; expected one of "
            "`ranks` (1 = best) and `scores` (higher = better). Leave the other out"
        )
    values = read_column(fields, given[0], len(responses), where) or []
    numbers = [read_rating(value, where, given[0]) for value in values]
    ranks = _ranks_from_scores(numbers) if given[0] == "scores" else numbers
    prompt = read_prompt(fields, PROMPT, where)
    return _ranked_of(record, "ranked", prompt, responses, ranks, "responses")


def _ranks_from_scores(scores: Sequence[float]) -> list[float]:
    """Dense ranks, the highest score first; NaN stays NaN."""
    levels = sorted({s for s in scores if not math.isnan(s)}, reverse=True)
    rank = {level: float(i) for i, level in enumerate(levels, start=1)}
    return [rank.get(score, math.nan) for score in scores]


def _ranked_of(
    record: Record,
    name: str,
    prompt: Prompt,
    texts: Sequence[Any],
    ranks: Sequence[float],
    column: str,
) -> Parsed:
    """Answers and one ranked list over those whose rank is known."""
    where = record.where
    low = min((rank for rank in ranks if not math.isnan(rank)), default=1.0)
    if low < 0:
        raise DataError(
            f"{where}: got rank {low:g}; expected ranks that count from 1 = best. Write numbers of "
            "which higher is better as `scores`"
        )
    pid = read_prompt_id(record.fields, prompt, where)
    known = [i for i, rank in enumerate(ranks) if not math.isnan(rank)]
    ranked = RankedList(tuple(known), tuple(float(ranks[i]) for i in known))
    return Parsed(
        name,
        tuple(
            Answer(prompt, read_answer(text, where, f"{column}[{i}]"), pid, where=where)
            for i, text in enumerate(texts)
        ),
        (math.nan,) * len(texts),
        ranked=(ranked,) if len(known) > 1 else (),
        score_shape="list",
        counts=_count(ranks_missing=len(ranks) - len(known), lists_too_short=int(len(known) < 2)),
    )


def _members(value: Any, keys: Sequence[str], where: str, column: str) -> list[Mapping[str, Any]]:
    """A list of objects that all have `keys`."""
    members = read_list(value, where, column)
    for i, member in enumerate(members):
        lacking = [k for k in keys if not isinstance(member, Mapping) or k not in member]
        if lacking:
            got = f"keys {', '.join(member)}" if isinstance(member, Mapping) else kind_of(member)
            raise FormatError(
                f"{where}: `{column}[{i}]` has {got}; expected an object with "
                f"{' and '.join(f'`{k}`' for k in keys)}"
            )
    return members


def _parse_nectar(record: Record, options: Options) -> Parsed:
    """`answers`: a list of ``{answer, rank}``, rank 1 = best."""
    where = record.where
    members = _members(record.fields["answers"], ("answer", "rank"), where, "answers")
    ranks = [read_rating(m["rank"], where, f"answers[{i}].rank") for i, m in enumerate(members)]
    prompt = read_prompt(record.fields, PROMPT, where)
    return _ranked_of(record, "nectar", prompt, [m["answer"] for m in members], ranks, "answers")


def _parse_ultrafeedback(record: Record, options: Options) -> Parsed:
    """`completions`: a list of ``{response, overall_score, annotations}``.

    With an attribute the ratings of that one are labels; without, `overall_score` ranks the list.
    """
    fields, where = record.fields, record.where
    key = "overall_score" if options.attribute is None else "annotations"
    members = _members(fields["completions"], ("response", key), where, "completions")
    prompt = read_prompt(fields, ("instruction", *PROMPT), where)
    texts = [m["response"] for m in members]
    if options.attribute is None:
        scores = [
            read_rating(m[key], where, f"completions[{i}].{key}") for i, m in enumerate(members)
        ]
        ranks = _ranks_from_scores(scores)
        return _ranked_of(record, "ultrafeedback", prompt, texts, ranks, "completions")
    labels = tuple(
        _annotation(m[key], options.attribute, where, f"completions[{i}].annotations")
        for i, m in enumerate(members)
    )
    pid = read_prompt_id(fields, prompt, where)
    return Parsed(
        "ultrafeedback",
        tuple(
            Answer(prompt, read_answer(t, where, f"completions[{i}].response"), pid, where=where)
            for i, t in enumerate(texts)
        ),
        labels,
        is_labelled=True,
        score_shape="list",
    )


def _annotation(annotations: Any, attribute: str, where: str, column: str) -> float:
    names = list(annotations) if isinstance(annotations, Mapping) else []
    if attribute not in names:
        raise FormatError(
            f"{where}: `{column}` has no attribute {attribute!r}. {did_you_mean(attribute, names)}".rstrip()
        )
    return read_rating(bare_rating(annotations[attribute]), where, f"{column}.{attribute}")


ROLLOUT_COLUMNS = ("correct", "token_ids", "finished", "logprobs", "keys", "pruned")
"""Columns of rollouts that hold one value an answer."""


def _parse_rollouts(record: Record, options: Options) -> Parsed:
    """N samples of one prompt with, where known, their outcomes, token ids, ends and vote keys."""
    return _rollouts_of(record, "rollouts", "responses")


def _parse_samples(record: Record, options: Options) -> Parsed:
    """The same under the name that code benchmarks give them."""
    return _rollouts_of(record, "samples", "samples")


def _rollouts_of(record: Record, name: str, column: str) -> Parsed:
    fields, where = record.fields, record.where
    responses = read_list(fields[column], where, column)
    n = len(responses)
    prompt = read_prompt(fields, PROMPT, where)
    pid = read_prompt_id(fields, prompt, where)
    columns = {
        column: read_column(fields, column, n, where) or [None] * n for column in ROLLOUT_COLUMNS
    }
    # `score` belongs to the answers where it is a list, as retrm writes it; one number does not.
    has_scores = isinstance(fields.get("score"), list | tuple)
    scores = read_column(fields, "score", n, where) if has_scores else None
    ids = [read_token_ids(v, where, f"token_ids[{i}]") for i, v in enumerate(columns["token_ids"])]
    answers = tuple(
        Answer(
            prompt=prompt,
            response=_sampled_text(responses[i], ids[i], where, f"{column}[{i}]"),
            prompt_id=pid,
            response_ids=ids[i],
            finished=read_flag(columns["finished"][i], where, f"finished[{i}]"),
            key=read_key(columns["keys"][i], where, f"keys[{i}]"),
            logprob=read_logprob(columns["logprobs"][i], where, f"logprobs[{i}]"),
            where=where,
            score=read_score(scores[i], where, f"score[{i}]") if scores else None,
            pruned=bool(read_flag(columns["pruned"][i], where, f"pruned[{i}]")),
        )
        for i in range(n)
    )
    return Parsed(
        name,
        answers,
        tuple(read_label(v, where, f"correct[{i}]") for i, v in enumerate(columns["correct"])),
        is_labelled="correct" in fields,
        gold=read_gold(fields, where),
        are_samples=True,
        score_shape="list",
    )


def _sampled_text(value: Any, ids: tuple[int, ...] | None, where: str, column: str) -> str:
    """A sample's text; it may be empty where the sampled ids (an end token alone) are known."""
    return read_text(value, where, column) if ids else read_answer(value, where, column)


# ----------------------------------------------------------------------------------- single answers


def _one(
    record: Record, name: str, label: float, *, is_labelled: bool, prompt: Prompt, text: str
) -> Parsed:
    where = record.where
    answer = Answer(prompt, text, read_prompt_id(record.fields, prompt, where), where=where)
    # Beside one response `answer` is as often what the response says as what is right.
    gold = read_gold(record.fields, where, ("gold",))
    return Parsed(name, (answer,), (label,), is_labelled=is_labelled, gold=gold, are_samples=True)


def _prompt_and_text(record: Record) -> tuple[Prompt, str]:
    """Prompt and answer of a record with `response` or `completion` (text, or one message)."""
    fields, where = record.fields, record.where
    column = next(name for name in RESPONSE if name in fields)
    prompt = read_prompt(fields, PROMPT, where)
    text = (
        _side_text(fields[column], prompt, where, column)
        if isinstance(fields[column], list)
        else fields[column]
    )
    return prompt, read_answer(text, where, column)


def _parse_unpaired(record: Record, options: Options) -> Parsed:
    """One answer with an outcome."""
    prompt, text = _prompt_and_text(record)
    column = "label" if "label" in record.fields else "correct"
    label = read_label(record.fields[column], record.where)
    return _one(record, "unpaired", label, is_labelled=True, prompt=prompt, text=text)


def _parse_pointwise(record: Record, options: Options) -> Parsed:
    """One answer rated on several attributes; the one that is named is the label."""
    fields, where = record.fields, record.where
    rated = [name for name in ATTRIBUTES if name in fields]
    if options.attribute is None and options.ratings is None:
        raise refuse_unnamed(rated, where)
    if options.attribute is not None and options.attribute not in fields:
        raise FormatError(
            f"{where}: there is no attribute {options.attribute!r}. "
            f"{did_you_mean(options.attribute, rated or fields)}"
        )
    prompt, text = _prompt_and_text(record)
    if options.attribute is None:
        return _one(record, "pointwise", math.nan, is_labelled=False, prompt=prompt, text=text)
    label = read_rating(fields[options.attribute], where, options.attribute)
    return _one(record, "pointwise", label, is_labelled=True, prompt=prompt, text=text)


def _parse_unlabelled(record: Record, options: Options) -> Parsed:
    """One answer, to be scored."""
    prompt, text = _prompt_and_text(record)
    return _one(record, "unlabelled", math.nan, is_labelled=False, prompt=prompt, text=text)


def _parse_messages(record: Record, options: Options) -> Parsed:
    """A conversation whose last turn is judged; with an outcome if `label` is there."""
    fields, where = record.fields, record.where
    column = next(name for name in CONVERSATION if name in fields)
    before, text = split_answer(read_messages(fields[column], where, column), where, column)
    prompt = prompt_of(before, fields, where, column)
    is_labelled = "label" in fields
    label = read_label(fields["label"], where) if is_labelled else math.nan
    text = read_answer(text, where, column)
    return _one(record, "messages", label, is_labelled=is_labelled, prompt=prompt, text=text)


# ------------------------------------------------------------------------- formats that are refused


def _refuse_stepwise(record: Record, options: Options) -> Parsed:
    raise FormatError(
        f"{record.where}: got step labels (`completions` with `labels`), which are not read; expected "
        "one label an answer. Train on steps with retrm finetune --kind steps; or join them into `response` "
        "and write one `label`: whether all steps are right"
    )


def _parse_reference(record: Record, options: Options) -> Parsed:
    """One answer or a pair that is compared with `reference`, which `detect.parse` attaches."""
    fields, where = record.fields, record.where
    if "chosen" in fields:
        if "rejected" not in fields:
            raise FormatError(
                f"{where}: got `reference` and `chosen` without `rejected`; expected a pair. Name a single "
                "answer `output`"
            )
        return replace(_parse_preference(record, options), format="reference")
    prompt = read_prompt(fields, PROMPT, where)
    column = next(name for name in ("output", *RESPONSE) if name in fields)
    value = fields[column]
    text = _side_text(value, prompt, where, column) if isinstance(value, list) else value
    text = read_answer(text, where, column)
    has_label = "label" in fields
    label = read_label(fields["label"], where) if has_label else math.nan
    return _one(record, "reference", label, is_labelled=has_label, prompt=prompt, text=text)


# ------------------------------------------------------------------------------------- the registry


_RATED_ATTRIBUTES = (
    "helpfulness, correctness, coherence, complexity, verbosity 0..4 (HelpSteer), or "
    "instruction_following, truthfulness, honesty, helpfulness 1..5 (UltraFeedback)"
)


def no_columns(fields: Mapping[str, Any]) -> tuple[RatingColumn, ...]:
    """For formats that know no ratings."""
    return ()


@dataclass(frozen=True)
class Format:
    """A record format.

    Attributes:
        about: one line for people.
        needs: columns that must be there; each entry lists names of which one suffices.
        parse: one record to what it says.
        beats: less specific formats that its records would fit as well.
        is_readable: False for formats that are known and refused.
        rating_columns: the ratings that a record's columns hold, with the ranges that are known.
        members: the column that holds one object an answer, where there is one.
        rates: the objectives of `rating_columns` and their ranges, for people.
    """

    about: str
    needs: tuple[tuple[str, ...], ...]
    parse: Callable[[Record, Options], Parsed]
    beats: tuple[str, ...] = ()
    is_readable: bool = True
    rating_columns: Callable[[Mapping[str, Any]], tuple[RatingColumn, ...]] = no_columns
    members: str | None = None
    rates: str = ""

    def lacks(self, columns: Sequence[str] | Mapping[str, Any]) -> list[tuple[str, ...]]:
        """The entries of `needs` of which no name is there."""
        return [names for names in self.needs if not any(name in columns for name in names)]


FORMATS: Mapping[str, Format] = {
    "stepwise": Format(
        "steps with a label each (known, not read)",
        (("completions",), ("labels",)),
        _refuse_stepwise,
        beats=("ultrafeedback",),
        is_readable=False,
    ),
    "rollouts": Format(
        "N sampled answers to one prompt, with outcomes where known",
        (PROMPT, ("responses",)),
        _parse_rollouts,
        beats=("reference", "messages"),
    ),
    "samples": Format(
        "N sampled answers in `samples`, as code benchmarks publish them",
        (PROMPT, ("samples",)),
        _parse_samples,
        beats=("reference", "messages"),
    ),
    "ranked": Format(
        "K answers with ranks (1 = best) or scores (higher = better)",
        (PROMPT, ("responses",), ("ranks", "scores")),
        _parse_ranked,
        beats=("reference", "messages"),
    ),
    "nectar": Format(
        "a list of answers with a rank each",
        (PROMPT, ("answers",)),
        _parse_nectar,
        beats=("messages",),
        members="answers",
    ),
    "ultrafeedback": Format(
        "a list of completions with scores and annotations",
        (("instruction", *PROMPT), ("completions",)),
        _parse_ultrafeedback,
        beats=("messages",),
        rating_columns=ultrafeedback_columns,
        members="completions",
        rates="overall_score 1..10; instruction_following, truthfulness, honesty, helpfulness 1..5",
    ),
    "reference": Format(
        "an answer, or a chosen and a rejected one, to be compared with a reference (POLAR)",
        (PROMPT, ("reference",), ("output", "chosen", *RESPONSE)),
        _parse_reference,
        beats=(
            "pointwise",
            "preference",
            "preference_implicit",
            "unpaired",
            "unlabelled",
            "messages",
        ),
    ),
    "pointwise": Format(
        "one answer rated on several attributes",
        (PROMPT, RESPONSE, ATTRIBUTES),
        _parse_pointwise,
        beats=("unlabelled", "messages"),
        rating_columns=attribute_columns,
        rates=_RATED_ATTRIBUTES,
    ),
    "unieval": Format(
        "one answer rated by people on the axes in `scores`, as UniEval's data are",
        (("source",), ("system_output",), ("scores",)),
        parse_unieval,
        beats=("messages",),
        rating_columns=unieval_columns,
        rates="the axes of Topical-Chat, SFRES, SFHOT, QAGS and SummEval, each with the range of its set",
    ),
    "truthful_qa": Format(
        "one answer that judge models called true and informative, as in InstructGPT's samples",
        (("question",), ("answer",), ("true",), ("info",)),
        parse_truthful_qa,
        rating_columns=truthful_qa_columns,
        rates="truthful (`true`), informative (`info`) 0..1",
    ),
    "finegrained_qa": Format(
        "four predictions, preferences among them and errors marked in the first (FineGrainedRLHF)",
        (("question",), *((name,) for name in PREDICTIONS), ("feedback",), ("preference",)),
        parse_finegrained,
        rating_columns=finegrained_columns,
        rates="relevance, factuality, completeness 0..1, of the first prediction",
    ),
    "strength": Format(
        "two answers and a signed preference",
        (("context", *PROMPT), ("response1",), ("response2",), ("overall_preference",)),
        _parse_strength,
        beats=("messages",),
    ),
    "preference": Format(
        "a prompt, the chosen and the rejected answer, with a margin where known",
        (PROMPT, ("chosen",), ("rejected",)),
        _parse_preference,
        beats=("preference_implicit", "messages"),
    ),
    "preference_implicit": Format(
        "two conversations that share their prompt",
        (("chosen",), ("rejected",)),
        _parse_implicit,
        beats=("messages",),
    ),
    "unpaired": Format(
        "one answer and its outcome",
        (PROMPT, RESPONSE, ("label", "correct")),
        _parse_unpaired,
        beats=("unlabelled", "messages"),
        rating_columns=attribute_columns,
        rates=_RATED_ATTRIBUTES,
    ),
    "unlabelled": Format(
        "one answer, to be scored", (PROMPT, RESPONSE), _parse_unlabelled, ("messages",)
    ),
    "inspect": Format(
        "a sample of an Inspect log; the epochs of a sample are its candidates",
        (("epoch",), ("messages",), ("output",), ("scores",)),
        parse_inspect,
        beats=("messages",),
    ),
    "lm_eval": Format(
        "a line of an lm-evaluation-harness sample file",
        (("doc",), ("arguments",), ("resps",)),
        parse_lm_eval,
        beats=("messages",),
    ),
    "messages": Format(
        "a conversation that ends with the answer", (CONVERSATION,), _parse_messages
    ),
}
"""Every format, the most specific first."""
