"""A selection rule applied to every prompt of a table, with the counts that belong beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from retrm.errors import DataError, RecipeError, RetrmError, did_you_mean
from retrm.selection.best_of_n import best_of_n
from retrm.selection.candidates import RuleSpec, Selection


@dataclass(frozen=True)
class Selections:
    """What a rule keeps for each prompt, prompts in order of first appearance.

    Attributes:
        rule: name of the rule.
        options: its options as given; defaults are not repeated.
        prompt_ids: (P,) the prompts.
        selections: (P,) results; `chosen` counts inside the prompt.
        rows: (P,) row of the table that is kept; None = abstained.
        n_tied: prompts in which order decided.
        n_abstained: prompts without any answer key, after the fallback if one was asked for, or
            without any allowed candidate.
        n_fallbacks: prompts decided by the fallback.
        n_without_key: candidates without a key, over all prompts.
        n_forbidden: candidates that were not allowed, over all prompts.
        n_without_allowed: prompts without an allowed candidate; they are among the abstentions.
    """

    rule: str
    options: Mapping[str, object]
    prompt_ids: tuple[str, ...]
    selections: tuple[Selection, ...]
    rows: tuple[int | None, ...]
    n_forbidden: int = 0
    n_without_allowed: int = 0
    n_tied: int = field(init=False)
    n_abstained: int = field(init=False)
    n_fallbacks: int = field(init=False)
    n_without_key: int = field(init=False)

    def __post_init__(self) -> None:
        counts = {
            "n_tied": sum(s.is_tie for s in self.selections),
            "n_abstained": sum(s.chosen is None for s in self.selections),
            "n_fallbacks": sum(s.is_fallback for s in self.selections),
            "n_without_key": sum(s.n_without_key for s in self.selections),
        }
        for name, count in counts.items():
            object.__setattr__(self, name, count)

    def chosen_labels(self, labels: Sequence[float]) -> np.ndarray:
        """(P,) label of the kept row of each prompt; 0 where the vote abstained.

        An abstention counts as wrong because the denominator is all prompts (arXiv 2502.12215).

        Args:
            labels: (n,) one label a row of the table.

        Raises:
            DataError: too few labels, or the label of a kept row is missing.
        """
        truth = np.asarray(labels, dtype=np.float64)
        kept = [row for row in self.rows if row is not None]
        if kept and (len(truth) <= max(kept) or not np.isfinite(truth[kept]).all()):
            raise DataError(
                f"got {len(truth)} labels; expected a number for every row that was kept (up to row "
                f"{max(kept)}). Label all candidates first."
            )
        return np.array([0.0 if row is None else truth[row] for row in self.rows])


def apply_rule(
    name: str,
    rules: Mapping[str, RuleSpec],
    prompt_ids: Sequence[str],
    columns: Mapping[str, Sequence | None],
    *,
    objectives: Sequence[Sequence[float]] | None,
    allowed: Sequence[bool] | None,
    options: Mapping[str, object],
    fallback_to_best_of_n: bool,
) -> Selections:
    """The work behind `retrm.selection.apply`; arguments as there, `columns` by name."""
    spec = _checked_rule(name, rules, options)
    if "objectives" in spec.needs:
        columns = {**columns, "objectives": objectives}
    is_allowed = np.ones(len(prompt_ids), dtype=bool) if allowed is None else _mask(allowed)
    given = {**columns, "allowed": is_allowed}
    _check_columns(spec, name, given, len(prompt_ids), fallback_to_best_of_n)
    groups: dict[str, list[int]] = {}
    for row, prompt_id in enumerate(prompt_ids):
        groups.setdefault(prompt_id, []).append(row)
    selections = []
    for prompt_id, rows in groups.items():
        places = [place for place, row in enumerate(rows) if is_allowed[row]]
        some = [rows[place] for place in places]
        if not some:
            selections.append(Selection(None, None, False, len(rows), 0))
            continue
        part = {n: None if c is None else [c[row] for row in some] for n, c in columns.items()}
        found = _select_one(spec, part, options, prompt_id, some, fallback_to_best_of_n)
        chosen = None if found.chosen is None else places[found.chosen]
        selections.append(replace(found, chosen=chosen, n_candidates=len(rows)))
    kept = tuple(
        None if s.chosen is None else rows[s.chosen]
        for s, rows in zip(selections, groups.values(), strict=True)
    )
    n_empty = sum(not is_allowed[rows].any() for rows in groups.values())
    n_forbidden = int((~is_allowed).sum())
    return Selections(
        *(name, dict(options), tuple(groups), tuple(selections), kept), n_forbidden, n_empty
    )


def _mask(allowed: Sequence[bool]) -> np.ndarray:
    mask = np.asarray(allowed)
    if mask.dtype != bool:
        raise DataError(f"got allowed of dtype {mask.dtype}; expected True or False for every row.")
    return mask


def _select_one(
    spec: RuleSpec,
    part: Mapping[str, list | None],
    options: Mapping[str, object],
    prompt_id: str,
    rows: list[int],
    fallback_to_best_of_n: bool,
) -> Selection:
    try:
        selection = spec.function(**part, **options)
        if selection.chosen is None and fallback_to_best_of_n:
            return replace(best_of_n(part["scores"], part["keys"]), is_fallback=True)
    except RetrmError as error:
        where = f"prompt {prompt_id!r} (its candidates are rows {rows[0]}..{rows[-1]})"
        raise type(error)(f"{where}: {error}") from error
    return selection


def _checked_rule(
    name: str, rules: Mapping[str, RuleSpec], options: Mapping[str, object]
) -> RuleSpec:
    if name not in rules:
        raise RecipeError(f"got rule {name!r}, which does not exist. {did_you_mean(name, rules)}")
    spec = rules[name]
    for option in options:
        if option not in spec.options:
            raise RecipeError(
                f"got option {option!r} for rule {name!r}; expected "
                f"{', '.join(spec.options) or 'none'}. {did_you_mean(option, spec.options)}".rstrip()
            )
    return spec


def _check_columns(
    spec: RuleSpec,
    name: str,
    columns: Mapping[str, Sequence | None],
    n: int,
    fallback_to_best_of_n: bool,
) -> None:
    if n == 0:
        raise DataError("got no rows; expected at least one candidate.")
    missing = [column for column in spec.needs if columns[column] is None]
    if missing:
        raise RecipeError(
            f"got no {' and no '.join(missing)}; rule {name!r} expected {', '.join(spec.needs)}. "
            "Pass them, or choose a rule that does without."
        )
    for column, values in columns.items():
        if values is not None and len(values) != n:
            raise DataError(f"got {len(values)} {column} for {n} prompt_ids; expected one a row.")
    if fallback_to_best_of_n and (not spec.is_vote or columns["scores"] is None):
        raise RecipeError(
            f"got a fallback to best_of_n for rule {name!r}; expected a vote and scores to fall "
            "back on. Leave the fallback out, or pass scores."
        )
