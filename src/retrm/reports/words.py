"""How the report of an audit names features and metrics, and prints numbers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from retrm.audit.tables import AuditTables
from retrm.audit.words import KINDS, MEASURES, METRICS
from retrm.metrics import format_number

POOLINGS: Mapping[str, str] = {
    "last": "last token",
    "mean": "mean over tokens",
    "max": "maximum over tokens",
    "gate": "gated mean over tokens",
    "prompt_end": "last token of the prompt",
}
NONE = "–"


def feature_name(kind: str) -> str:
    """A kind of features in words; a name without an entry stays as it is."""
    return KINDS[kind].short if kind in KINDS else kind


def metric_name(metric: str) -> str:
    """A metric or a measure in words."""
    found = METRICS.get(metric) or MEASURES.get(metric)
    return found.short if found else metric.replace("_", " ")


def metric_of_record(tables: AuditTables) -> str:
    """The metric that was named before looking."""
    return str(tables.facts.get("metric", "within_auroc"))


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number: NaN and None mean "does not apply"."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any) -> str:
    """`.812`, or a dash where there is none."""
    return format_number(value) if is_number(value) else NONE


def signed(value: Any) -> str:
    """A difference: `+.012`, `-.004`, or a dash."""
    return ("+" if is_number(value) and value > 0 else "") + number(value)


def span(low: float, high: float, *, is_difference: bool = False) -> str:
    """`[.790, .833]`, or nothing where no interval was made."""
    if not (is_number(low) and is_number(high)):
        return ""
    show = signed if is_difference else number
    return f"[{show(low)}, {show(high)}]"


def footer(facts: Mapping[str, Any]) -> str:
    """Model, data and counts in one line, for the foot of a picture."""
    parts: Sequence[str] = [
        _short(facts.get("model", "unknown model")),
        _short(facts.get("data", "unknown data")),
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
