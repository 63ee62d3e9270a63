"""How the report of an audit names features and metrics, and prints numbers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from retrm.audit.tables import AuditTables, Verdict
from retrm.audit.words import KINDS, MEASURES, METRICS, p_in_words
from retrm.metrics import format_interval, format_number

POOLINGS: Mapping[str, str] = {
    "last": "last token",
    "mean": "mean over tokens",
    "max": "maximum over tokens",
    "gate": "gated mean over tokens",
    "prompt_end": "last token of the prompt",
}
NONE = "–"


QUESTIONS: Mapping[str, str] = {
    "specificity": "Is the reasoning subspace better than random directions",
    "economy": "Is it as good as the full state",
    "sanity": "Is the measurement itself sound",
    "labels": "Is it better than random directions where labels are few",
    "labels_full": "Is it better than the full state where labels are few",
    "layers": "Is it better than random directions at other layers",
    "confidence": "Does it add to confidence and length",
    "confidence_random": "Does it add more to them than random directions do",
    "length": "Is it more than the length of the answer",
    "use": "Does the model use it",
}
_SUBJECTS = {
    "within_auroc": " at ordering answers",
    "pair_accuracy": " at ordering pairs",
    "best_of_n": " at picking the best of N",
}


class Figure(Protocol):
    """A number with the ends of its interval, NaN where none was made."""

    @property
    def value(self) -> float:
        """The number."""

    @property
    def low(self) -> float:
        """Lower end."""

    @property
    def high(self) -> float:
        """Upper end."""


def feature_name(kind: str) -> str:
    """A kind of features in words; a name without an entry stays as it is."""
    return KINDS[kind].short if kind in KINDS else kind


def metric_name(metric: str) -> str:
    """A metric or a measure in words."""
    found = METRICS.get(metric) or MEASURES.get(metric)
    return found.short if found else metric.replace("_", " ")


def question_of(verdict: Verdict) -> str:
    """The question of a verdict, for a title; a name without an entry stays as it is."""
    if verdict.question not in QUESTIONS:
        return verdict.question
    pooling = POOLINGS.get(verdict.subject)
    subject = _SUBJECTS.get(verdict.subject, f" ({pooling})" if pooling else "")
    return f"{QUESTIONS[verdict.question]}{subject}?"


def metric_of_record(tables: AuditTables) -> str:
    """The metric that was named before looking."""
    return str(tables.facts.get("metric", "within_auroc"))


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number: NaN and None mean "does not apply"."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any) -> str:
    """`.812`, or a dash where there is none."""
    return format_number(value) if is_number(value) else NONE


def figure(found: Figure | None) -> str:
    """`.812 [.790, .833]`, the bare number where there is no interval, or a dash."""
    if found is None or not is_number(found.value):
        return NONE
    if not (is_number(found.low) and is_number(found.high)):
        return format_number(found.value)
    return format_interval(found.value, found.low, found.high)


def p_value(value: Any) -> str:
    """`.042`, `< .001`, or a dash where there is none."""
    return p_in_words(value) if is_number(value) else NONE


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def span(low: float, high: float) -> str:
    """`[.790, .833]`, or nothing where no interval was made."""
    if not (is_number(low) and is_number(high)):
        return ""
    return f"[{number(low)}, {number(high)}]"


def footer(facts: Mapping[str, Any]) -> str:
    """Model, data and counts in one line, for the foot of a picture."""
    parts: Sequence[str] = [
        _short(facts.get("model", "unknown model")),
        _short(facts.get("data") or "unknown data"),
        *(
            f"{facts[key]:,} {name}"
            for key, name in (("n_prompts", "prompts"), ("n_answers", "answers"))
            if is_number(facts.get(key))
        ),
    ]
    return " · ".join(parts)


def _short(value: Any, limit: int = 48) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= limit else "…" + text[1 - limit :]
