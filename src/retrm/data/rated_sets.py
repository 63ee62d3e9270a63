"""Published sets of rated answers whose records are laid out in a way of their own.

    unieval         UniEval's evaluation data: `source`, `system_output`, and `scores` by axis
    truthful_qa     InstructGPT's samples: `question`, `answer`, and what two judge models said
    finegrained_qa  FineGrainedRLHF: four predictions, six preferences among them, and errors that
                    people marked in the first

Three objectives come from the marked errors, all about "prediction 1" only:

    relevance     1 - share of its characters under spans Irrelevant, Redundant or Incoherent
    factuality    1 - share of its characters under spans Wrong-Grounding or Unverifiable
    completeness  1 where nothing is missing; 2/3, 1/3, 0 where the gravest thing that is missing is a
                  minor auxiliary, a major auxiliary, the answer

A character under two spans counts once. The three groups are those of Wu et al., arXiv 2306.01693,
section 4; the numbers are ours, for the paper turns errors into rewards of spans.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from typing import Any

from retrm.data.messages import kind_of, prompt_of, read_prompt, read_text
from retrm.data.parsed import Options, Parsed
from retrm.data.rating_columns import RatingColumn
from retrm.data.read import Record
from retrm.data.values import read_answer, read_gold, read_list, read_prompt_id, read_rating
from retrm.errors import DataError, FormatError, did_you_mean
from retrm.records import UNIT_SCALE, Answer, Message, Pair, Prompt, RankedList

PREDICTIONS = tuple(f"prediction {i}" for i in range(1, 5))
_OF_RELEVANCE = ("Irrelevant", "Redundant", "Incoherent")
_OF_FACTUALITY = ("Wrong-Grounding", "Unverifiable")
_COMPLETENESS = {
    "Missing-Minor-Auxiliary": 2 / 3,
    "Missing-Major-Auxiliary": 1 / 3,
    "Missing-Answer": 0.0,
}


def refuse_unnamed(names: Sequence[str], where: str) -> FormatError:
    """What is raised for ratings of which none is named as the label, and none is to be read."""
    return FormatError(
        f"{where}: got ratings {', '.join(names) or 'of several attributes'} and no objective; "
        "expected the one to learn. Pass --attribute NAME, or learn several with --rating known"
    )


def parse_unieval(record: Record, options: Options) -> Parsed:
    """One answer rated by people on several axes; with an attribute, that axis is the label.

    The prompt is one user turn: what the answer is to be grounded in (`context`), where there is
    something, and the `source`.
    """
    fields, where = record.fields, record.where
    axes = fields["scores"]
    if not isinstance(axes, Mapping):
        raise FormatError(f"{where}: `scores` is {kind_of(axes)}; expected one number an axis")
    given = [
        read_text(fields[name], where, name) for name in ("context", "source") if name in fields
    ]
    text = "\n\n".join(part.strip() for part in given if part.strip())
    prompt = prompt_of((Message("user", text),), fields, where, "source")
    return _one_rated(record, "unieval", prompt, "system_output", axes, options)


def parse_truthful_qa(record: Record, options: Options) -> Parsed:
    """One answer that judge models called true and informative, each from 0 to 1."""
    prompt = read_prompt(record.fields, ("question",), record.where)
    values = {name: record.fields[name] for name in ("true", "info")}
    return _one_rated(record, "truthful_qa", prompt, "answer", values, options)


def _one_rated(
    record: Record,
    name: str,
    prompt: Prompt,
    column: str,
    values: Mapping[str, Any],
    options: Options,
) -> Parsed:
    where, attribute = record.where, options.attribute
    if attribute is None and options.ratings is None:
        raise refuse_unnamed(list(values), where)
    if attribute is not None and attribute not in values:
        raise FormatError(
            f"{where}: there is no attribute {attribute!r}. {did_you_mean(attribute, list(values))}"
        )
    label = math.nan if attribute is None else read_rating(values[attribute], where, attribute)
    text = read_answer(record.fields[column], where, column)
    pid = read_prompt_id(record.fields, prompt, where)
    return Parsed(
        name,
        (Answer(prompt, text, pid, where=where),),
        (label,),
        is_labelled=attribute is not None,
        are_samples=True,
    )


# ------------------------------------------------------------------------------ FineGrainedRLHF


def parse_finegrained(record: Record, options: Options) -> Parsed:
    """Four predictions, and which of each two is better; 0 is a tie.

    The prompt is one user turn: the passages, where the record has them, then the question. Leave out
    `passages` for the question alone.
    """
    fields, where = record.fields, record.where
    prompt = _question(fields, where)
    pid = read_prompt_id(fields, prompt, where)
    texts = [read_answer(fields[name], where, name) for name in PREDICTIONS]
    pairs, ties = _preferences(fields, where)
    return Parsed(
        "finegrained_qa",
        tuple(Answer(prompt, text, pid, where=where) for text in texts),
        (math.nan,) * len(texts),
        pairs=pairs,
        ranked=ties,
        gold=read_gold(fields, where, ("gold",)),
        score_shape="list",
    )


def _question(fields: Mapping[str, Any], where: str) -> Prompt:
    """Passages as they stand (their first entry is the title, which the second repeats), and question."""
    question = read_text(fields["question"], where, "question")
    parts = []
    for i, passage in enumerate(fields.get("passages") or ()):
        sentences = read_list(passage, where, f"passages[{i}]")
        parts.append(" ".join(read_text(s, where, f"passages[{i}]") for s in sentences[1:]).strip())
    text = "\n\n".join([part for part in parts if part] + [question])
    return prompt_of((Message("user", text),), fields, where, "question")


def _preferences(
    fields: Mapping[str, Any], where: str
) -> tuple[tuple[Pair, ...], tuple[RankedList, ...]]:
    """Pairs and ties among the predictions (1,2) (1,3) (1,4) (2,3) (2,4) (3,4)."""
    values = read_list(fields["preference"], where, "preference")
    sides = list(combinations(range(len(PREDICTIONS)), 2))
    if len(values) != len(sides) or any(type(v) is not int or v not in (0, 1, 2) for v in values):
        raise DataError(
            f"{where}: `preference` is {values!r}; expected {len(sides)} numbers: 1 = the first is "
            "better, 2 = the second, 0 = neither"
        )
    pairs, ties = [], []
    for (first, second), value in zip(sides, values, strict=True):
        if value == 0:
            ties.append(RankedList((first, second), (1.0, 1.0)))
        else:
            pairs.append(Pair(first, second) if value == 1 else Pair(second, first))
    return tuple(pairs), tuple(ties)


def finegrained_columns(fields: Mapping[str, Any]) -> tuple[RatingColumn, ...]:
    """The three objectives that the marked errors give."""
    return (
        RatingColumn("relevance", "feedback.errors", UNIT_SCALE, _relevance),
        RatingColumn("factuality", "feedback.errors", UNIT_SCALE, _factuality),
        RatingColumn("completeness", "feedback.missing-info", UNIT_SCALE, _completeness),
    )


def _of_first(value: float) -> list[float]:
    return [value] + [math.nan] * (len(PREDICTIONS) - 1)


def _relevance(record: Record) -> list[float]:
    return _of_first(_share_unmarked(record, _OF_RELEVANCE))


def _factuality(record: Record) -> list[float]:
    return _of_first(_share_unmarked(record, _OF_FACTUALITY))


def _share_unmarked(record: Record, kinds: Collection[str]) -> float:
    """Share of the characters of the first prediction outside of the spans of these kinds."""
    text = record.fields[PREDICTIONS[0]]
    marked: set[int] = set()
    for error in _feedback(record, "errors"):
        kind = _kind(error, (*_OF_RELEVANCE, *_OF_FACTUALITY), record.where)
        start, end = error.get("start"), error.get("end")
        if type(start) is not int or type(end) is not int or not 0 <= start <= end <= len(text):
            raise DataError(
                f"{record.where}: got the span {start!r}..{end!r} of an error in `{PREDICTIONS[0]}`; expected offsets "
                f"from 0 to {len(text)}, the length of the text"
            )
        if kind in kinds:
            marked.update(range(start, end))
    return 1 - len(marked) / len(text)


def _completeness(record: Record) -> list[float]:
    missing = [_kind(m, _COMPLETENESS, record.where) for m in _feedback(record, "missing-info")]
    return _of_first(min((_COMPLETENESS[kind] for kind in missing), default=1.0))


def _feedback(record: Record, name: str) -> list[Mapping[str, Any]]:
    feedback = record.fields["feedback"]
    found = feedback.get(name) if isinstance(feedback, Mapping) else None
    if not isinstance(found, list | tuple) or not all(isinstance(x, Mapping) for x in found):
        raise FormatError(
            f"{record.where}: `feedback` has no list of objects in `{name}`; expected one, empty where "
            "nothing was marked"
        )
    return list(found)


def _kind(error: Mapping[str, Any], known: Collection[str], where: str) -> str:
    kind = error.get("error type")
    if kind not in known:
        raise FormatError(
            f"{where}: got the error type {kind!r}; expected a known one. "
            f"{did_you_mean(str(kind), list(known))}"
        )
    return str(kind)
