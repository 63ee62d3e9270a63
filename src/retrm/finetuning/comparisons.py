"""What a policy discriminator is trained on: two candidates beside a reference.

    pre-training    reference and chosen are written by one policy, rejected by another; same prefix
    fine-tuning     three answers ranked A > B > C: reference A, chosen B, rejected C

Rows come from any file that `retrm` reads: records with `reference`, `chosen` and `rejected`
(`retrm polar synthesise` writes them, with `policies`), or ranked lists. The best answer of a list is the
reference and never a candidate; every strict preference among the others is a row.

Source: arXiv 2507.05197 (equations of both losses) and the record schema of its released code.
"""

import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from retrm.backbone.reference import joined
from retrm.data.load import iter_parsed
from retrm.data.parsed import Parsed
from retrm.errors import DataError, FormatError, LabelError, RecipeError, did_you_mean
from retrm.records import WRAPPERS, Answer, RankedList, Reference

Equal = Literal["error", "drop"]
MIXED = "mixed"


@dataclass(frozen=True)
class Comparison:
    """Two candidates of one prompt beside a reference.

    Attributes:
        prompt: as one text.
        reference: what they are compared with.
        chosen: the candidate that should score higher.
        rejected: the other one.
        policies: who wrote reference and chosen, and who wrote rejected; None = not recorded.
        prompt_id: the grouping key of splits and intervals.
        where: source for error messages.
    """

    prompt: str
    reference: Reference
    chosen: str
    rejected: str
    policies: tuple[str, str] | None = None
    prompt_id: str = ""
    where: str = ""

    def as_dict(self) -> dict[str, Any]:
        """A line of a file that `load_comparisons` reads."""
        row: dict[str, Any] = {
            "prompt": self.prompt,
            "reference": self.reference.text,
            "chosen": self.chosen,
            "rejected": self.rejected,
            "wrapper": self.reference.wrapper,
            "prompt_id": self.prompt_id,
        }
        return row if self.policies is None else {**row, "policies": list(self.policies)}


@dataclass(frozen=True)
class Comparisons:
    """Rows, and what was set aside on the way to them.

    Attributes:
        rows: in the order of the source.
        counts: by reason; `records` and `rows` always, others where they are not 0.
    """

    rows: tuple[Comparison, ...]
    counts: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sha(self) -> str:
        """Sixteen hex digits of all rows."""
        body = json.dumps([row.as_dict() for row in self.rows], sort_keys=True)
        return hashlib.sha256(body.encode()).hexdigest()[:16]

    @property
    def wrappers(self) -> tuple[str, ...]:
        """Those that occur."""
        return tuple(sorted({row.reference.wrapper for row in self.rows}))


def load_comparisons(
    source: str | Path,
    *,
    wrapper: str | None = None,
    equal: Equal = "error",
    format: str = "auto",
    limit: int | None = None,
) -> Comparisons:
    """Rows of a file.

    Args:
        source: a file or hub data set.
        wrapper: `sft` or `pretrain` = all rows must have this one; `mixed` = either; None = all alike.
        equal: what to do with rows in which two of the three texts are equal: `error`, or `drop`, counted.
        format: of the records, where the columns fit several.
        limit: only the first so many records.

    Raises:
        DataError: a pair without a reference, equal texts, or no row at all.
        FormatError: rows of both wrappers, or records that compare nothing.
        LabelError: answers without ranks.
    """
    if equal not in ("error", "drop"):
        raise RecipeError(f"got equal={equal!r}; expected error or drop")
    if wrapper not in (None, MIXED, *WRAPPERS):
        raise RecipeError(
            f"got wrapper={wrapper!r}. {did_you_mean(str(wrapper), (*WRAPPERS, MIXED))}"
        )
    counts: Counter[str] = Counter(records=0)
    rows: list[Comparison] = []
    for record, parsed in iter_parsed(source, format=format, limit=limit):
        counts["records"] += 1
        counts.update(parsed.counts)
        if parsed.drop is not None:
            counts[f"dropped_{parsed.drop}"] += 1
            continue
        policies = _policies(record.fields.get("policies"), record.where)
        for row in _rows_of(parsed, policies, record.where, counts):
            same = _equal_texts(row)
            if same and equal == "error":
                raise DataError(
                    f"{row.where}: {same} are the same text, so that nothing can be learnt from comparing "
                    "them. Leave the row out, or drop such rows, counted, with --equal drop"
                )
            if same:
                counts["dropped_equal"] += 1
            else:
                rows.append(row)
    _check_wrappers(rows, wrapper, str(source))
    if not rows:
        said = ", ".join(f"{name} {n}" for name, n in counts.items())
        raise LabelError(
            f"{source} gives no comparison ({said}); expected reference, chosen and rejected, or three "
            "answers to a prompt with ranks (1 = best)"
        )
    counts["rows"] = len(rows)
    return Comparisons(tuple(rows), {name: n for name, n in counts.items() if n})


