"""A line of a sample file of lm-evaluation-harness (``--log_samples``): answers to one document.

All repeats of a document are candidates. The harness has one value of each metric a document, so it is a
label only where there is one answer; more of them are graded by `retrm grade`. A task with several
filters writes every document once for each: which one is meant must be said, as the harness itself
writes it in its results, ``exact_match,strict-match``.

Layout (0.4.13): `doc_id`, `doc`, `target`, `arguments` = {"gen_args_0": {"arg_0": prompt, "arg_1": ...}},
`resps` = [[text, ...]], `filtered_resps`, `filter`, `metrics` = [name, ...], and the metrics by name.
Older files hold `arguments` as [[prompt, ...]] and have neither `filter` nor `metrics`.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from retrm.data.messages import kind_of, prompt_of, read_messages, read_text
from retrm.data.parsed import Options, Parsed
from retrm.data.read import Record
from retrm.data.values import read_answer, read_outcome
from retrm.errors import DataError, FormatError, did_you_mean
from retrm.records import Answer, Message, Prompt

_NO_FILTER = (None, "", "none")
_RENDERED = re.compile(
    r"\s*(?:<\|(?:im_start|begin_of_text|start_header_id|user|system)\|>|<start_of_turn>|<bos>|<s>"
    r"|\[INST\])"
)


def parse_lm_eval(record: Record, options: Options) -> Parsed:
    """All answers to one document.

    Raises:
        FormatError: it is not told which metric and filter are meant, or there is no such metric.
        DataError, LabelError: a value is of another kind.
    """
    fields, where = record.fields, record.where
    metric, wanted = _metric_and_filter(options.attribute)
    found = fields.get("filter")
    if wanted is None and found not in _NO_FILTER:
        raise FormatError(
            f"{where}: the line is of the filter {found!r}, and there may be the same answers under "
            "others; expected to be told which. Say metric and filter: --attribute "
            f"{_metrics(fields)[0] if _metrics(fields) else 'exact_match'},{found}"
        )
    prompt, texts = _prompt(fields, where), _responses(fields, where)
    filtered = _filtered(fields, len(texts))
    answers = tuple(
        Answer(
            prompt,
            read_answer(text, where, f"resps[0][{i}]"),
            prompt.key,
            key=filtered[i],
            where=where,
        )
        for i, text in enumerate(texts)
    )
    is_other = wanted is not None and wanted != (found or "none")
    has_label = len(texts) == 1 and not is_other
    label = _label(fields, metric, where) if has_label else math.nan
    target = fields.get("target")
    return Parsed(
        "lm_eval",
        answers,
        (label,) * len(texts),
        is_labelled=len(texts) == 1,
        gold=str(target) if isinstance(target, str | int | float) and target != "" else None,
        are_samples=True,
        score_shape="list",
        drop="other_filter" if is_other else None,
    )


def _metric_and_filter(attribute: str | None) -> tuple[str | None, str | None]:
    """Of "exact_match,strict-match" both, of "exact_match" the metric alone."""
    if attribute is None:
        return None, None
    metric, comma, chosen = attribute.partition(",")
    return metric or None, chosen if comma else None


def _metrics(fields: Mapping[str, Any]) -> list[str]:
    named = fields.get("metrics")
    if isinstance(named, list):
        return [str(name) for name in named]
    return [n for n in ("exact_match", "acc", "pass@1", "pass_at_1") if n in fields]


def _label(fields: Mapping[str, Any], metric: str | None, where: str) -> float:
    """The value of the metric that was named, or of the only one."""
    known = _metrics(fields)
    if metric is None:
        if not known:
            return math.nan
        if len(known) > 1:
            raise FormatError(
                f"{where}: got the metrics {', '.join(known)}; expected one. Say which is the label: "
                f"--attribute {known[0]}"
            )
        metric = known[0]
    if metric not in fields:
        raise FormatError(f"{where}: there is no metric {metric!r}. {did_you_mean(metric, known)}")
    return read_outcome(fields[metric], where, metric)


def _prompt(fields: Mapping[str, Any], where: str) -> Prompt:
    """What was sent: a text, or messages as JSON."""
    column = "arguments"
    value = fields[column]
    if isinstance(value, Mapping):
        value = list(value.values())
    first = value[0] if isinstance(value, list) and value else value
    if isinstance(first, Mapping):
        first = first.get("arg_0")
    while isinstance(first, list) and first:
        first = first[0]
    text = read_text(first, where, f"{column}[0][0]")
    if text.lstrip().startswith("[{"):
        try:
            turns = json.loads(text)
        except ValueError:
            turns = None
        if turns is not None:
            return prompt_of(read_messages(turns, where, column), {}, where, column)
    if _RENDERED.match(text):
        raise DataError(
            f"{where}: `{column}` holds a prompt that a chat template has rendered already "
            f"({text.strip()[:24]!r}); expected text or messages, which retrm renders itself. Run "
            "lm_eval without --apply_chat_template, or against a chat endpoint, which keeps messages"
        )
    return prompt_of((Message("user", text),), {}, where, column)


def _responses(fields: Mapping[str, Any], where: str) -> list[Any]:
    """The texts of the one request that generates."""
    value = fields["resps"]
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: `resps` is {kind_of(value)}; expected a list of answers")
    if len(value) > 1 or not isinstance(value[0], list) or not value[0]:
        raise DataError(
            f"{where}: `resps` holds {len(value)} requests; expected one that generates text. Multiple "
            "choice by log-likelihood has no answers to judge: use a generative variant of the task"
        )
    if not all(isinstance(text, str) for text in value[0]):
        raise DataError(
            f"{where}: `resps[0]` holds log-likelihoods; expected generated texts. Use a generative "
            "variant of the task"
        )
    return value[0]


def _filtered(fields: Mapping[str, Any], n: int) -> list[str | None]:
    """What the filter left of each answer, for votes; None where it kept only some of them."""
    value = fields.get("filtered_resps")
    while isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    if not isinstance(value, list) or len(value) != n:
        return [None] * n
    return [v if isinstance(v, str) and v.strip() and v != "[invalid]" else None for v in value]