def _rows_of(
    parsed: Parsed, policies: tuple[str, str] | None, where: str, counts: Counter[str]
) -> Iterator[Comparison]:
    if parsed.ranked:
        for ranked in parsed.ranked:
            yield from _of_list(parsed.answers, ranked, counts)
        return
    if parsed.pairs:
        for pair in parsed.pairs:
            chosen, rejected = parsed.answers[pair.chosen], parsed.answers[pair.rejected]
            if chosen.reference is None:
                raise DataError(
                    f"{where}: a chosen and a rejected answer without `reference`; expected a good answer to "
                    "compare both with. Three ranked answers bring their own"
                )
            yield _row(chosen.reference, chosen, rejected, policies)
        return
    if parsed.format in ("ranked", "nectar", "ultrafeedback"):
        counts["lists_without_ranks"] += 1
        return
    if len(parsed.answers) > 1:
        raise LabelError(
            f"{where}: {len(parsed.answers)} answers without ranks; expected `ranks` (1 = best) or `scores` "
            "(higher = better) beside `responses`, for three answers at least"
        )
    raise FormatError(
        f"{where}: a single answer ({parsed.format}); expected reference, chosen and rejected, or three ranked "
        "answers to a prompt"
    )


def _of_list(
    answers: Sequence[Answer], ranked: RankedList, counts: Counter[str]
) -> Iterator[Comparison]:
    """The best answer as reference, every strict preference among the others as a row."""
    best = min(ranked.ranks)
    heads = [row for row, rank in zip(ranked.rows, ranked.ranks, strict=True) if rank == best]
    others = [
        (row, rank) for row, rank in zip(ranked.rows, ranked.ranks, strict=True) if rank != best
    ]
    if len(heads) > 1:
        counts["lists_without_a_best"] += 1
        return
    rest = RankedList(tuple(row for row, _ in others), tuple(rank for _, rank in others))
    made = list(rest.pairs())
    if not made:
        counts["lists_too_short_or_tied"] += 1
    reference = Reference(answers[heads[0]].response)
    for pair in made:
        yield _row(reference, answers[pair.chosen], answers[pair.rejected], None)


def _row(
    reference: Reference, chosen: Answer, rejected: Answer, policies: tuple[str, str] | None
) -> Comparison:
    return Comparison(
        joined(chosen.prompt.messages),
        reference,
        chosen.response,
        rejected.response,
        policies,
        chosen.prompt_id,
        chosen.where,
    )


def _equal_texts(row: Comparison) -> str:
    texts = {
        "reference": row.reference.text.strip(),
        "chosen": row.chosen.strip(),
        "rejected": row.rejected.strip(),
    }
    names = list(texts)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            if texts[one] == texts[other]:
                return f"{one} and {other}"
    return ""


def _policies(value: Any, where: str) -> tuple[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(v, str) for v in value):
        raise DataError(
            f"{where}: `policies` is {value!r:.60}; expected two names: who wrote reference and chosen, and "
            "who wrote rejected"
        )
    return (value[0], value[1])


def _check_wrappers(rows: Sequence[Comparison], wrapper: str | None, source: str) -> None:
    found = {row.reference.wrapper: row.where for row in rows}
    if wrapper == MIXED or not found:
        return
    if wrapper is None and len(found) > 1:
        places = " and ".join(f"{name} ({where})" for name, where in found.items())
        raise FormatError(
            f"{source} mixes templates: {places}; expected rows of one wrapper. Split the file, or say that "
            "this is meant with --wrapper mixed"
        )
    if wrapper is not None and set(found) != {wrapper}:
        other = next(name for name in found if name != wrapper)
        raise FormatError(
            f"{found[other]}: a row of the wrapper {other!r}, and {wrapper!r} was asked for; expected rows of "
            "this one only"
        )


@dataclass(frozen=True)
class Split:
    """Rows to train on, and two kinds of held-out ones.

    Attributes:
        train: of known policies.
        test: of the same policies on other prompts.
        held_out: rows with a policy that training never sees, on any prompt.
    """

    train: tuple[Comparison, ...]
    test: tuple[Comparison, ...]
    held_out: tuple[Comparison, ...]


def split(
    rows: Sequence[Comparison],
    *,
    test_fraction: float = 0.0,
    hold_out: Collection[str] = (),
    seed: int = 0,
) -> Split:
    """Rows by prompt and by policy; no prompt of `test` or `held_out` is trained on.

    Args:
        rows: to be split.
        test_fraction: share of the prompts for `test`, 0 to below 1.
        hold_out: policies that training must not see.
        seed: of the draw of prompts.

    Raises:
        RecipeError: a policy that wrote nothing, a fraction out of range, or nothing left to train on.
    """
    if not (0 <= test_fraction < 1 and math.isfinite(test_fraction)):
        raise RecipeError(f"got test_fraction={test_fraction}; expected 0 to below 1")
    known = {name for row in rows for name in (row.policies or ())}
    for name in hold_out:
        if name not in known:
            raise RecipeError(
                f"no row names the policy {name!r} that is to be held out. {did_you_mean(name, sorted(known))}"
            )
    apart = [row for row in rows if set(row.policies or ()) & set(hold_out)]
    rest = [row for row in rows if not set(row.policies or ()) & set(hold_out)]
    prompts = sorted({row.prompt_id for row in rest})
    random.Random(seed).shuffle(prompts)
    n_test = math.ceil(test_fraction * len(prompts)) if test_fraction else 0
    tested = set(prompts[:n_test])
    used = {row.prompt_id for row in apart}
    train = tuple(r for r in rest if r.prompt_id not in tested and r.prompt_id not in used)
    if not train:
        raise RecipeError(
            f"of {len(rows)} rows none is left to train on; expected some. Hold out fewer policies, or a "
            "smaller test_fraction"
        )
    return Split(train, tuple(r for r in rest if r.prompt_id in tested), tuple(apart))
